"""The step for programs whose config says one rank and one scale of all modules, as those of mlx-lm and SGLang do."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch

from lora_inspect.algorithms import mlx
from lora_inspect.converting.steps.carried_scale import into_factors
from lora_inspect.converting.steps.part import Part
from lora_inspect.converting.steps.scaled_factors import Factor, as_factor

# The dimension of each factor that is the rank: of LoRA's, of mlx-lm's, and of its layers of all experts.
_RANKS = {"down": 0, "up": 1}
_RANKS_IN_MLX = {mlx.NAME: {"down": 1, "up": 0}, mlx.EXPERTS: {"down": 1, "up": 2}}


def of_one_scale(modules: Iterable[Sequence[Part]]) -> list[list[Part]]:
    """The parts of all modules at one scale and, where they have a rank, at one rank.

    Scales that differ go into the factors, and smaller ranks get zeros.
    """
    own = [list(parts) for parts in modules]
    if len({part.scale for parts in own for part in parts}) > 1:
        own = [[into_factors(part) for part in parts] for parts in own]
    rank = max((part.rank or 0 for parts in own for part in parts), default=0)
    return [[_padded(part, rank) for part in parts] for parts in own]


def _padded(part: Part, rank: int) -> Part:
    """The part with zeros up to the rank, and the alpha of its scale; one without a rank as it is."""
    if part.rank is None:
        return part
    own = replace(part, alpha=part.scale * rank)
    missing = rank - part.rank
    if not missing:
        return own
    ranks = _RANKS_IN_MLX.get(part.algorithm.name, _RANKS)
    read = {role: as_factor(factor) for role, factor in part.factors.items()}
    return replace(own, factors={role: _with_zeros(factor, ranks[role], missing) for role, factor in read.items()})


def _with_zeros(factor: Factor, dimension: int, missing: int) -> Factor:
    shape = list(factor.values.shape)
    shape[dimension] = missing
    return factor._replace(values=torch.cat([factor.values, factor.values.new_zeros(shape)], dimension))
