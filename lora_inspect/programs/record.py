"""The record of a program that loads adapters: names, kinds, scales and limits."""

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
    """A rule for contributions that is asked once for each kind.

    Contributions of a kind have the same algorithm, shapes, numbers, name without numbers, and the same tensors next to
    them. The rule does not look at the file, so its answer holds for the kind in every file and is cached. An answer in
    words may name one of the contributions.
    """

    def __init__(self, rule: Callable[[Given], _Answer]) -> None:
        self._rule = rule
        self.__doc__ = rule.__doc__

    def __call__(self, given: Given) -> _Answer:
        """Return the answer for the kind of this contribution."""
        return self._rule(given)


class OfKindInFile(OfKind[_Answer]):
    """A rule as `OfKind` that looks at one file; its answers hold only for that file."""


class ScaleOfFile(NamedTuple):
    """A maker of a file's scale rule, if a module's scale depends on other modules."""

    make: "Callable[[Adapter], ScaleRule]"


@OfKind
def alpha_over_rank(given: Given) -> float | None:
    """Return alpha/rank from the file, or 1 without alpha, as nearly all programs do.

    Contributions without a rank, or without an alpha to divide, are applied as stored. LoKr with whole factors is one
    of them, although its trainer may have divided alpha by something else.
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
    """Return the scale that the file means, from any source.

    It is the rule of a program that reads all of them.
    """
    return given.contribution.scale


@OfKind
def one(given: Given) -> float | None:
    """Return 1: the factors as stored, without alpha."""
    return 1.0


# What a rule asks of a whole file.
FileTest = Callable[["Adapter"], bool]


class LoadFailure(NamedTuple):
    """FAILS, with the program's message `says` about one contribution."""

    says: str


class Strangers(NamedTuple):
    """A program's reaction to tensors that it does not use.

    `does` is SILENT, WARNS or FAILS, and `says` its message. A program with `most` refuses a file with more such
    tensors, for the reason `beyond`.
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
    """A program's treatment of modules with certain names.

    A rule covers modules of the `families` with one of the `prefixes`, a path in one of the family's `layouts`, and
    factors in one of the `dialects` of their algorithm. An empty field matches everything, but spellings in ODD must be
    named. `alpha` requires modules with an alpha tensor (True) or without one (False). `paths` lists the covered paths,
    with `{i}` for numbers; empty covers all. `where` requires a property of the file, such as a key by which the
    program recognises it. The first matching rule counts; without one the treatment is unknown.

    `kinds` gives the treatment by algorithm: COMPUTES, LEAVES, MISREADS or FAILS. An absent algorithm or an empty word
    is unknown, and "" covers all others. Without any kind the program does not find these modules, and their tensors
    are strangers to it.

    `lacks` are paths of a layout that the program does not find, with `{i}` for numbers. `finds` decides for a file
    which modules it finds, if this depends on more than their names. `unfound` is its reaction to the tensors of
    modules that it does not find, None for its reaction to all strangers.

    `parts` gives other treatments of single roles by "algorithm.role", such as a Tucker core: {"lora.mid": LEAVES}.
    `exceptions` does so for single contributions with COMPUTES, if numbers, shapes or other tensors of the module
    decide.

    `scale` is the scale that the program applies. `magnitudes` gives the treatment of a magnitude by "suffix axis",
    such as ".dora_scale output": COMPUTES, LEAVES, BASE_NORM, OTHER_AXIS, UNTRAINED or FAILS. An absent one is unknown.

    `residual` says that the program subtracts the first values of factors from the base, if their initialisation put
    them there. `by` is the evidence of the rule, RUN or READ. `says` is the program's message if it FAILS.
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
    """Return the treatment of a magnitude by "suffix axis" and `norms`, "" if unknown.

    A magnitude over the norms of the base is right if the program divides by these, and wrong if not.
    """
    does = rule.magnitudes.get(spelled, "")
    return _OF_BASE.get(does, does) if norms == OF_BASE else does


