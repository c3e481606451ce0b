"""The verdict of a program on an adapter: the same meaning, or the error's size.

Files that no rule of any program distinguishes are judged once. A folder holds many: the steps of one training, and
files of one trainer with the same settings. The summary groups programs with the same verdict, by their titles.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, repeat
from os.path import basename
from types import MappingProxyType
from typing import Any

from lora_inspect.architectures.detection import Detection
from lora_inspect.caching import Remembered
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.file_types import GGUF_KEYS
from lora_inspect.programs.adapter_view import View, has_loader_for
from lora_inspect.programs.evaluate import Left, Reception, Taken, TakenAlike, receive, without_loader
from lora_inspect.programs.record import (
    BASE_NORM,
    LEAVES,
    MISREADS,
    OTHER_AXIS,
    SILENT,
    SUM_NORM,
    UNTRAINED,
    Loader,
    Program,
    Reads,
)
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.keys.groups import group_equal
from lora_inspect.reading.model.contribution import Contribution
from lora_inspect.reading.peft.peft_config import EMBEDDED_KEY
from lora_inspect.sentences import listed

SAME, STRENGTH, LOST, WRONG = "same meaning", "wrong strength", "DoRA lost", "DoRA wrong"
OTHER = "wrong change"
PARTLY, NOTHING, REFUSED = "partly loaded", "nothing loaded", "refused"
# The program has models of the family, or may have, but nobody tried this kind of file; or it has no such models.
UNTESTED, NO_MODELS = "not tested", "has no such models"
UNJUDGED = (UNTESTED, NO_MODELS)
VERDICTS = (SAME, STRENGTH, LOST, WRONG, OTHER, PARTLY, NOTHING, REFUSED, *UNJUDGED)
# What a program divides magnitudes by that are over other norms.
_NORMS = {
    BASE_NORM: "the base's norms",
    OTHER_AXIS: "norms along the other axis",
    SUM_NORM: "the norms of the changed weight, but they are over the base's",
}
# The effect of another change than the trained one, as the end of a sentence.
_DIFFERS = "so the result will differ"
# Scales that are read from half-precision alphas are as near as that to the true ones.
_ALIKE = 2.0**-10


class Verdict(NamedTuple):
    """The effect of a file in a program.

    `factor` is the applied scale over the right one, the commonest of all modules, or None if nothing is applied or
    known. `factors` counts the modules by it. `silent` says that the program prints no message. `says` is one sentence
    about the effect, `by` its evidence (RUN or READ), and `fix` a command that fixes it.

    `error` is the relative distance of the applied changes from the trained ones, if a base was there to measure it.
    `reception` is the result behind the verdict, None if it depends on the model of the file.
    """

    program: Program
    verdict: str
    factor: float | None = None
    factors: Mapping[float, int] = MappingProxyType({})
    silent: bool = False
    says: str = ""
    by: str = ""
    fix: str | None = None
    error: float | None = None
    reception: Reception | None = None

    @property
    def ignored(self) -> tuple[str, ...]:
        """Return the keys that the program ignores."""
        return self.reception.ignored() if self.reception else ()

    @property
    def taken(self) -> tuple[Taken, ...]:
        """Return the changes that the program applies."""
        return tuple(self.reception.each_taken()) if self.reception else ()


def judge(adapter: Adapter, families: Sequence[Detection], program: Program) -> Verdict:
    """Return the verdict on an adapter of one of the `families`.

    It is UNTESTED if the families disagree. The sentence then names the families. A family without models in the
    program does not count if another has some: nobody can apply the file to such a model there.
    """
    return judge_view(View(adapter), families, program)


def judge_view(view: View, families: Sequence[Detection], program: Program) -> Verdict:
    """Return the verdict, as from `judge`, on an adapter that several programs look at."""
    verdict = _agreed(view, families, program)
    return verdict._replace(says=_with_families(verdict, families))


def loads_as_is(adapter: Adapter, families: Sequence[Detection], program: Program) -> bool:
    """Return True if the program is known to apply the adapter's meaning.

    The adapter is of one of the `families`.
    """
    return judge(adapter, families, program).verdict == SAME


def judge_each(adapter: Adapter, families: Sequence[Detection], programs: Iterable[Program]) -> Iterator[Verdict]:
    """Yield the verdicts of several programs, each as from `judge`."""
    view = View(adapter)
    for program in programs:
        yield judge_view(view, families, program)


def _agreed(view: View, families: Sequence[Detection], program: Program) -> Verdict:
    if not families:
        return _judged(program, receive(view, None, program))
    found = [_judged(program, receive(view, family.architecture, program)) for family in families]
    return _joined(program, families, found)


def _joined(program: Program, families: Sequence[Detection], found: Sequence[Verdict]) -> Verdict:
    """Return the verdict on a file of one of the families, from one `found` for each."""
    counting = [(one, family) for one, family in zip(found, families, strict=True) if one.verdict != NO_MODELS]
    if not counting:
        if len(found) == 1:
            return found[0]
        titles = listed(list(dict.fromkeys(family.architecture.title for family in families)), "or")
        return Verdict(program, NO_MODELS, says=f"no models of {titles} are known there")
    if len({(one.verdict, one.factor) for one, _ in counting}) == 1:
        return counting[0][0]
    differ = listed([f"{one.verdict} as {family}" for one, family in counting], "or")
    return Verdict(program, UNTESTED, says=f"it depends on the model of the file: {differ}")


def judge_unread(families: Sequence[Detection], program: Program) -> Verdict:
    """Return the verdict of a program without a loader for the file, as from `judge`."""
    found = []
    for architecture in [family.architecture for family in families] if families else [None]:
        has_models, why = without_loader(program, architecture)
        found.append(Verdict(program, UNTESTED if has_models else NO_MODELS, says=why))
    return _joined(program, families, found) if families else found[0]


def _with_families(verdict: Verdict, families: Sequence[Detection]) -> str:
    """Return the sentence of a verdict, with the candidate families if several."""
    if len(families) < 2 or verdict.verdict in UNJUDGED:
        return verdict.says
    absent = [str(family) for family in families if not without_loader(verdict.program, family.architecture)[0]]
    whose = listed([str(family) for family in families], "or")
    effect = f"no models of {listed(absent, 'or')} are known there" if absent else "the verdict is the same for each"
    return "; ".join(filter(None, (verdict.says, f"the file may be of {whose}, and {effect}")))


def _judged(program: Program, reception: Reception) -> Verdict:
    verdict, says, told = _verdict(reception)
    factors = _factors(reception.taken) if verdict not in (REFUSED, *UNJUDGED) else {}
    is_silent = verdict in (STRENGTH, WRONG, OTHER) or (bool(told) and all(left.does == SILENT for left in told))
    return Verdict(
        program,
        verdict,
        factor=next(iter(factors), None),
        factors=factors,
        silent=is_silent and verdict not in (SAME, REFUSED, *UNJUDGED),
        says=says,
        by="" if verdict in UNJUDGED else reception.by,
        reception=reception,
    )


def _verdict(reception: Reception) -> tuple[str, str, Sequence[Left]]:
    """Return the verdict, a sentence, and the ignored tensors that it reports."""
    if reception.refusal:
        return REFUSED, reception.refusal, ()
    if reception.unknown:
        return (UNTESTED if reception.has_models else NO_MODELS), reception.unknown, ()
    lost, taken = reception.lost, reception.taken
    if lost and not taken:
        return NOTHING, f"it loads nothing, so the adapter has no effect; {_how_noticed(lost)}", lost
    if lost:
        left = sum(len(one.members) for one in lost)
        count = left + sum(len(one.members) for one in taken)
        fact = f"it leaves out {left} of {count} changes, so their effect is missing"
        return PARTLY, f"{fact}; {_how_noticed(lost)}", lost
    # What a scale of 0 switches off has no scale that another one could be a multiple of.
    if wrong := [one for one in taken if one.does == MISREADS or (one.scale and one.contribution.scale == 0.0)]:
        return OTHER, f"it makes another change of {_what(wrong[0].contribution)}, {_DIFFERS}", ()
    bearing = [one for one in taken if one.magnitude]
    if norm := next((_NORMS[one.magnitude] for one in bearing if one.magnitude in _NORMS), None):
        return WRONG, f"it divides the magnitudes by {norm}, {_DIFFERS}", ()
    if any(one.magnitude == UNTRAINED for one in bearing):
        return WRONG, f"it puts the norms of the base in the place of the magnitudes, {_DIFFERS}", ()
    if any(one.magnitude == LEAVES for one in bearing):
        # Where no change is lost, magnitudes are all that is left of modules.
        told = reception.left
        return LOST, f"it applies plain LoRA without the magnitudes, {_DIFFERS}; {_how_noticed(told)}", told
    factors = _factors(taken)
    if not all(map(_is_one, factors)):
        return STRENGTH, f"it applies {_strengths(factors)} the right scale, so {_effect_of(factors)}", ()
    return SAME, reception.needs, ()


def _what(contribution: Contribution) -> str:
    """Return the title of a contribution's algorithm, with values left in the base."""
    title = contribution.algorithm.title
    return (
        f"{title}, as it leaves its first values ({contribution.residual}) in the base"
        if contribution.residual
        else title
    )


