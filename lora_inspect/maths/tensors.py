"""Tensors of a checkpoint as torch tensors: a whole one, or a few rows in reused memory.

fp8 codes become float32 and back, equal to torch's casts, which take up to ten times as long on a processor: the bits
of a code move to their place in a half-precision number, and processors widen those by themselves. `SampleWeight` is a
weight of any size for tests of changes that depend on one; it is read in any blocks, and never held whole.
"""

import math
from collections.abc import Callable, Iterator
from math import gcd, lcm
from typing import Any

import torch

from lora_inspect.errors import DamagedError, RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.input_file import InputFile
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.maths.products import ROWS_AT_ONCE

# How far the bits are moved to the left, and which of them stay: the sign is moved with the others and once more alone.
_MOVES = {torch.float8_e4m3fn: (7, ~0x4000), torch.float8_e5m2: (8, ~0)}
# E4M3 has the bias 7 where half precision has 15, and NaN where that has 1.875: in all bits but the sign.
_BIAS, _NAN = 2.0**8, 0x7F


# The types whose numbers these are.
FP8_DTYPES = frozenset(_MOVES)


def widen(codes: torch.Tensor, into: torch.Tensor) -> None:
    """Write the numbers of the fp8 `codes` `into` a float32 tensor of their shape."""
    distance, kept = _MOVES[codes.dtype]
    bits = codes.view(torch.int8).to(torch.int16).bitwise_left_shift_(distance).bitwise_and_(kept)
    into.copy_(bits.view(torch.float16))
    if codes.dtype == torch.float8_e5m2:
        return
    into.mul_(_BIAS)
    sizes = codes.view(torch.uint8).bitwise_and(_NAN)
    if codes.numel() and sizes.max() == _NAN:
        into.masked_fill_(sizes == _NAN, math.nan)


def narrow(numbers: torch.Tensor, into: torch.Tensor) -> None:
    """Write the nearest codes of `numbers`, ties to even, `into` an fp8 tensor of their shape.

    Numbers beyond the range become the largest codes; `numbers` is changed. NaN stays NaN.
    """
    largest = torch.finfo(into.dtype).max
    into.copy_(numbers.clamp_(-largest, largest))