_OF_BASE = {BASE_NORM: COMPUTES, COMPUTES: SUM_NORM}


class RulesByFamily:
    """Rules of several `families`, made for one family at a time to save time.

    `make` makes the rules of a family. Iteration gives the rules of all.
    """

    def __init__(self, families: tuple[str, ...], make: Callable[[str], Iterable[Rule]]) -> None:
        self.families = families
        self._make, self._made = make, dict[str, tuple[Rule, ...]]()

    def __iter__(self) -> Iterator[Rule]:
        return (rule for family in self.families for rule in self.of(family))

    def of(self, family: str) -> tuple[Rule, ...]:
        """Return the rules of one family; none for a family that is not in `families`."""
        if family not in self._made:
            self._made[family] = tuple(self._make(family)) if family in self.families else ()
        return self._made[family]


# What a program refuses a file for as a whole, in its own words where it has any; None for nothing.
Refusal = Callable[["Adapter"], str | None]


def nothing_refused(adapter: "Adapter") -> str | None:
    """Return None: the check of a program that refuses no file as a whole."""
    return None


class Loader(NamedTuple):
    """A program's loader for models of some `families`, of all if empty.

    A program may have several loaders for a family and choose by the file's keys. `marks` are parts of keys: a key must
    have one of them, or every key if `all_marked`. `^` before a mark means the beginning of a key, `$` behind it the
    end. A loader without marks reads every file.

    `strangers` is its reaction to tensors of modules that it does not find, `leaves` to tensors that rules LEAVE,
    `others` to tensors without a module, and `flags` to flags of RS-LoRA. None means the same as the one before.

    `embeddings` says that it takes token embeddings out of an adapter's file. `needs` gives the option that it needs to
    load the file. `never` gives the problem of a file that no conversion for it solves.

    `complete` are paths, with `{i}` for numbers; every block of a file must have a module at each. `unsure` gives the
    reason why the result for a whole file is unknown, in words before "is unknown". `ranks` are the ranks that a
    conversion for it writes, in order: the first one that is not below the file's, which zeros fill. With `by_leaf`, a
    config for it names layers by the ends of their paths. With `unit_scale`, it applies the factors as they are, so a
    conversion for a uniform program puts scales into them.
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
    ranks: tuple[int, ...] = ()
    by_leaf: bool = False
    unit_scale: bool = False

    def rules_for(self, family: str) -> list[Rule]:
        """Return the rules that may cover modules of a family, "" for an unknown one."""
        rules = self.rules.of(family) if isinstance(self.rules, RulesByFamily) else self.rules
        return [rule for rule in rules if not rule.families or family in rule.families]

    def rules_changed(self, family: str, **fields: object) -> list[Rule]:
        """Return the same rules with other values of some fields."""
        return [rule._replace(**fields) for rule in self.rules_for(family)]  # type: ignore[arg-type]


class Reads(NamedTuple):
    """The files that a loader reads: the loader's fields with these names."""

    families: tuple[str, ...]
    marks: tuple[str, ...]
    all_marked: bool


class Loaders(Sequence[Loader]):
    """The loaders of a program, made on first use; `reads` has their files."""

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
    """A program that loads adapters, in the `version` that its rules describe.

    `ran` is the day, such as "2026-11-26", of the last run of its code on the files of its rules. If the program was
    only read, it is the day of reading. `distributions` gives the versions of Python packages that the rules describe,
    by name.

    The first of the `loaders` with a file's family and a mark in the file counts. `schemes` gives by family the naming
    scheme that the program loads best; "" stands for every other family and for files of no known one.

    `uniform` says that it takes one rank and one scale for all modules. `sets_multiplier` says that its user can give
    an adapter any multiplier.
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
        """Return the files that each of the loaders reads."""
        return self.loaders.reads if isinstance(self.loaders, Loaders) else self.loaders
