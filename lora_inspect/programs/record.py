"""The record of a program that loads adapters: names, kinds, scale, magnitudes and limits."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Generic, TypeVar

from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.maths.dora import OF_BASE

if TYPE_CHECKING:  # to name all programs nothing has to be read
    from lora_inspect.reading.adapter import Adapter
    from lora_inspect.reading.model.contribution import Contribution, Module

# How a rule is known: the program's own code ran on such files, or was read.
RUN, READ = "run", "read"
# What a program does with an algorithm, or with a part of one: it computes what the trainer meant, passes over the
# tensors as over any that it does not know, makes another change of them, or refuses the whole file.
COMPUTES, LEAVES, MISREADS, FAILS = "computes", "leaves", "misreads", "fails"
# What it does with DoRA's magnitude beside that: it divides by the norms of the base's weight instead of the changed
# one's, by those of the other axis, or by the changed one's where the magnitude is over the base's.
BASE_NORM, OTHER_AXIS, SUM_NORM = "base norm", "other axis", "sum norm"
# It leaves the magnitude out and computes DoRA all the same, with the norms of the base's weight in its place.
UNTRAINED = "untrained"
# The treatment of magnitudes in a program that has no DoRA.
MAGNITUDES_LEFT: Mapping[str, str] = MappingProxyType(
    dict.fromkeys(
        (
            ".dora_scale output",
            ".dora_scale input",
            ".dora_layer.weight output",
            ".lora_magnitude_vector output",
            ".lora_magnitude_vector.weight output",
            ".magnitude output",
        ),
        LEAVES,
    )
)
# Whether a program says something of what it passes over.
SILENT, WARNS = "silently", "warns"
# The paths of text encoders, in the place of a layout's name. Those of one kind have the root of its blocks there.
TEXT_ENCODERS = "text encoders"
# What stands in the place of a dialect for factors of slices, `lora_up.0.weight`, for those with an adapter's name
# inside, `lora_A.default.weight`, and for those that hide a part of the path, `attn1.processor.to_q_lora.up.weight`.
SLICED, INFIXED, HIDING = "sliced", "infixed", "hiding"
ODD = (SLICED, INFIXED, HIDING)


class Given(NamedTuple):
    """A module's contribution in the file that a program loads."""

    adapter: "Adapter"
    module: "Module"
    contribution: "Contribution"


# The scale that a program applies to a contribution; None where that is not known.
ScaleRule = Callable[[Given], float | None]
_Answer = TypeVar("_Answer", covariant=True)


class OfKind(Generic[_Answer]):
    """A rule for contributions that looks at no more than what those of a kind have in common, so it is asked of one.

    They are alike in their algorithm, the shapes of their factors, their numbers, their module's name up to its numbers
    and what stands beside them. An answer of words may name one of them. The rule does not look at the file, so the
    answer holds for such contributions of every file, and is remembered.
    """

    def __init__(self, rule: Callable[[Given], _Answer]) -> None:
        self._rule = rule
        self.__doc__ = rule.__doc__

    def __call__(self, given: Given) -> _Answer:
        """What it says of the kind of this one."""
        return self._rule(given)


class OfKindInFile(OfKind[_Answer]):
    """A rule as `OfKind` that looks at the file too, or was made for one: its answers hold for that file alone."""


class ScaleOfFile(NamedTuple):
    """A scale rule that is made of a whole file, where a module's scale depends on the others."""

    make: "Callable[[Adapter], ScaleRule]"


@OfKind
def alpha_over_rank(given: Given) -> float | None:
    """alpha/rank of what stands in the file, 1 without an alpha: the rule of nearly all programs.

    What has no rank, or no alpha that is divided by one, is applied as its tensors stand: LoKr of whole factors, too,
    of which the program that trained it may have divided alpha by something else.
    """
    contribution = given.contribution
    formula = contribution.algorithm.formula
    if contribution.scale is not None and formula and formula.rank(contribution.shapes) is None:
        return 1.0
    if contribution.rank is None:
        return contribution.scale
    if given.module.alpha is None:
        return 1.0
    return None if contribution.alpha is None else contribution.alpha / contribution.rank


@OfKind
def intended_scale(given: Given) -> float | None:
    """The scale that the file means, whatever says it: the rule of a program that reads all of that."""
    return given.contribution.scale


