"""From what a program makes of an adapter to one verdict: the same meaning, or what is wrong and by how much."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from lora_inspect.architectures.detection import Detection
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.programs.adapter_view import View
from lora_inspect.programs.evaluate import receive
from lora_inspect.programs.reception import Left, Reception, Taken, TakenAlike
from lora_inspect.programs.record import BASE_NORM, LEAVES, MISREADS, OTHER_AXIS, SILENT, SUM_NORM, Consumer
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.model.contribution import Contribution
from lora_inspect.sentences import listed

SAME, STRENGTH, LOST, WRONG = "same meaning", "wrong strength", "DoRA lost", "DoRA wrong"
OTHER = "wrong change"
PARTLY, NOTHING, REFUSED, UNKNOWN = "partly loaded", "nothing loaded", "refused", "unknown"
VERDICTS = (SAME, STRENGTH, LOST, WRONG, OTHER, PARTLY, NOTHING, REFUSED, UNKNOWN)
# What a program divides magnitudes by that are over other norms.
_NORMS = {
    BASE_NORM: "the base's norms",
    OTHER_AXIS: "norms along the other axis",
    SUM_NORM: "the norms of the changed weight, and they are over the base's",
}
# Scales that are read from half-precision alphas are as near as that to the true ones.
_ALIKE = 2.0**-10


class Verdict(NamedTuple):
    """What a program will make of a file.

    `factor` is what it applies over what is right, the commonest among the modules, None where nothing is applied or
    known; `factors` counts the modules by it. `silent` says that the program gives no message, `says` is one sentence
    on what happens, `by` how it is known: RUN or READ, and `fix` a command that mends it. `error` is how far the
    changes that it applies are from what was trained, relatively, where a base has told that. `reception` is what the
    verdict is on, None where it depends on which model the file is of.
    """

    consumer: Consumer
    verdict: str
    factor: float | None = None
    factors: tuple[tuple[float, int], ...] = ()
    silent: bool = False
    says: str = ""
    by: str = ""
    fix: str | None = None
    error: float | None = None
    reception: Reception | None = None

    @property
    def ignored(self) -> tuple[str, ...]:
        """The keys that it passes over."""
        return self.reception.ignored() if self.reception else ()

    @property
    def taken(self) -> tuple[Taken, ...]:
        """The changes that it applies."""
        return tuple(self.reception.each_taken()) if self.reception else ()


def judge(adapter: Adapter, families: Sequence[Detection], consumer: Consumer) -> Verdict:
    """The verdict on an adapter that may be of any of the `families`; unknown where these differ in it."""
    return next(judge_each(adapter, families, [consumer]))


def judge_each(adapter: Adapter, families: Sequence[Detection], consumers: Iterable[Consumer]) -> Iterator[Verdict]:
    """The verdicts of several programs, each as `judge` has it."""
    view = View(adapter)
    for consumer in consumers:
        yield _agreed(view, families, consumer)


def _agreed(view: View, families: Sequence[Detection], consumer: Consumer) -> Verdict:
    if not families:
        return _judged(consumer, receive(view, None, consumer))
    found = [_judged(consumer, receive(view, family.architecture, consumer)) for family in families]
    if len({(one.verdict, one.factor) for one in found}) == 1:
        return found[0]
    differ = listed([f"{one.verdict} as {family}" for one, family in zip(found, families, strict=True)], "or")
    return Verdict(consumer, UNKNOWN, says=f"it depends on which model the file is of: {differ}")


def _judged(consumer: Consumer, reception: Reception) -> Verdict:
    verdict, says, told = _verdict(reception)
    factors = _factors(reception.taken) if verdict not in (REFUSED, UNKNOWN) else ()
    is_silent = verdict in (STRENGTH, WRONG, OTHER) or (bool(told) and all(left.does == SILENT for left in told))
    return Verdict(
        consumer,
        verdict,
        factor=factors[0][0] if factors else None,
        factors=factors,
        silent=is_silent and verdict not in (SAME, REFUSED, UNKNOWN),
        says=says,
        by="" if verdict == UNKNOWN else reception.by,
        reception=reception,
    )


def _verdict(reception: Reception) -> tuple[str, str, Sequence[Left]]:
    """The verdict, a sentence, and what the program tells of it."""
    if reception.refusal:
        return REFUSED, reception.refusal, ()
    if reception.unknown:
        return UNKNOWN, reception.unknown, ()
    lost, taken = reception.lost, reception.taken
    if lost and not taken:
        return NOTHING, _told(lost), lost
    if lost:
        left = sum(len(one.members) for one in lost)
        count = left + sum(len(one.members) for one in taken)
        return PARTLY, f"{left} of {count} changes are not applied, {_told(lost)}", lost
    # What a scale of 0 switches off has no strength that another one could be a multiple of.
    if wrong := [one for one in taken if one.does == MISREADS or (one.scale and one.contribution.scale == 0.0)]:
        return OTHER, f"it makes another change of {_what(wrong[0].contribution)}", ()
    bearing = [one for one in taken if one.magnitude]
    if norm := next((_NORMS[one.magnitude] for one in bearing if one.magnitude in _NORMS), None):
        return WRONG, f"it divides the magnitudes by {norm}", ()
    if any(one.magnitude == LEAVES for one in bearing):
        # Where no change is lost, magnitudes are all that is left of modules.
        told = reception.left
        return LOST, f"it applies plain LoRA, without the magnitudes, {_told(told)}", told
    factors = _factors(taken)
    if any(not _is_one(factor) for factor, _ in factors):
        return STRENGTH, f"it applies {_strengths(factors)} what is right", ()
    return SAME, reception.needs, ()


def _what(contribution: Contribution) -> str:
    """What a contribution is, as far as programs make something else of it."""
    title = contribution.algorithm.title
    return (
        f"{title}, whose first values ({contribution.residual}) it leaves in the base"
        if contribution.residual
        else title
    )


def _told(lefts: Sequence[Left]) -> str:
    """How the program passes over it: silently, or with a message."""
    says = next((left.says for left in lefts if left.says), "")
    if all(left.does == SILENT for left in lefts):
        return "silently"
    return f"with a message: {says}" if says else "with a message"


def _factors(taken: Sequence[TakenAlike]) -> tuple[tuple[float, int], ...]:
    """What is applied over what is right, with the number of changes, the commonest first."""
    counts: Counter[float] = Counter()
    for one in taken:
        true = one.contribution.scale
        if one.scale is not None and true:
            counts[_rounded(one.scale / true)] += len(one.members)
    return tuple(counts.most_common())


def _rounded(factor: float) -> float:
    return 1.0 if _is_one(factor) else float(f"{factor:.4g}")


def _is_one(factor: float) -> bool:
    return math.isclose(factor, 1.0, rel_tol=_ALIKE)


def _strengths(factors: Sequence[tuple[float, int]]) -> str:
    if len(factors) == 1:
        return f"{factors[0][0]:g} times"
    return listed([f"{factor:g} times ({count})" for factor, count in factors[:4]])


def needs_mending(verdict: Verdict) -> bool:
    """Whether the file is wrong there for certain."""
    return verdict.verdict not in (SAME, UNKNOWN)
