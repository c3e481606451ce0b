"""MXFP8 as ComfyUI has it: E4M3 codes, and a power of two a block of 32 inputs.

The exponent 0 is that of a block of zeros, which comfy-kitchen takes for the scale 0.
"""

from typing import Any

from lora_inspect.codecs.powers_of_two import powers
from lora_inspect.codecs.scale_tiles import scales_of_rows

BLOCK = 32


def decoded(values: Any, tiles: Any, first: int = 0) -> Any:
    """Rows of the weight (n, in), from row `first` on, from the `values` of their codes, in their element type.

    `tiles` are the exponents of all blocks of the weight as they are stored, as bytes. W = q · 2 ** (e - 127).
    """
    rows, inputs = values.shape
    exponents = scales_of_rows(tiles, first, first + rows, inputs // BLOCK)
    scales = powers(exponents, values.dtype).masked_fill_(exponents == 0, 0.0)
    return (values.view(rows, -1, BLOCK) * scales.unsqueeze(-1)).view(rows, inputs)
