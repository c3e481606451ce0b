"""The weight of a module as a base has it: the module's own rows in their order, wherever the base has them."""

from collections.abc import Sequence
from math import prod

import torch

from lora_inspect.files.safetensors.dtypes import PLAIN_FLOATS
from lora_inspect.matching.placement import Place
from lora_inspect.maths.tensors import RowBlocks, working_dtype
from lora_inspect.reading.base.base_codecs import CodedWeight, decoder

# A block of rows that is read at once: 4 MB in float32.
BLOCK_ELEMENTS = 1 << 20


def own_weight(places: Sequence[tuple[Place, CodedWeight]]) -> torch.Tensor:
    """The matrix (out, in·kernel) of the rows that all the places have, in float32, or float64 where one is stored so.

    Raises LoraInspectError where the codes of a weight are no numbers.
    """
    shapes = [place.shape for place, _ in places]
    rows, columns = sum(shape[0] for shape in shapes), prod(shapes[0][1:])
    dtypes = {working_dtype(weight.info) for _, weight in places}
    dtype = torch.float64 if torch.float64 in dtypes else torch.float32
    own = torch.empty(rows, columns, dtype=dtype, device="cpu")
    blocks = RowBlocks(BLOCK_ELEMENTS)
    for place, weight in places:
        decode = None if weight.info.dtype in PLAIN_FLOATS else decoder(weight)
        for first, block in blocks.read(weight.info, decode=decode):
            take_rows(own, block, first, place)
    return own


def take_rows(own: torch.Tensor, block: torch.Tensor, first: int, place: Place) -> None:
    """Copies what is its own of a block of the weight as it is stored, whose first row is `first`."""
    if place.block:
        start, rows = place.block
        begin, end = max(first, start), min(first + block.shape[0], start + rows)
        block, first = block[max(begin - first, 0) : max(end - first, 0)], begin - start
    last = first + block.shape[0]
    for start, stop, source in _runs(place):
        if place.transposed:
            own[source : source + stop - start, first:last] = block[:, start:stop].transpose(0, 1)
        elif (begin := max(first, start)) < (end := min(last, stop)):
            own[source + begin - start : source + end - start] = block[begin - first : end - first]


def _runs(place: Place) -> Sequence[tuple[int, int, int]]:
    return [(0, place.shape[0], 0)] if place.runs is None else list(place.runs.each())
