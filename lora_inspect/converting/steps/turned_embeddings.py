"""The step that turns the factors of an Embedding round, which llama.cpp has along the tokens and PEFT across them."""

from collections.abc import Sequence
from dataclasses import replace

from lora_inspect.algorithms.lora_embedding import spelled_in
from lora_inspect.algorithms.record import Algorithm
from lora_inspect.converting.steps.part import Part
from lora_inspect.converting.steps.scaled_factors import Factor, as_factor


def turn_embeddings(parts: Sequence[Part], dialects: Sequence[str]) -> list[Part]:
    """The parts with the factors as the dialects have them."""
    return [_turned(part, spelled_in(part.algorithm, dialects)) for part in parts]


def _turned(part: Part, algorithm: Algorithm) -> Part:
    if algorithm is part.algorithm:
        return part
    down = as_factor(part.factors["down"])
    turned = Factor(down.values.transpose(0, 1).contiguous(), down.dtype)
    origin = part.origin._replace(algorithm=algorithm)
    return replace(part, origin=origin, algorithm=algorithm, factors={**part.factors, "down": turned})
