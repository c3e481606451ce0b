"""Numbers of files to and from numpy; bfloat16 and eight-bit floats, which numpy lacks, by their bits."""

import sys
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy
from numpy.typing import NDArray

from lora_inspect.errors import DamagedError
from lora_inspect.files.input_file import InputFile
from lora_inspect.files.safetensors.dtypes import BITS, FP8, decode_number
from lora_inspect.files.safetensors.header import TensorInfo

_PLAIN = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "C64": "<f4"}
FLOATS = frozenset({"F64", "F32", "F16", "BF16", *FP8})
# The types that numbers are rounded to here.
WRITTEN = ("F64", "F32", "F16", "BF16")
_CHUNK_BYTES = 1 << 23
# So many numbers are rounded at a time, in memory near the processor.
_BLOCK = 1 << 15
# Arrays of numpy have no more of them.
_MOST_DIMENSIONS = 64
# Half of the last place of bfloat16, in the bits of a float32, and the code of NaN.
_TIE, _NOT_A_NUMBER = 0x8000, 0x7FC0
# The place of the upper half in the bits of a float32.
_UPPER = 1 if sys.byteorder == "little" else 0


def decoded(dtype: str, data: Any) -> NDArray[Any]:
    """Return the numbers of a buffer as float32, as float64 where they are stored so; both parts of a complex one."""
    if dtype in FP8:
        return _table(dtype)[numpy.frombuffer(data, dtype=numpy.uint8)]
    if dtype == "BF16":
        words = numpy.frombuffer(data, dtype="<u2").astype(numpy.uint32)
        words <<= 16
        return words.view(numpy.float32)
    values = numpy.frombuffer(data, dtype=_PLAIN[dtype])
    return values.astype(numpy.float32) if dtype == "F16" else values


@cache
def _table(dtype: str) -> NDArray[Any]:
    return numpy.array([decode_number(dtype, bytes([code])) for code in range(256)], dtype=numpy.float32)


def stored_pieces(info: TensorInfo) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield the numbers that `decoded` reads, a few million at a time, each piece with its bytes in the file."""
    with InputFile(info.file, info.identity) as source:
        for piece in source.pieces(info.start, info.stop, _CHUNK_BYTES):
            yield len(piece), decoded(info.dtype, piece)


def no_float(info: TensorInfo) -> DamagedError:
    """Return the error of a factor that is of no floating type."""
    return DamagedError(
        info.file, f"{info.name} is stored as {info.dtype}, but a floating type was expected", "fetch the file again"
    )


def not_finite(info: TensorInfo, bad: float) -> DamagedError:
    """Return the error of a factor that holds a NaN or an infinity."""
    return DamagedError(info.file, f"{info.name} holds {bad}, so it makes a weight non-finite", "fetch the file again")


def load(info: TensorInfo) -> NDArray[Any]:
    """Return the whole tensor in its own shape, as float32 or float64; LoraInspectError for too many dimensions."""
    if len(info.shape) > _MOST_DIMENSIONS:
        raise DamagedError(
            info.file, f"{info.name} has {len(info.shape)} dimensions, but no layer has so many", "fetch the file again"
        )
    pieces = [piece for _, piece in stored_pieces(info)] or [decoded(info.dtype, b"")]
    return (pieces[0] if len(pieces) == 1 else numpy.concatenate(pieces)).reshape(info.shape)


def load_into(info: TensorInfo, matrix: NDArray[Any]) -> None:
    """Fill a matrix of float32 or float64 with the numbers of a tensor that has as many of them."""
    columns = matrix.shape[1]
    row_bytes, row = columns * BITS[info.dtype] // 8, 0
    with InputFile(info.file, info.identity) as source:
        for piece in source.pieces(info.start, info.stop, max(1, _CHUNK_BYTES // row_bytes) * row_bytes):
            rows = matrix[row : row + len(piece) // row_bytes]
            if info.dtype == "BF16" and matrix.dtype == numpy.float32:
                words = numpy.frombuffer(piece, dtype="<u2").reshape(rows.shape)
                numpy.left_shift(words, 16, out=rows.view(numpy.uint32), dtype=numpy.uint32)
            elif info.dtype == "F16":
                rows[...] = numpy.frombuffer(piece, dtype=_PLAIN["F16"]).reshape(rows.shape)
            else:
                rows[...] = decoded(info.dtype, piece).reshape(rows.shape)
            row += len(rows)


def encoded(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Return the numbers rounded to a type of WRITTEN, half to even, as a contiguous array of its bytes' width.

    Numbers beyond the type become infinities.
    """
    if dtype == "BF16":
        return _brain_codes(values)
    with numpy.errstate(over="ignore"):
        return numpy.ascontiguousarray(values, dtype=_PLAIN[dtype])


def encoded_in_place(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Return the codes as `encoded` does, and replace the values by the numbers that the codes represent."""
    if dtype == "BF16" and values.dtype == numpy.float32 and values.flags.c_contiguous:
        return _brain_codes(values, in_place=True)
    codes = encoded(values, dtype)
    values[...] = decoded(dtype, codes).reshape(values.shape)
    return codes


def _brain_codes(values: NDArray[Any], in_place: bool = False) -> NDArray[Any]:
    """Return the codes of numbers in bfloat16, the upper halves of those in float32."""
    codes = numpy.empty(values.shape, dtype="<u2")
    source, target = numpy.ascontiguousarray(values).reshape(-1), codes.reshape(-1)
    for first in range(0, source.size, _BLOCK):
        own = source[first : first + _BLOCK]
        not_a_number = numpy.isnan(own)
        with numpy.errstate(over="ignore"):
            words = own.astype(numpy.float32, copy=not in_place).view(numpy.uint32)
        if own.dtype == numpy.float64:
            _settle_ties(words, own)
        up = words >> 16
        up &= 1
        up += _TIE - 1
        words += up
        words &= 0xFFFF0000
        if not_a_number.any():
            words[not_a_number] = _NOT_A_NUMBER << 16
        target[first : first + _BLOCK] = words.view(numpy.uint16)[_UPPER::2]
    return codes


def _settle_ties(words: NDArray[Any], values: NDArray[Any]) -> None:
    """Move float32 numbers halfway between two bfloat16 ones towards their float64 values, against double rounding.

    One more in the bits is further from zero, whatever the sign.
    """
    ties = numpy.flatnonzero((words & 0xFFFF) == _TIE)
    if ties.size:
        exact, single = numpy.abs(values[ties]), numpy.abs(words[ties].view(numpy.float32)).astype(numpy.float64)
        words[ties] += (exact > single).astype(numpy.uint32)
        words[ties] -= (exact < single).astype(numpy.uint32)


def rounded(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Return the numbers as they are once they were stored in a type of WRITTEN, in float32 or float64."""
    return decoded(dtype, encoded(values, dtype).data).reshape(values.shape)
