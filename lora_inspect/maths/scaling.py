"""From alpha and rank to the scale of a delta, in both rules. Standard library only."""

import math
import struct

STANDARD = "alpha/rank"
RANK_STABILISED = "alpha/sqrt(rank)"


def scale_of(alpha: float, rank: int, rslora: bool) -> float:
    """The factor of a delta: alpha/rank, or alpha/sqrt(rank) when rank-stabilised.

    Source: Hu et al. 2021 (LoRA) for the first, Kalajdzievski 2023 (rsLoRA) for the second.
    """
    return alpha / math.sqrt(rank) if rslora else alpha / rank


def neutral_alpha(rank: int, rslora: bool) -> float:
    """The alpha that makes the scale 1; what a training option of alpha 0 or None stores."""
    return math.sqrt(rank) if rslora else float(rank)


def alpha_growth(rank_growth: float, rslora: bool) -> float:
    """The factor of alpha that keeps the scale where the rank grows by `rank_growth`."""
    return math.sqrt(rank_growth) if rslora else rank_growth


def plain_alpha(alpha: float, rank: int, rslora: bool) -> float:
    """The alpha, before any rounding, for which alpha/rank is the scale that `alpha` has under its own rule."""
    return alpha * math.sqrt(rank) if rslora else alpha


def standard_alpha(alpha: float, rank: int, rslora: bool) -> float:
    """The float32 alpha for which alpha/rank is the scale that `alpha` has under its own rule."""
    return to_float32(plain_alpha(alpha, rank, rslora))


def to_float32(number: float) -> float:
    """The nearest float32 value, as a Python float; raises OverflowError beyond the float32 range."""
    nearest: float = struct.unpack("<f", struct.pack("<f", number))[0]
    return nearest
