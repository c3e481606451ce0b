"""The step that settles DoRA's magnitude, which alpha/rank cannot say: kept, dropped, or in a plain LoRA near it."""

from collections.abc import Sequence
from dataclasses import replace

from lora_inspect.converting.dora_change import approximate_change
from lora_inspect.converting.landed import Landed
from lora_inspect.converting.part import Part
from lora_inspect.converting.scaled_factors import Factor, check_finite


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


def approximate(parts: Sequence[Part], landed: Landed, rank: int | None, max_error: float | None) -> list[Part]:
    """A plain LoRA of the true change in the place of the part whose change depends on the base, where it lands."""
    own = landed.contribution
    return [
        _of(part, landed, rank, max_error)
        if (part.magnitude if own.magnitude else part.algorithm is own.algorithm)
        else part
        for part in parts
    ]


def _of(part: Part, landed: Landed, rank: int | None, max_error: float | None) -> Part:
    """The approximation in the form in which the part has its factors, else in that of the base's weight."""
    found = approximate_change(landed, rank, max_error)
    origin = part.origin
    is_kept = origin.algorithm is landed.algorithm
    shape = origin.known_shape if is_kept else landed.shape
    kernel = origin.factors["up"].shape[2:] if is_kept else (1,) * len(shape[2:])
    return Part(
        origin._replace(alpha=None, magnitude=None),
        landed.algorithm,
        {
            "down": Factor(found.down.reshape(found.rank, *shape[1:]), "F32"),
            "up": Factor(found.up.reshape(shape[0], found.rank, *kernel), "F32"),
        },
        1.0,
        replaced=True,
        error=found.relative_error,
    )
