"""The scale of a delta from alpha and rank, in both rules, and the packing of experts. Standard library only.

Packing is the order of the factors of all experts in two matrices. Of A (experts·rank, a) row e·rank + k is the k-th of
expert e. Of B (b, rank·experts) that is column k·experts + e in PEFT and vLLM, and column e·rank + k in the training of
some versions of Unsloth; the names are those of Unsloth's configs.
"""

import math
import struct
from typing import Any

STANDARD = "alpha/rank"
RANK_STABILISED = "alpha/sqrt(rank)"


def scale_of(alpha: float, rank: int, rslora: bool) -> float:
    """Return the factor of a delta: alpha/rank, or alpha/sqrt(rank) when rank-stabilised.

    Source: Hu et al. 2021 (LoRA) for the first, Kalajdzievski 2023 (rsLoRA) for the second.
    """
    return alpha / math.sqrt(rank) if rslora else alpha / rank


def neutral_alpha(rank: int, rslora: bool) -> float:
    """Return the alpha that makes the scale 1; a training option of alpha 0 or None stores it."""
    return math.sqrt(rank) if rslora else float(rank)


def alpha_growth(rank_growth: float, rslora: bool) -> float:
    """Return the factor of alpha that keeps the scale where the rank grows by `rank_growth`."""
    return math.sqrt(rank_growth) if rslora else rank_growth


def plain_alpha(alpha: float, rank: int, rslora: bool) -> float:
    """Return the alpha, before any rounding, for which alpha/rank is the scale that `alpha` has under its own rule."""
    return alpha * math.sqrt(rank) if rslora else alpha


def standard_alpha(alpha: float, rank: int, rslora: bool) -> float:
    """Return the float32 alpha for which alpha/rank is the scale that `alpha` has under its own rule."""
    return to_float32(plain_alpha(alpha, rank, rslora))


def to_float32(number: float) -> float:
    """Return the nearest float32 value, as a Python float; raises OverflowError beyond the float32 range."""
    nearest: float = struct.unpack("<f", struct.pack("<f", number))[0]
    return nearest


RANK_MAJOR, GROUPED_BY_EXPERT = PACKINGS = ("rank_major", "grouped_by_expert")


def per_expert(up: Any, down: Any, experts: int, packing: str) -> tuple[Any, Any]:
    """Return B as (experts, b, rank) and A as (experts, rank, a)."""
    down = down.reshape(experts, -1, down.shape[1])
    if packing == RANK_MAJOR:
        return up.reshape(up.shape[0], -1, experts).permute(2, 0, 1), down
    return up.reshape(up.shape[0], experts, -1).permute(1, 0, 2), down