def _how_noticed(lefts: Sequence[Left]) -> str:
    """Return the program's message about the tensors that it ignores."""
    says = next((left.says for left in lefts if left.says), "")
    if all(left.does == SILENT for left in lefts):
        return "it prints nothing"
    return f"it prints: {says}" if says else "it prints a message"


def _factors(taken: Sequence[TakenAlike]) -> dict[float, int]:
    """Return the applied over the right scales with their counts, the commonest first."""
    counts: Counter[float] = Counter()
    for one in taken:
        true = one.contribution.scale
        if one.scale is not None and true:
            counts[_rounded(one.scale / true)] += len(one.members)
    return dict(counts.most_common())


def _rounded(factor: float) -> float:
    return 1.0 if _is_one(factor) else float(f"{factor:.4g}")


def _is_one(factor: float) -> bool:
    return math.isclose(factor, 1.0, rel_tol=_ALIKE)


def _strengths(factors: Mapping[float, int]) -> str:
    if len(factors) == 1:
        return f"{next(iter(factors)):g} times"
    return listed([f"{factor:g} times ({count})" for factor, count in islice(factors.items(), 4)])


def _effect_of(factors: Mapping[float, int]) -> str:
    """Describe the effect of wrong scales, without a size: the sentence has it."""
    if not any(factors):
        return "the adapter has no effect"
    if all(0 <= factor < 1 for factor in factors):
        return "the effect is too weak"
    if all(factor > 1 for factor in factors):
        return "the effect is too strong"
    return "the modules are not in their trained proportion" if len(factors) > 1 else "the effect is reversed"


