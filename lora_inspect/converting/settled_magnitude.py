"""The step that settles DoRA's magnitude, which alpha/rank cannot say: kept, dropped, or in a plain LoRA near it."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from lora_inspect.converting.dora_change import approximate_change
from lora_inspect.converting.part import Part
from lora_inspect.converting.scaled_factors import Factor, check_finite
from lora_inspect.matching.place import Placed
from lora_inspect.maths.lowrank import Approximation


def keep(parts: Sequence[Part]) -> Sequence[Part]:
    """The magnitudes stay; raises LoraInspectError where one is not finite."""
    for part in parts:
        if part.magnitude:
            check_finite(part.magnitude.info)
    return parts


def drop(parts: Sequence[Part]) -> list[Part]:
    """The magnitudes go, and what that loses only a base could tell."""
    return [
        replace(part, magnitude=None, dropped=(part.magnitude.info.name,), error=None) if part.magnitude else part
        for part in parts
    ]


def approximate(parts: Sequence[Part], placed: Placed, rank: int | None, max_error: float | None) -> list[Part]:
    """A plain LoRA of the true change in the place of the part with a magnitude, at the place where it lands."""
    return [
        _of(part, approximate_change(placed, part.magnitude, rank, max_error)) if part.magnitude else part
        for part in parts
    ]


def _of(part: Part, found: Approximation) -> Part:
    shape = part.origin.known_shape
    kernel = (1,) * (len(part.origin.factors["up"].shape) - 2)
    factors = {
        "down": _factor(found.down, (found.rank, *shape[1:])),
        "up": _factor(found.up, (shape[0], found.rank, *kernel)),
    }
    origin = part.origin._replace(alpha=None, magnitude=None)
    return Part(origin, factors, 1.0, replaced=True, error=found.relative_error)


def _factor(values: torch.Tensor, shape: tuple[int, ...]) -> Factor:
    return Factor(values.reshape(shape), "F32")