@OfKind
def one(given: Given) -> float | None:
    """The factors as they stand, whatever alpha says."""
    return 1.0


# What a rule asks of a whole file.
FileTest = Callable[["Adapter"], bool]


class LoadFailure(NamedTuple):
    """FAILS, with what the program `says` of one contribution."""

    says: str


class Strangers(NamedTuple):
    """What a program does with tensors that it has no use for: `does` is SILENT, WARNS or FAILS, and it `says` so.

    More than `most` of them make it refuse the file, for the reason `beyond`.
    """

    does: str
    says: str = ""
    most: int | None = None
    beyond: str = ""


# What a program does with one contribution otherwise than its algorithm tells: one of the words for that, empty for
# unknown, a failure, or how it passes over it where it says something else of it than of strangers. None where it is no
# exception.
Exceptions = Callable[[Given], str | LoadFailure | Strangers | None]
# Whether a program finds a module in the model; None where that depends on what the file does not tell. Made once for
# each file, as what a config says of modules is read once.
Finder = Callable[[Given], bool | None]


class Rule(NamedTuple):
    """What a program does with the modules of certain names.

    It speaks of modules of the `families` (of any without any), whose prefix is one of `prefixes`, whose path is one of
    the `layouts` of the family, and whose factors are spelled in one of the `dialects` of their algorithm; those of
    ODD have to be named. What is empty is not asked for. `alpha` True or False asks for modules with or without an
    alpha tensor, and `where` for files of which it holds, as for those with a key by which the program knows them. Of
    several rules the first that speaks of a module counts; where none does, nothing is known.

    `paths` are those that it speaks of, with `{i}` for numbers, all without any.

    `kinds` says by algorithm what it does with it, one of COMPUTES, LEAVES, MISREADS and FAILS; an algorithm that is
    not there, or has an empty word, is unknown, and "" stands for all others. Without any kind the program does not
    find these modules: their tensors are strangers to it. `lacks` are paths, with `{i}` for numbers, that it does not
    find of a layout. `finds` says of a file which modules it finds, where more than their names decides that, and
    `unfound` what it does with the tensors of those that it does not find, None for what it does with all strangers.
    `parts` says of single roles by "algorithm.role" what it does otherwise, as of a Tucker core: {"lora.mid": LEAVES},
    and `exceptions` of single contributions that it COMPUTES as a rule, where numbers, shapes or neighbours decide.
    `scale` is the scale that it applies. `magnitudes` says what it does with a magnitude by "suffix axis", as
    ".dora_scale output": COMPUTES, LEAVES, BASE_NORM, OTHER_AXIS, UNTRAINED or FAILS, and is unknown for what is not
    there.
    `residual` says whether it takes the first values of factors off the base where their initialisation put them in.
    `by` says how the rule is known, RUN or READ, `says` what the program says of it, where it FAILS.
    """

    families: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    layouts: tuple[str, ...] = ()
    dialects: tuple[str, ...] = ()
    alpha: bool | None = None
    where: FileTest | None = None
    paths: tuple[str, ...] = ()
    kinds: Mapping[str, str] = MappingProxyType({})
    lacks: tuple[str, ...] = ()
    finds: "Callable[[Adapter], Finder] | None" = None
    unfound: Strangers | None = None
    parts: Mapping[str, str] = MappingProxyType({})
    exceptions: Exceptions | None = None
    scale: ScaleRule | ScaleOfFile = alpha_over_rank
    magnitudes: Mapping[str, str] = MappingProxyType({})
    residual: bool = False
    by: str = RUN
    says: str = ""


def treatment(rule: Rule, spelled: str, norms: str) -> str:
    """What a program does with a magnitude of a "suffix axis" that is over the `norms`; empty where nobody knows.

    One over the norms of the base is right where that is what divides, and wrong where it is not.
    """
    does = rule.magnitudes.get(spelled, "")
    return _OF_BASE.get(does, does) if norms == OF_BASE else does


_OF_BASE = {BASE_NORM: COMPUTES, COMPUTES: SUM_NORM}


class RulesByFamily:
    """Rules of several `families` that are made for one of them at a time: a file needs no others, and that saves time.

    `make` makes those of a family. All of them together are what iteration gives.
    """

    def __init__(self, families: tuple[str, ...], make: Callable[[str], Iterable[Rule]]) -> None:
        self.families = families
        self._make, self._made = make, dict[str, tuple[Rule, ...]]()

    def __iter__(self) -> Iterator[Rule]:
        return (rule for family in self.families for rule in self.of(family))

    def of(self, family: str) -> tuple[Rule, ...]:
        """Those of one family; none of any other."""
        if family not in self._made:
            self._made[family] = tuple(self._make(family)) if family in self.families else ()
        return self._made[family]


