"""NVFP4 as ComfyUI has it: E2M1, the first of two in the upper bits, an E4M3 scale a block of 16 inputs, one of all.

Other programs have the first of two in the lower bits and the scales of blocks row by row, under the same names.
"""

from typing import Any

from lora_inspect.codecs.four_bits import E2M1, unpacked
from lora_inspect.codecs.scale_tiles import scales_of_rows

BLOCK = 16


def decoded(packed: Any, tiles: Any, scale: Any, first: int = 0) -> Any:
    """Rows of the weight (n, in), from row `first` on, in the element type of the `scale` of all blocks.

    `packed` are the bytes (n, in/2) of those rows, `tiles` the scales of all blocks of the weight as they are stored.
    W = code · (scale · scale of the block), each product rounded to the element type, as comfy-kitchen has it.
    """
    rows, inputs = packed.shape[0], 2 * packed.shape[1]
    numbers = unpacked(packed, scale.new_tensor(E2M1), high_first=True).view(rows, -1, BLOCK)
    of_blocks = scales_of_rows(tiles, first, first + rows, inputs // BLOCK).to(scale.dtype)
    return (numbers * (scale * of_blocks).unsqueeze(-1)).view(rows, inputs)
