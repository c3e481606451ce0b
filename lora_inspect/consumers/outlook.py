"""What becomes of a file in all programs together: those that treat it alike, by their titles."""

from collections import Counter
from collections.abc import Iterable, Sequence

from lora_inspect.architectures.detection import Detection
from lora_inspect.consumers.record import Consumer
from lora_inspect.consumers.verdict import NOTHING, OTHER, PARTLY, REFUSED, SAME, UNKNOWN, WRONG, Verdict
from lora_inspect.records import NamedTuple

# Verdicts whose words say how a program differs from others of the same verdict.
_IN_ITS_WORDS = (SAME, WRONG, OTHER, PARTLY)


class Alike(NamedTuple):
    """Programs that make the same of a file: the verdict, a sentence on it, and what they apply over what is right.

    `factors` are those of the modules, the commonest first, and none where all are 1. `titles` name the programs, with
    the version where another version does something else. `silent` says that one of them tells nothing of it.
    """

    verdict: str
    says: str
    factors: tuple[float, ...]
    titles: tuple[str, ...]
    silent: bool


def concerned(verdicts: Sequence[Verdict], families: Sequence[Detection]) -> list[Verdict]:
    """The verdicts of the programs that such a file may be meant for: those that know a family that it may be of.

    A program for models of any kind counts where it loads something of the file, or where there is no other.
    """
    names = {family.architecture.name for family in families}
    counts = [
        any(
            not names.isdisjoint(loader.families)
            or (not loader.families and one.verdict not in (NOTHING, REFUSED, UNKNOWN))
            for loader in one.consumer.loaders
        )
        for one in verdicts
    ]
    general = [any(not loader.families for loader in one.consumer.loaders) for one in verdicts]
    return [one for one, is_meant in zip(verdicts, counts if any(counts) else general, strict=True) if is_meant]


def alike(verdicts: Sequence[Verdict]) -> list[Alike]:
    """The programs by what they make of the file, in the order of the verdicts given."""
    groups: dict[tuple[str, str, tuple[float, ...]], list[Verdict]] = {}
    for one in verdicts:
        # What a program says where it loads nothing is its own; what becomes of what it loads is alike in many.
        says = one.says if one.verdict in _IN_ITS_WORDS else ""
        factors = tuple(factor for factor, _ in one.factors)
        is_right = one.verdict in (SAME, OTHER) or factors == (1.0,)
        groups.setdefault((one.verdict, says, () if is_right else factors), []).append(one)
    versions = Counter(one.consumer.title for one in verdicts)
    return [
        Alike(
            verdict,
            says,
            factors,
            tuple(_named([one.consumer for one in theirs], versions)),
            any(one.silent for one in theirs),
        )
        for (verdict, says, factors), theirs in groups.items()
    ]


def _named(programs: Sequence[Consumer], versions: Counter[str]) -> Iterable[str]:
    """The titles, each once where all versions of the program are there, else with the version."""
    counts = Counter(program.title for program in programs)
    return dict.fromkeys(
        one.title if counts[one.title] == versions[one.title] else f"{one.title} {one.version}" for one in programs
    )
