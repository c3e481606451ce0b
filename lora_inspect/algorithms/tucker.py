"""The core of a Tucker decomposition, which holds the kernel between two thin factors. Tensor methods alone.

Source: the `rebuild_tucker` of lycoris-lora.
"""

from typing import Any


def contracted(core: Any, inputs: Any) -> Any:
    """(p, in·kernel) of a `core` (p, q, *kernel) and `inputs` (q, in): Σ_q core[p, q, x] · inputs[q, i] at (p, i·x)."""
    core = core.reshape(core.shape[0], inputs.shape[0], -1)
    return (core.transpose(1, 2) @ inputs).transpose(1, 2).reshape(core.shape[0], -1)
