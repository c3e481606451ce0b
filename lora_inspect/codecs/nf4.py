"""Four bits of bitsandbytes (NF4, FP4): codes of a table of 16 numbers, and the largest magnitude of each block.

The weight is one row of numbers, the first of two in the upper bits; a block may begin in one row of it and end in the
next. The largest magnitudes may be codes themselves, of a table of 256 numbers with largest magnitudes and an offset.
"""

from typing import Any

from lora_inspect.codecs.four_bits import unpacked


def of_blocks(codes: Any, table: Any, largest: Any, block: int, offset: float) -> Any:
    """The largest magnitudes, from their own codes: table[code] · largest of its block + offset, in float32."""
    return table[codes.int()].mul_(largest.repeat_interleave(block)[: codes.numel()]).add_(offset)


def decoded(packed: Any, table: Any, largest: Any, block: int, first: int = 0) -> Any:
    """The numbers from the `first` on, an even number, that the bytes `packed` stand for, in float32.

    `largest` are the magnitudes of all blocks of the weight: W = table[code] · largest of the block.
    """
    numbers = unpacked(packed, table, high_first=True)
    stop = first + numbers.numel()
    begin = first // block
    scales = largest[begin : (stop + block - 1) // block].repeat_interleave(block)
    return numbers.mul_(scales[first - begin * block : stop - begin * block])
