"""The step that packs the factors of all experts as every reader of PEFT's names takes them."""

from collections.abc import Sequence
from dataclasses import replace

from lora_inspect.converting.steps.part import Part
from lora_inspect.converting.steps.scaled_factors import as_factor
from lora_inspect.maths.packed_factors import RANK_MAJOR, per_expert


def repack(parts: Sequence[Part]) -> list[Part]:
    """The parts with the columns of B in PEFT's order: the same numbers, and the same change."""
    return [_repacked(part) if part.algorithm.packed else part for part in parts]


def _repacked(part: Part) -> Part:
    packing = part.origin.settings["packing"]
    if packing == RANK_MAJOR:
        return part
    up, down = as_factor(part.factors["up"]), as_factor(part.factors["down"])
    by_expert, _ = per_expert(up.values, down.values, part.algorithm.experts, packing)
    values = by_expert.permute(1, 2, 0).reshape(up.shape)
    return replace(part, factors={**part.factors, "up": up._replace(values=values)})