TORCH_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_WHOLE_DTYPES = {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8}
STORED_DTYPES = TORCH_DTYPES | {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
# Codes that are numbers; others are read as the bytes that several of them are packed in.
_CODE_DTYPES = STORED_DTYPES | {"I8": torch.int8}
_DIMENSIONS = 64  # torch holds tensors of more, and raises where it does anything with them


class Decode(NamedTuple):
    """A decoder of a weight from its codes.

    `rows` takes the codes, the number of their first row, and the rows of the weight. Codes that are numbers are in the
    memory of these rows; packed ones are their bytes. `unit` is the number of neighbouring numbers that are stored
    together, and `part` the number of these that are decoded separately, from all codes of their units; 0 means whole
    units.
    """

    rows: Callable[[torch.Tensor, int, torch.Tensor], None]
    unit: int = 1
    part: int = 0

    def together(self, columns: int) -> int:
        """Return the number of rows, of so many numbers each, that are decoded together."""
        least = self.part or self.unit
        return least // gcd(least, columns)

    def stored(self, start: int, stop: int) -> tuple[int, int]:
        """Return the range of stored numbers with the codes for the numbers from `start` to `stop`."""
        return (start // self.unit * self.unit, -(-stop // self.unit) * self.unit) if self.part else (start, stop)


def load(info: TensorInfo) -> torch.Tensor:
    """Return the numbers of a tensor in float32, or float64 where it is stored so, in its own shape.

    Those of eight bits are numbers by themselves here. LoraInspectError for other dtypes.
    """
    if info.dtype not in STORED_DTYPES:
        raise DamagedError(
            info.file,
            f"{info.name} is stored as {info.dtype}, but lora-inspect expected one of {', '.join(STORED_DTYPES)}",
            "write the file again in one of them",
        )
    stored = load_stored(info, STORED_DTYPES[info.dtype])
    return stored if info.dtype == "F64" else stored.float()


def load_whole(info: TensorInfo) -> torch.Tensor:
    """Return whole numbers in int64, also if they are stored as F32; LoraInspectError if they are none."""
    if info.dtype in _WHOLE_DTYPES:
        return load_stored(info, _WHOLE_DTYPES[info.dtype]).long()
    if info.dtype == "F32":
        stored = load_stored(info, torch.float32)
        whole = stored.nan_to_num().long()
        if torch.equal(whole.float(), stored):
            return whole
    raise DamagedError(
        info.file, f"{info.name} holds positions, but they are not whole numbers", "fetch the file again"
    )


def load_as_it_is(info: TensorInfo) -> torch.Tensor:
    """Return the tensor as it is stored, whatever it holds, powers of two as the bytes of their exponents.

    Raises LoraInspectError for a type that torch lacks.
    """
    dtype = (STORED_DTYPES | _WHOLE_DTYPES | {"BOOL": torch.bool, "F8_E8M0": torch.uint8}).get(info.dtype)
    if dtype is None:
        raise RefusedError(info.file, f"{info.name} is stored as {info.dtype}, and torch has no type for that")
    return load_stored(info, dtype)


def load_stored(info: TensorInfo, dtype: torch.dtype) -> torch.Tensor:
    """Return the tensor as it is stored, in `dtype`, in its own shape, of no more dimensions than torch has."""
    if len(info.shape) > _DIMENSIONS:
        raise DamagedError(
            info.file,
            f"{info.name} has {len(info.shape)} dimensions, but torch computes with at most {_DIMENSIONS}",
            "fetch the file again",
        )
    with InputFile(info.file, info.identity) as source:
        buffer = source.read(info.start, info.nbytes)
    if not buffer:
        return torch.empty(info.shape, dtype=dtype, device="cpu")
    return torch.frombuffer(buffer, dtype=dtype).reshape(info.shape)


def to_bytes(tensor: torch.Tensor, dtype: str) -> bytes:
    """Return the tensor rounded to `dtype`, as the bytes of a file."""
    target = TORCH_DTYPES[dtype]
    buffer = bytearray(tensor.numel() * target.itemsize)
    torch.frombuffer(buffer, dtype=target).reshape(tensor.shape).copy_(tensor)
    return bytes(buffer)


def bytes_in(tensor: torch.Tensor) -> memoryview:
    """Return the memory of a contiguous tensor."""
    values = tensor.reshape(-1).view(torch.uint8).numpy()
    return memoryview(values)  # type: ignore[arg-type]  # numpy's types know of it from Python 3.12 on


def working_dtype(info: TensorInfo) -> torch.dtype:
    """Return the type in which a weight is folded: float32, or float64 if it is stored so."""
    return torch.float64 if info.dtype == "F64" else torch.float32


class Cut(NamedTuple):
    """The division of a weight's rows into blocks, which depends on the weight, not on its readers.

    `rows` is the number of rows in a block, `of_all` that in the weight, and `columns` the length of a row.
    """

    rows: int
    of_all: int
    columns: int

    @property
    def number(self) -> int:
        """The number of blocks."""
        return -(-self.of_all // self.rows) if self.rows else 0

    @property
    def elements(self) -> int:
        """Of a whole block."""
        return self.rows * self.columns

    def span(self, number: int) -> tuple[int, int]:
        """Return the first row of a block, and the one behind its last."""
        return number * self.rows, min((number + 1) * self.rows, self.of_all)


def cut(info: TensorInfo, elements: int, together: int = 1, aligned: int = 1, decode: Decode | None = None) -> Cut:
    """Return blocks of at most so many elements, or of one row, in multiples of `together` rows; 0 means all rows.

    They begin at multiples of `aligned` rows, and hold whole parts of `decode`. A row is never divided. Raises
    ValueError if the number of rows is no multiple of `together`.
    """
    rows = info.shape[0] if info.shape else 1
    if not info.numel:
        return Cut(0, 0, 0)
    group, columns = together or rows, info.numel // rows
    if rows % group:
        raise ValueError(f"{info.name} has {rows} rows, which are not groups of {group}")
    step = lcm(group, aligned, decode.together(columns) if decode else 1)
    most = max(step, elements // columns // step * step)
    # What a product would have to fill up costs time.
    whole = most // lcm(step, ROWS_AT_ONCE) * lcm(step, ROWS_AT_ONCE)
    return Cut(min(rows, whole or most), rows, columns)


# What is kept for the next block, in bytes for each element of one: four times what a block of float32 takes.
_KEPT_BYTES = 16


class RowBlocks:
    """A reader of weights by blocks of rows, as matrices (rows, columns) in the working dtype.

    The memory is reused: each block that is read overwrites the last one, and each call of `rounded` its last result.
    The memory of much larger blocks than others is freed with them. It serves one thread.
    """

    def __init__(self, elements: int) -> None:
        self.elements = elements
        self._kept: dict[str, torch.Tensor] = {}
        self._unit: tuple[tuple[TensorInfo, int, int], torch.Tensor] | None = None

    def read(
        self,
        info: TensorInfo,
        together: int = 1,
        decode: Decode | None = None,
        working: torch.dtype | None = None,
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield (first row, block) of the whole tensor, in order, in multiples of `together` rows; 0 means all.

        `decode` makes the weight from its codes, where these are no plain floats; the shape of `info` is then that of
        the weight. Blocks are in the type `working`, by itself the one of `working_dtype`. Raises ValueError where the
        rows are no such multiple themselves.
        """
        blocks = cut(info, self.elements, together, decode=decode)
        if not blocks.number:
            return
        with InputFile(info.file, info.identity) as source:
            for number in range(blocks.number):
                yield self.block(source, info, blocks, number, decode, working)

    def block(
        self,
        source: InputFile,
        info: TensorInfo,
        blocks: Cut,
        number: int,
        decode: Decode | None = None,
        working: torch.dtype | None = None,
    ) -> tuple[int, torch.Tensor]:
        """Return (first row, block) of one of the blocks of a tensor in an open file, as `read` does."""
        start, stop = blocks.span(number)
        taken, dtype = stop - start, _CODE_DTYPES.get(info.dtype, torch.uint8)
        first, last = start * blocks.columns, stop * blocks.columns
        stored = self._stored(source, info, blocks, *(decode.stored(first, last) if decode else (first, last)))
        codes = stored.view(dtype)
        own = working_dtype(info)
        working = working or own
        # What codes stand for is known in their own working type.
        block = self._matrix("block", blocks, taken, own if decode else working)
        if info.dtype in _CODE_DTYPES:
            codes = numbers_of(codes.view(block.shape), block)
        if decode:
            decode.rows(codes, start, block)
        return start, block if block.dtype == working else self._matrix("wide", blocks, taken, working).copy_(block)

    def rounded(self, block: torch.Tensor, dtype: str) -> torch.Tensor:
        """Return the block rounded once to `dtype`, a safetensors name, in memory that the next call reuses.

        A type of eight bits changes the block.
        """
        written = self._memory("written", block.numel(), _CODE_DTYPES[dtype])
        return stored_as(block, written[: block.numel()].view(block.shape))

    def _stored(self, source: InputFile, info: TensorInfo, blocks: Cut, first: int, last: int) -> torch.Tensor:
        """Return the bytes of the numbers `first` to `last`; those of a unit are read once for all blocks in it."""
        # A row of the weight may end within a byte, or within a unit of bytes.
        begin, size = first * info.nbytes // info.numel, (last - first) * info.nbytes // info.numel
        if self._unit and self._unit[0] == (info, first, last):
            return self._unit[1]
        self._unit = None
        stored = self._memory("stored", max(size, blocks.rows * info.nbytes // blocks.of_all), torch.uint8)[:size]
        source.expect(info.start, info.stop)
        source.read_into(info.start + begin, bytes_in(stored))
        if last - first > blocks.elements:
            self._unit = (info, first, last), stored
        return stored

    def _matrix(self, use: str, blocks: Cut, rows: int, dtype: torch.dtype) -> torch.Tensor:
        return self._memory(use, blocks.elements, dtype)[: rows * blocks.columns].view(rows, blocks.columns)

    def _memory(self, use: str, count: int, dtype: torch.dtype) -> torch.Tensor:
        """Return memory for at least so many elements, kept for reuse unless they are very many."""
        kept = self._kept.get(use)
        if kept is not None and kept.dtype == dtype and kept.numel() >= count:
            return kept
        fresh = torch.empty(count, dtype=dtype, device="cpu")
        if count * dtype.itemsize <= _KEPT_BYTES * self.elements:
            self._kept[use] = fresh
        return fresh


def numbers_of(stored: torch.Tensor, into: torch.Tensor) -> torch.Tensor:
    """Return the numbers of stored elements, written `into` a tensor of their shape in the working dtype."""
    if stored.dtype in FP8_DTYPES:
        widen(stored, into)
    else:
        into.copy_(stored)
    return into


def stored_as(numbers: torch.Tensor, into: torch.Tensor) -> torch.Tensor:
    """Write the nearest stored elements of `numbers`, which are changed, `into` a tensor of their shape; return it.

    Numbers beyond the range of an eight-bit type become its largest or smallest element.
    """
    if into.dtype in FP8_DTYPES:
        narrow(numbers, into)
    elif into.dtype == torch.int8:
        into.copy_(numbers.round_().clamp_(-128, 127))
    else:
        into.copy_(numbers)
    return into


def all_finite(values: torch.Tensor) -> bool:
    """Return True if no number among `values` is NaN or infinite."""
    # What is not finite makes every sum not finite; one that only grows too large is looked at again.
    sums = values.sum(-1).sum(dtype=torch.float64) if values.dim() else values
    return bool(sums.isfinite()) or bool(values.isfinite().all())


def first_non_finite(values: torch.Tensor) -> Any:
    """Return the first NaN or infinity among `values`, or None."""
    return None if all_finite(values) else values[~torch.isfinite(values)][0].item()


def first_overflow(values: torch.Tensor, rounded: torch.Tensor) -> Any:
    """Return the first finite number among `values` that is not finite in `rounded`, or None."""
    if all_finite(rounded):
        return None
    lost = values[torch.isfinite(values) & ~torch.isfinite(rounded)]
    return lost[0].item() if lost.numel() else None


# A prime: rows begin at different numbers until there are as many rows as this.
_ROWS, _STEP = 4099, 1021
_SEED = 0


class SampleWeight:
    """A weight (rows, columns) in float64: zeros, or rows that are pieces of one row of normal numbers."""

    def __init__(self, rows: int, columns: int, is_zero: bool, elements: int = 1 << 20) -> None:
        self._rows, self._columns, self._elements = rows, columns, elements
        count = columns + _ROWS
        generator = torch.Generator(device="cpu").manual_seed(_SEED)
        self._numbers: torch.Tensor | None = None
        if not is_zero:
            self._numbers = torch.randn(count, generator=generator, dtype=torch.float64, device="cpu")

    def read(self, together: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield (first row, new rows) of all of it, in blocks of a multiple of `together` rows; 0 means all."""
        group = together or max(self._rows, 1)
        count = max(group, self._elements // max(self._columns, 1) // group * group)
        for first in range(0, self._rows, count):
            yield first, self._block(first, min(first + count, self._rows))

    def _block(self, first: int, last: int) -> torch.Tensor:
        if self._numbers is None:
            return torch.zeros(last - first, self._columns, dtype=torch.float64, device="cpu")
        starts = torch.arange(first, last, dtype=torch.long, device="cpu") * _STEP % _ROWS
        return self._numbers.unfold(0, self._columns, 1)[starts]