def needs_fix(verdict: Verdict) -> bool:
    """Return True if the program certainly loads the file wrongly."""
    return verdict.verdict not in (SAME, *UNJUDGED)


# How the keys begin that rules look at in the metadata; they are shown no others.
_SEEN_METADATA = (EMBEDDED_KEY, *GGUF_KEYS)
# A tensor of one number that some programs take for a module's scale: its value counts too.
_SCALE = ".scale"
# So many are remembered, each with the names of its tensors.
_MOST = 32

_remembered: Remembered[Any, tuple[Verdict, ...]] = Remembered(_MOST)


def verdicts_on(adapter: Adapter, families: Sequence[Detection], programs: Iterable[Program]) -> tuple[Verdict, ...]:
    """Return the verdicts of all programs with models of the families.

    A program without a loader for such files is left out. The verdicts are those of `judge_each`, but do not list
    single modules, and their sentences do not name the families.
    """
    programs = tuple(programs)
    adapter = _without_descriptions(adapter)
    if any(map(str.endswith, adapter.checkpoint.tensors, repeat(_SCALE))):
        return _judge_all(adapter, families, programs)
    key = (tuple(map(id, programs)), *_appearance(adapter, families))
    return _remembered.of(key, lambda: _judge_all(adapter, families, programs))