# What a program refuses a file for as a whole, in its own words where it has any; None for nothing.
Refusal = Callable[["Adapter"], str | None]


def nothing_refused(adapter: "Adapter") -> str | None:
    """The refusal of a program that looks at tensors alone."""
    return None


class Loader(NamedTuple):
    """One way in which a program reads files, that of the models of some `families`, of all without any.

    A program may have several for a family and ask which a file is for by its keys: `marks` are parts of a key, one of
    which has to be in one of them, or in each where `all_marked`, behind `^` at its beginning and before `$` at its
    end. No marks are every file's.

    `strangers` is what it does with tensors of modules that it does not find, `leaves` with those of what rules LEAVE,
    `others` with those that belong to no module, and `flags` with flags of RS-LoRA among them; None for the same as the
    one before. `embeddings` says whether it takes those of tokens out of an adapter's file. `needs` says what it has to
    be told beside the file, so that it loads it, and `never` what it does with a file that no conversion for it
    changes.

    `complete` are paths, with `{i}` for numbers, of which every block of a file from the first on has to have a module.
    `unsure` says why nobody knows what becomes of a file as a whole, in words that "is unknown" follows.
    """

    rules: tuple[Rule, ...] | RulesByFamily
    strangers: Strangers
    families: tuple[str, ...] = ()
    others: Strangers | None = None
    refuses: Refusal = nothing_refused
    never: Refusal = nothing_refused
    needs: Refusal = nothing_refused
    embeddings: bool = False
    marks: tuple[str, ...] = ()
    all_marked: bool = False
    leaves: Strangers | None = None
    flags: Strangers | None = None
    complete: tuple[str, ...] = ()
    unsure: Refusal = nothing_refused

    def rules_for(self, family: str) -> list[Rule]:
        """The rules that may speak of modules of a family, "" for an unknown one."""
        rules = self.rules.of(family) if isinstance(self.rules, RulesByFamily) else self.rules
        return [rule for rule in rules if not rule.families or family in rule.families]

    def rules_changed(self, family: str, **fields: object) -> list[Rule]:
        """The same with other values of some fields."""
        return [rule._replace(**fields) for rule in self.rules_for(family)]  # type: ignore[arg-type]


class Reads(NamedTuple):
    """Which files a loader reads, as its fields of these names say."""

    families: tuple[str, ...]
    marks: tuple[str, ...]
    all_marked: bool


class Loaders(Sequence[Loader]):
    """Those of one program, made where one of them is asked for; before that `reads` says which files they read."""

    def __init__(self, reads: tuple[Reads, ...], make: Callable[[], Sequence[Loader]]) -> None:
        self.reads = reads
        self._make = make
        self._made: Sequence[Loader] | None = None

    def __len__(self) -> int:
        return len(self.reads)

    def __getitem__(self, at):  # type: ignore[no-untyped-def]  # one, or several by a slice
        if self._made is None:
            self._made = self._make()
        return self._made[at]


class Program(NamedTuple):
    """A program that loads adapters, in the `version` that its rules were taken from.

    `ran` is the day, as "2026-11-26", of the last run of its code on the files of its rules; of a program that was only
    read it is the day of that. `distributions` gives the versions of Python packages that the rules are of, by name.

    The first of the `loaders` counts that is of a file's family and finds a mark in it. `schemes` gives by family the
    naming scheme whose files it loads best, with "" for every other family, and for files of no known one.
    `uniform` says that it takes one rank and one scale for those of all modules, and `sets_multiplier` that its user
    gives an adapter any multiplier.
    """

    name: str
    title: str
    version: str
    loaders: Sequence[Loader]
    schemes: Mapping[str, str]
    uniform: bool = False
    sets_multiplier: bool = True
    ran: str = ""
    distributions: Mapping[str, str] = MappingProxyType({})

    @property
    def reads(self) -> Sequence[Reads | Loader]:
        """Which files each of the loaders reads."""
        return self.loaders.reads if isinstance(self.loaders, Loaders) else self.loaders
