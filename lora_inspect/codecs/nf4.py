"""Four bits of bitsandbytes (NF4, FP4): codes of a table of 16 numbers, with each block's largest magnitude.

The weight is one row of numbers, the first of two in the upper bits; a block may begin in one row of it and end in the
next. The largest magnitudes may be codes themselves, of a table of 256 numbers with largest magnitudes and an offset.
"""

from collections.abc import Mapping
from math import isfinite, prod
from typing import Any

from lora_inspect.codecs.four_bits import unpacked
from lora_inspect.codecs.record import BY_CONFIG, BadSetting, Codec, CodedTensor, CodeLayout, NotRead
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.strict_json import parse_json

KINDS = ("nf4", "fp4")
TABLE, LARGEST = "weight.quant_map", "weight.absmax"
NESTED_TABLE, NESTED_LARGEST = "weight.nested_quant_map", "weight.nested_absmax"
STATES = tuple(f"weight.quant_state.bitsandbytes__{kind}" for kind in KINDS)
_CODES, _NESTED_CODES = 16, 256
_F32, _U8 = frozenset({"F32"}), frozenset({"U8"})
_MOST_DIMENSIONS = 5
_LARGEST_BLOCK = 4096


class State(NamedTuple):
    """The numbers that JSON gives for a weight: the block sizes of codes and coded magnitudes, and their offset."""

    block: int
    nested_block: int | None = None
    offset: float = 0.0


class Quantised(NamedTuple):
    """The table of all codes, the largest magnitude of every block, and how many numbers a block has."""

    table: Any
    largest: Any
    block: int


def of_blocks(codes: Any, table: Any, largest: Any, block: int, offset: float) -> Any:
    """Return the largest magnitudes from their own codes: table[code] · largest of its block + offset, in float32."""
    return table[codes.int()].mul_(largest.repeat_interleave(block)[: codes.numel()]).add_(offset)


def decoded(packed: Any, weight: Quantised, first: int = 0) -> Any:
    """Return the numbers of the bytes `packed`, from number `first` on, an even one, in float32.

    W = table[code] · largest magnitude of the block.
    """
    block = weight.block
    numbers = unpacked(packed, weight.table, high_first=True)
    begin, stop = first // block, first + numbers.numel()
    scales = weight.largest[begin : (stop + block - 1) // block]
    if first % block == stop % block == 0:  # as nearly always, where a number of each block goes on to all of it
        return numbers.view(-1, block).mul_(scales.unsqueeze(-1)).flatten()
    return numbers.mul_(scales.repeat_interleave(block)[first - begin * block : stop - begin * block])


def _layout(found: CodedTensor) -> CodeLayout | None:
    states = [name for name in STATES if name in found.beside]
    if len(states) != 1:
        raise NotRead("no quant_state says its shape" if not states else "it has two of quant_state")
    text = found.read(found.beside[states[0]])
    try:
        said = parse_json(text)
    except ValueError:
        said = None
    shape = _shape(said)
    if shape is None:
        raise NotRead(f"{states[0]} gives no shape")
    if prod(shape[1:]) % 2:
        raise NotRead("rows of an odd number end within a byte")
    state = _state(said, nested=NESTED_LARGEST in found.beside)
    if state is None or prod(shape) != 2 * found.codes.nbytes or not _fits(found, prod(shape), state):
        return None
    return CodeLayout(shape, state)


def _shape(said: Any) -> tuple[int, ...] | None:
    sizes = said.get("shape") if isinstance(said, dict) else None
    if not isinstance(sizes, list) or not 1 < len(sizes) <= _MOST_DIMENSIONS:
        return None
    return tuple(sizes) if all(type(size) is int and 0 < size < 1 << 31 for size in sizes) else None


def _state(said: Mapping[str, Any], nested: bool) -> State | None:
    block, of_nested, offset = (said.get(key) for key in ("blocksize", "nested_blocksize", "nested_offset"))
    if not isinstance(block, int) or not 0 < block <= _LARGEST_BLOCK:
        return None
    if not nested:
        return State(block)
    if not isinstance(of_nested, int) or not 0 < of_nested <= _LARGEST_BLOCK:
        return None
    return State(block, of_nested, offset) if isinstance(offset, float) and isfinite(offset) else None


def _fits(found: CodedTensor, numbers: int, state: State) -> bool:
    """Return True if the tables and the magnitudes have the sizes that the codes need."""
    beside, blocks = found.beside, -(-numbers // state.block)
    if prod(beside[TABLE].shape) != _CODES or prod(beside[LARGEST].shape) != blocks:
        return False
    if state.nested_block is None:
        return beside[LARGEST].dtype == "F32"
    if NESTED_TABLE not in beside or beside[LARGEST].dtype != "U8":
        return False
    nested = -(-blocks // state.nested_block)
    return prod(beside[NESTED_TABLE].shape) == _NESTED_CODES and prod(beside[NESTED_LARGEST].shape) == nested


def _prepared(tensors: Mapping[str, Any], layout: CodeLayout) -> Quantised:
    state: State = layout.detail
    for name in (TABLE, LARGEST, NESTED_TABLE, NESTED_LARGEST):
        if name in tensors and not tensors[name].float().isfinite().all():
            raise BadSetting(name, "has a number that is not finite and so cannot scale")
    largest = tensors[LARGEST].flatten()
    if state.nested_block is not None:
        table, of_these = tensors[NESTED_TABLE].flatten(), tensors[NESTED_LARGEST].flatten()
        largest = of_blocks(largest, table, of_these, state.nested_block, state.offset)
    return Quantised(tensors[TABLE].flatten(), largest, state.block)


def _decode(codes: Any, weight: Quantised, first: int, into: Any) -> None:
    into.copy_(decoded(codes, weight, first * into.shape[1]).view(into.shape))


CODEC = Codec(
    name="nf4",
    title="4 bits of bitsandbytes",
    stored=_U8,
    settings={LARGEST: _F32 | _U8, TABLE: _F32},
    optional={NESTED_LARGEST: _F32, NESTED_TABLE: _F32, **dict.fromkeys(STATES, _U8)},
    mixes=BY_CONFIG,
    layout=_layout,
    prepared=_prepared,
    decode=_decode,
)
