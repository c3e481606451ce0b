"""Where the share of a change cannot be told, and why."""

from collections.abc import Sequence

from torch import Tensor

from lora_inspect.maths.least_squares import is_dependent

# What is stated with a share are so many standard errors: less than one false alarm in a million modules.
SIGMAS = 5.0
# A share that is stated with as much does not tell a change that is there from one that is not.
OPEN = 0.5
# Why a share is not told.
NO_CHANGE, ROUNDED_AWAY, ALIKE, NOT_FINITE = "no change", "rounding", "alike", "not finite"
REASONS = {
    NO_CHANGE: "the adapter changes nothing there",
    ROUNDED_AWAY: "the change is smaller than what rounding leaves of it",
    ALIKE: "another adapter makes the same change",
    NOT_FINITE: "the merged weights are not finite",
}


def why_untold(gram: Tensor, noise: Sequence[float], rounding: Sequence[float]) -> list[str]:
    """What keeps each share from being told, empty for nothing.

    `gram` (k, k) are the products of the changes, `noise` is what is stated with each share, and `rounding` the squares
    of what changes that are smaller are lost in.
    """
    return [_why(number, gram, one, least) for number, (one, least) in enumerate(zip(noise, rounding, strict=True))]


def _why(number: int, gram: Tensor, noise: float, rounding: float) -> str:
    square = float(gram[number, number])
    if square <= 0:
        return NO_CHANGE
    if is_dependent(gram, number):
        return ALIKE
    return ROUNDED_AWAY if square < rounding or noise >= OPEN else ""