def _judge_all(adapter: Adapter, families: Sequence[Detection], programs: Iterable[Program]) -> tuple[Verdict, ...]:
    names = [family.architecture.name for family in families] or [""]
    view = View(adapter)
    asked = [one for one in programs if any(has_loader_for(one, name, view.keys) for name in names)]
    return tuple(_agreed(view, families, one)._replace(reception=None) for one in asked)


def _without_descriptions(adapter: Adapter) -> Adapter:
    """Return the adapter without metadata for people: title, tags, times, hashes."""
    checkpoint = adapter.checkpoint
    metadata = {key: value for key, value in checkpoint.metadata.items() if key.startswith(_SEEN_METADATA)}
    checkpoint = checkpoint._replace(metadata=metadata, file_metadata={})
    return adapter._replace(checkpoint=checkpoint, evidence=(), problems=())


def _appearance(adapter: Adapter, families: Sequence[Detection]) -> tuple[Any, ...]:
    """Return all facts that a rule can look at."""
    checkpoint = adapter.checkpoint
    return (
        tuple((family.architecture.name, family.layout.name, family.size) for family in families),
        tuple(checkpoint.tensors),
        tuple([info.shape for info in checkpoint.tensors.values()]),
        *_of_changes(adapter),
        adapter.flags,
        adapter.unclaimed,
        adapter.embeddings,
        adapter.settings,
        tuple(checkpoint.metadata.items()),
        # Of a config the file that it belongs to counts as well.
        (repr(checkpoint.config), *map(basename, checkpoint.files)) if checkpoint.config is not None else None,
    )


def _of_changes(adapter: Adapter) -> tuple[Any, ...]:
    """Return the names of modules, the kind of each, and the facts of each kind."""
    modules = group_equal(adapter.modules)
    return (
        tuple([module.name for module in modules.values()]),
        tuple([module.path for module in modules.values()]),
        tuple(modules.likeness.numbers),
        tuple([(first.alpha is not None, *map(_of_change, first.contributions)) for first in modules.firsts]),
    )


def _of_change(one: Contribution) -> tuple[Any, ...]:
    magnitude = one.magnitude
    spelled = magnitude and (magnitude.spelling.suffix, magnitude.spelling.norms, magnitude.axis)
    own = (one.algorithm.name, one.rank, one.alpha, one.scale, one.rslora, one.rows, one.residual)
    return own, one.on_residual, spelled


# Verdicts whose words say how a program differs from others of the same verdict.
_IN_ITS_WORDS = (SAME, WRONG, OTHER, PARTLY)
# Where a program has nothing of the file.
NOT_THERE = (NOTHING, REFUSED)
# The beginnings of titles: those that people ask about most come first.
MOST_ASKED = "ComfyUI"
_ASKED = (MOST_ASKED, "AUTOMATIC1111", "Forge", "diffusers", "PEFT", "mlx-lm", "vLLM")
# What reads files to train on from them, which a file is not made for.
_TRAINING = ("ai-toolkit", "musubi-networks", "onetrainer")
# InvokeAI takes no more, and what needs more is better converted.
_MOST_MULTIPLIER = 10.0


class VerdictGroup(NamedTuple):
    """Programs with the same result for a file: verdict, sentence and applied factors.

    `factors` are those of the modules, the commonest first, and empty if all are 1. `titles` name the programs, with
    the version if another version has another result. `silent` says that one of them prints nothing about it.
    `multiplier` is the number that a user sets in each of them for the right scale, or None if no number gives it.
    """

    verdict: str
    says: str
    factors: tuple[float, ...]
    titles: tuple[str, ...]
    silent: bool
    multiplier: float | None = None


