"""Weights that were saved whole as the base has them: nothing of them is written."""

from collections.abc import Sequence

from lora_inspect.converting.steps.base_change import Landed
from lora_inspect.converting.steps.part import Part
from lora_inspect.converting.steps.scaled_factors import as_factor


def without_unchanged(parts: Sequence[Part], landed: Landed) -> list[Part]:
    """The parts without the LoRA of a saved weight that is the base's own."""
    own = landed.contribution
    return [part for part in parts if not (own.algorithm.replaces and _is_of(part, landed) and _is_nothing(part))]


def _is_of(part: Part, landed: Landed) -> bool:
    return part.origin.factors == landed.contribution.factors


def _is_nothing(part: Part) -> bool:
    return not any(as_factor(factor).values.any() for factor in part.factors.values())
