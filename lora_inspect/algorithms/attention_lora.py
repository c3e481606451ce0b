"""LoRA on torch's MultiheadAttention: PEFT has factors for its fused `in_proj_weight` and for its `out_proj`.

PEFT adds the change of `out_proj` twice, in training as in a merge, and the bias of the up layer of `in_proj` never.
Source: `MultiheadAttention` of PEFT, from 0.15, its first with it, to 0.21.2.
"""

from typing import TYPE_CHECKING, Any

from lora_inspect.algorithms import lora, lora_bias
from lora_inspect.algorithms.config_fields import peft_version
from lora_inspect.algorithms.lora_experts import OF_MATRIX
from lora_inspect.algorithms.record import Algorithm, Surroundings, Tensors

if TYPE_CHECKING:
    from lora_inspect.maths.change import Change

TIMES = 2
# The last version that is known to do so.
_LAST = (0, 21, 2)


def low_rank(tensors: Tensors) -> tuple[Any, Any]:
    """Return (up, down) of the change, multiplied by the number of times it counts."""
    up, down = lora.matrices(tensors)
    return TIMES * up, down


def change(tensors: Tensors, scale: float, alpha: float | None) -> "Change":
    """Return TIMES · scale · up @ down."""
    return lora.change(tensors, TIMES * scale, alpha)


def variant(around: Surroundings) -> Algorithm | str:
    """Return the algorithm itself, or an error text if the PEFT version's number of repeats is unknown."""
    version = peft_version(around.config or {})
    if version is not None and version <= _LAST:
        return OUT_PROJ
    last = ".".join(map(str, _LAST))
    return (
        f"PEFT up to {last} adds the change of a MultiheadAttention's out_proj twice, but that is unknown for the "
        f"peft_version in its adapter_config.json; write {last} there if it does so too, or merge it with that PEFT"
    )


_UNUSED = lora_bias.ALGORITHM.dialects["peft"]
IN_PROJ = OF_MATRIX._replace(dialects={**lora.DIALECTS, "peft-unused": _UNUSED}, idle=(*lora.IDLE, *_UNUSED))
OUT_PROJ = OF_MATRIX._replace(
    title="LoRA counted twice",
    equation="W + m · 2 · s · up @ down",
    formula=lora.ALGORITHM.formula and lora.ALGORITHM.formula._replace(change=change, low_rank=low_rank, thin=None),
    variant=variant,
)
