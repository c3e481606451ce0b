"""The element types of the safetensors format: their sizes, and how one element becomes a Python number."""

import struct

from lora_inspect.fast_namedtuple import NamedTuple

# What a dimension of a tensor, and a place in a file, is below.
SIZES = 1 << 63

# Source: the `Dtype` enumeration of the safetensors crate.
BITS = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}

# What a weight may be stored in for its entries to be the weight itself, not codes that need a scale.
PLAIN_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})

# What people call the types that a floating weight is written in, and what the format does.
DTYPE_NAMES = {
    **dict.fromkeys(("float32", "fp32"), "F32"),
    **dict.fromkeys(("float16", "fp16"), "F16"),
    **dict.fromkeys(("bfloat16", "bf16"), "BF16"),
}

# Eight bits whose codes are numbers by themselves; a weight of them may have a scale beside it.
FP8 = frozenset({"F8_E4M3", "F8_E5M2"})


class Grid(NamedTuple):
    """The numbers of a type: bits of the mantissa after the point, and the exponent of the least normal number.

    Whole numbers are as far apart as the numbers below that exponent are.
    """

    bits: int
    least: int


GRIDS = {
    "F64": Grid(52, -1022),
    "F32": Grid(23, -126),
    "F16": Grid(10, -14),
    "BF16": Grid(7, -126),
    "F8_E4M3": Grid(3, -6),
    "F8_E5M2": Grid(2, -14),
    "I8": Grid(7, 7),
}
# The variance of what rounding adds to a number, in squares of the distance between two numbers: that of a number
# anywhere between them.
ROUNDING = 1 / 12

_STRUCT = {
    "F64": "<d",
    "F32": "<f",
    "F16": "<e",
    "I64": "<q",
    "U64": "<Q",
    "I32": "<i",
    "U32": "<I",
    "I16": "<h",
    "U16": "<H",
    "I8": "<b",
    "U8": "<B",
}


def decode_number(dtype: str, data: bytes) -> float | int | bool | None:
    """Return one little-endian element of `dtype` as a Python number, or None where the dtype has no plain reading."""
    if dtype == "BOOL":
        return data != b"\x00"
    if dtype == "BF16":
        data, dtype = b"\x00\x00" + data, "F32"
    if dtype == "F8_E5M2":
        data, dtype = b"\x00" + data, "F16"
    if dtype == "F8_E4M3":
        return _decode_e4m3(data[0])
    if dtype not in _STRUCT:
        return None
    number: float | int = struct.unpack(_STRUCT[dtype], data)[0]
    return number


def _decode_e4m3(code: int) -> float:
    sign = -1.0 if code & 0x80 else 1.0
    exponent, mantissa = (code >> 3) & 0xF, code & 0x7
    if exponent == 0xF and mantissa == 0x7:
        return float("nan")
    if exponent == 0:
        return sign * mantissa * 2.0**-9
    return sign * (1 + mantissa / 8) * 2.0 ** (exponent - 7)
