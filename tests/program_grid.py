"""What a program did to a model, in the words of `compat`: from the weights before, meant and found to a verdict.

`observe` runs the program and names what it sees; `differs` compares that with what the rules of `programs/known/` say.
The files and the meant weights come from `adapters`, which has formulas of its own.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from adapters import Weight
from torch import Tensor

from lora_inspect.programs.verdict import (
    LOST,
    NOTHING,
    OTHER,
    PARTLY,
    REFUSED,
    SAME,
    STRENGTH,
    UNTESTED,
    WRONG,
    Verdict,
)

# What float32 leaves of a weight that is computed in some other order, relative to the weights.
ROUNDING = 1e-5
# A change has to be so many times larger than that to be told from it.
_CLEAR = 100
# Of two factors that are alike.
_ALIKE = 1e-2
# The commonest of these names what happened to a file, where its weights differ: the first in this order counts.
_WORST = (OTHER, WRONG, LOST, STRENGTH, SAME)


class Observed(NamedTuple):
    """A verdict of `compat`, and how many weights bear how much of the right change; `says` is an error's text."""

    verdict: str
    factors: Mapping[float, int] = MappingProxyType({})
    says: str = ""

    @property
    def factor(self) -> float | None:
        """The commonest factor."""
        return next(iter(self.factors), None)


def observe(
    weights: Mapping[str, Weight], load: Callable[[], Mapping[str, Tensor]], rounding: float = ROUNDING
) -> Observed:
    """What `load` makes of the weights that an adapter changes: it returns those of the model with it, by name.

    Whatever it raises is a refusal. Raises AssertionError for a change that is too small to be seen.
    """
    try:
        found = load()
    except Exception as error:  # what a program raises is its own matter
        return Observed(REFUSED, says=f"{type(error).__name__}: {error}")
    seen = [_seen(weight, found[name].double(), rounding) for name, weight in weights.items()]
    changed = [one for one in seen if one[0] != NOTHING]
    if not changed:
        return Observed(NOTHING)
    factors = dict(Counter(factor for _, factor in changed if factor is not None).most_common())
    if len(changed) < len(seen):
        return Observed(PARTLY, factors)
    return Observed(next(verdict for verdict in _WORST if verdict in {one for one, _ in seen}), factors)


def _seen(weight: Weight, found: Tensor, rounding: float) -> tuple[str, float | None]:
    """What happened to one weight, and how much of the right change it bears, None where it bears another."""
    noise = rounding * float(weight.base.norm() + weight.meant.norm())
    meant, change = weight.meant - weight.base, found.reshape(weight.base.shape) - weight.base
    assert meant.norm() > _CLEAR * noise, "the change is too small to be seen"
    if change.norm() <= noise:
        return NOTHING, None
    if (change - meant).norm() <= noise:
        return SAME, 1.0
    if weight.plain is not None:
        factor = _multiple(change, weight.plain - weight.base, noise)
        return (WRONG, None) if factor is None else (LOST, factor)
    factor = _multiple(change, meant, noise)
    return (OTHER, None) if factor is None else (STRENGTH, factor)


def _multiple(change: Tensor, of: Tensor, noise: float) -> float | None:
    """How many times `of` a change is, None where it is something else."""
    factor = float((change * of).sum() / of.square().sum())
    return round(factor, 3) if (change - factor * of).norm() <= noise else None


def differs(verdict: Verdict, seen: Observed) -> str:
    """Why the verdict is not what was seen, or an empty string. One that is UNTESTED does not differ: see `is_gap`."""
    if verdict.verdict == UNTESTED:
        return ""
    if verdict.verdict != seen.verdict:
        return f"said {verdict.verdict!r} ({verdict.says}), seen {seen.verdict!r} {seen.factors} {seen.says}"
    if verdict.verdict in (STRENGTH, LOST, PARTLY) and not _are_alike(verdict.factors, seen.factors):
        return f"{seen.verdict}: said {verdict.factors}, seen {seen.factors}"
    return ""


def _are_alike(said: Iterable[float], seen: Iterable[float]) -> bool:
    """Whether the factors that were said are those that were seen, however often: a layer may be several there."""
    return all(any(abs(a - b) <= _ALIKE * abs(b) for b in seen) for a in said) and all(
        any(abs(a - b) <= _ALIKE * abs(b) for a in said) for b in seen
    )


def is_gap(verdict: Verdict) -> bool:
    """Whether nothing is said of a file of which a grid knows what becomes of it."""
    return verdict.verdict == UNTESTED
