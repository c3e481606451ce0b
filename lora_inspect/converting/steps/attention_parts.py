"""The step that makes plain LoRA of what PEFT alone computes otherwise, on torch's MultiheadAttention."""

from collections.abc import Sequence
from dataclasses import replace

from lora_inspect.algorithms import lora
from lora_inspect.algorithms.attention_lora import IN_PROJ, OUT_PROJ, TIMES
from lora_inspect.converting.steps.part import Part
from lora_inspect.reading.model.contribution import Module


def counted_once(parts: Sequence[Part], source: Module, target: Module) -> Sequence[Part]:
    """The parts of the `source` as readers of the names of the `target` have to find them: PEFT those that it wrote."""
    return parts if source.name == target.name else [_plain(part) for part in parts]


def _plain(part: Part) -> Part:
    if part.algorithm is OUT_PROJ:
        # The alpha is that of the change as it is trained, and not of the factors alone.
        origin = part.origin._replace(alpha=None)
        return replace(part, origin=origin, algorithm=lora.ALGORITHM, scale=TIMES * part.scale)
    if part.algorithm is IN_PROJ:
        own = part.origin.operands
        unused = [info.name for role, info in part.origin.factors.items() if role not in own]
        factors = {role: factor for role, factor in part.factors.items() if role in own}
        return replace(part, algorithm=lora.ALGORITHM, factors=factors, dropped=(*part.dropped, *unused))
    return part
