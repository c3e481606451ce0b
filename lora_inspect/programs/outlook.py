"""What becomes of a file in all programs together: those that treat it alike, by their titles."""

from collections import Counter
from collections.abc import Iterable, Sequence

from lora_inspect.architectures.detection import Detection
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.programs.record import Consumer
from lora_inspect.programs.verdict import NOTHING, OTHER, PARTLY, REFUSED, SAME, STRENGTH, UNKNOWN, WRONG, Verdict

# Verdicts whose words say how a program differs from others of the same verdict.
_IN_ITS_WORDS = (SAME, WRONG, OTHER, PARTLY)
# Where a program has nothing of the file.
NOT_THERE = (NOTHING, REFUSED)
# The beginnings of titles: those that people ask about most come first.
MOST_ASKED = "ComfyUI"
_ASKED = (MOST_ASKED, "AUTOMATIC1111", "Forge", "diffusers", "PEFT", "mlx-lm", "vLLM")
# What reads files to train on from them, which a file is not made for.
_TRAINING = ("musubi-networks",)
# InvokeAI takes no more, and what needs more is better converted.
_MOST_STRENGTH = 10.0


class Alike(NamedTuple):
    """Programs that make the same of a file: the verdict, a sentence on it, and what they apply over what is right.

    `factors` are those of the modules, the commonest first, and none where all are 1. `titles` name the programs, with
    the version where another version does something else. `silent` says that one of them tells nothing of it.
    `strength` is what the user sets in each of them so that they apply what is right; None where no number does that.
    """

    verdict: str
    says: str
    factors: tuple[float, ...]
    titles: tuple[str, ...]
    silent: bool
    strength: float | None = None


def concerned(verdicts: Sequence[Verdict], families: Sequence[Detection]) -> list[Verdict]:
    """The verdicts of the programs that such a file may be meant for: those that know a family that it may be of.

    A program for models of any kind counts where it loads something of the file, or where there is no other; one that
    trains on from it does not. Those that people ask about most come first.
    """
    verdicts = [one for one in verdicts if one.consumer.name not in _TRAINING]
    names = {family.architecture.name for family in families}
    counts = [
        any(
            not names.isdisjoint(loader.families) or (not loader.families and one.verdict not in (*NOT_THERE, UNKNOWN))
            for loader in one.consumer.reads
        )
        for one in verdicts
    ]
    general = [any(not loader.families for loader in one.consumer.reads) for one in verdicts]
    meant = [one for one, is_meant in zip(verdicts, counts if any(counts) else general, strict=True) if is_meant]
    return sorted(meant, key=lambda one: asked(one.consumer.title))


def asked(title: str) -> int:
    """The place of a program among those that people ask about, all others behind them."""
    return next((at for at, name in enumerate(_ASKED) if title.startswith(name)), len(_ASKED))


def decisive(verdicts: Sequence[Verdict]) -> Verdict | None:
    """The verdict that says whether something has to be done: that of the program that people ask about most.

    Where it is not known in that one it is the first of which it is, if the file is right in no other; else None.
    """
    known = [one for one in verdicts if one.verdict != UNKNOWN]
    if not known or (known[0].consumer.title != MOST_ASKED and any(one.verdict == SAME for one in known)):
        return None
    return known[0]


def mending_strength(verdict: Verdict) -> float | None:
    """What a user sets in the program in the place of 1; None where there is no number that makes all changes right.

    A strength multiplies the scales, so it takes a file of changes that are all in proportion to theirs, by one factor.
    """
    if verdict.verdict != STRENGTH or len(verdict.factors) != 1 or not verdict.consumer.sets_strength:
        return None
    [(factor, modules)] = verdict.factors
    strength = float(f"{1 / factor:.4g}") if factor > 0 else 0.0
    taken = verdict.taken
    is_linear = modules == len(taken) and all(
        one.contribution.algorithm.name == "lora" and not one.magnitude for one in taken
    )
    return strength if is_linear and 0 < strength <= _MOST_STRENGTH else None


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
            _of_all([mending_strength(one) for one in theirs]),
        )
        for (verdict, says, factors), theirs in groups.items()
    ]


def _of_all(strengths: Sequence[float | None]) -> float | None:
    """The one strength of all of them."""
    return strengths[0] if len(set(strengths)) == 1 else None


def _named(programs: Sequence[Consumer], versions: Counter[str]) -> Iterable[str]:
    """The titles, each once where all versions of the program are there, else with the version."""
    counts = Counter(program.title for program in programs)
    return dict.fromkeys(
        one.title if counts[one.title] == versions[one.title] else f"{one.title} {one.version}" for one in programs
    )