def concerned(verdicts: Sequence[Verdict], families: Sequence[Detection]) -> list[Verdict]:
    """Return the verdicts of programs that the file may be meant for, by popularity.

    These know one of the candidate families. A program for models of any kind counts if it loads something of the file,
    or if there is no other. One that trains on from a file does not count.
    """
    verdicts = [one for one in verdicts if one.program.name not in _TRAINING]
    names = {family.architecture.name for family in families}
    counts = [
        any(
            not names.isdisjoint(loader.families)
            or (_is_general(loader) and one.verdict not in (*NOT_THERE, *UNJUDGED))
            for loader in one.program.reads
        )
        for one in verdicts
    ]
    general = [any(map(_is_general, one.program.reads)) for one in verdicts]
    meant = [one for one, is_meant in zip(verdicts, counts if any(counts) else general, strict=True) if is_meant]
    return sorted(meant, key=lambda one: popularity(one.program.title))


def _is_general(loader: Reads | Loader) -> bool:
    """Return True if the loader reads files of no known family."""
    return not loader.families or "" in loader.families


def popularity(title: str) -> int:
    """Return the place of a program among the most asked-for ones, all others last."""
    return next((at for at, name in enumerate(_ASKED) if title.startswith(name)), len(_ASKED))


def decisive(verdicts: Sequence[Verdict]) -> Verdict | None:
    """Return the verdict of the most asked-for program, which decides on a fix.

    If that one is unknown, it is the first known verdict, but None if the file is right in any other program.
    """
    known = [one for one in verdicts if one.verdict not in UNJUDGED]
    if not known or (known[0].program.title != MOST_ASKED and any(one.verdict == SAME for one in known)):
        return None
    return known[0]


def is_lost(meant: Sequence[Verdict], families: Sequence[Detection]) -> bool:
    """Return True if the decisive program knows the model and loads nothing.

    `meant` are the verdicts that `concerned` returns.
    """
    one = decisive(meant)
    if one is None or one.verdict not in NOT_THERE:
        return False
    names = {family.architecture.name for family in families}
    return any(not names.isdisjoint(loader.families) for loader in one.program.reads)


def fixing_multiplier(verdict: Verdict) -> float | None:
    """Return the multiplier to set instead of 1.

    It is None if no number makes all changes right. It multiplies the scales, so every change of the file must be
    proportional to its scale, with one factor for all.
    """
    if verdict.verdict != STRENGTH or len(verdict.factors) != 1 or not verdict.program.sets_multiplier:
        return None
    [(factor, modules)] = verdict.factors.items()
    multiplier = float(f"{1 / factor:.4g}") if factor > 0 else 0.0
    taken = verdict.taken
    is_linear = modules == len(taken) and all(
        one.contribution.algorithm.name == "lora" and not one.magnitude for one in taken
    )
    return multiplier if is_linear and 0 < multiplier <= _MOST_MULTIPLIER else None


def group_verdicts(verdicts: Sequence[Verdict]) -> list[VerdictGroup]:
    """Group the programs by their results for the file, in the order of the verdicts."""
    groups: dict[tuple[str, str, tuple[float, ...]], list[Verdict]] = {}
    for one in verdicts:
        # What a program says where it loads nothing is its own; what becomes of what it loads is alike in many.
        says = one.says if one.verdict in _IN_ITS_WORDS else ""
        factors = tuple(one.factors)
        is_right = one.verdict in (SAME, OTHER) or factors == (1.0,)
        groups.setdefault((one.verdict, says, () if is_right else factors), []).append(one)
    known = [one.program for one in verdicts]
    return [
        VerdictGroup(
            verdict,
            says,
            factors,
            tuple(distinct_titles([one.program for one in theirs], known)),
            any(one.silent for one in theirs),
            _of_all([fixing_multiplier(one) for one in theirs]),
        )
        for (verdict, says, factors), theirs in groups.items()
    ]


def _of_all(multipliers: Sequence[float | None]) -> float | None:
    """Return the multiplier if it is the same for all, else None."""
    return multipliers[0] if len(set(multipliers)) == 1 else None


def distinct_titles(programs: Sequence[Program], known: Iterable[Program]) -> list[str]:
    """Return the titles of programs, with versions where other `known` ones of a title are not among them."""
    all_counts = Counter(program.title for program in known)
    counts = Counter(program.title for program in programs)
    titles = [
        program.title if counts[program.title] == all_counts[program.title] else f"{program.title} {program.version}"
        for program in programs
    ]
    return list(dict.fromkeys(titles))
