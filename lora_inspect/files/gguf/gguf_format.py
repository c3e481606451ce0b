"""What the bytes of a GGUF file are: the types of its values and of its tensors, and the keys of an adapter.

Source: the specification of GGUF in the ggml repository, `gguf.cpp` there, and `llama-adapter.cpp` of llama.cpp.
"""

from typing import Final

from lora_inspect.fast_namedtuple import NamedTuple

MAGIC: Final = b"GGUF"
# Of version 1, which counts in 32 bits, there are no adapters.
VERSIONS: Final = (2, 3)
WRITTEN_VERSION: Final = 3
# Tensors begin at multiples of it where the header names no other number.
ALIGNMENT: Final = 32
# ggml keeps a name in 64 bytes with a zero at its end.
NAME_BYTES: Final = 63
# Of ggml; programs for pictures and videos store kernels of three dimensions as they are, which have five.
MOST_DIMENSIONS: Final = 4
MOST_DIMENSIONS_OF_PICTURES: Final = 5

BOOL, STRING, ARRAY, FLOAT32, UINT32 = 7, 8, 9, 6, 4
# How `struct` spells a value, by the number of its type.
NUMBERS: Final = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    UINT32: "I",
    5: "i",
    FLOAT32: "f",
    BOOL: "?",
    10: "Q",
    11: "q",
    12: "d",
}

ALIGNMENT_KEY: Final = "general.alignment"
TYPE_KEY: Final = "general.type"
MODEL: Final = "model"
SHARDS_KEY: Final = "split.count"
# Before the name of a tensor: the shape that it had before its numbers were arranged in rows for whole blocks.
SHAPE_KEY: Final = "comfy.gguf.orig_shape."
ARCHITECTURE_KEY: Final = "general.architecture"
ADAPTER_TYPE_KEY: Final = "adapter.type"
ALPHA_KEY: Final = "adapter.lora.alpha"
INVOCATION_KEY: Final = "adapter.alora.invocation_tokens"
# With which the keys begin that only programs of the format understand.
OF_FORMAT: Final = ("general.", "adapter.")
ADAPTER, LORA = "adapter", "lora"


class TensorType(NamedTuple):
    """An element type: each `block` of numbers takes so many `bytes`. The name is that of the safetensors format.

    Quantised ones have names of ggml's, and blocks of more than one number.
    """

    name: str
    block: int
    bytes: int


TENSOR_TYPES: Final = {
    0: TensorType("F32", 1, 4),
    1: TensorType("F16", 1, 2),
    2: TensorType("Q4_0", 32, 18),
    3: TensorType("Q4_1", 32, 20),
    6: TensorType("Q5_0", 32, 22),
    7: TensorType("Q5_1", 32, 24),
    8: TensorType("Q8_0", 32, 34),
    10: TensorType("Q2_K", 256, 84),
    11: TensorType("Q3_K", 256, 110),
    12: TensorType("Q4_K", 256, 144),
    13: TensorType("Q5_K", 256, 176),
    14: TensorType("Q6_K", 256, 210),
    16: TensorType("IQ2_XXS", 256, 66),
    17: TensorType("IQ2_XS", 256, 74),
    18: TensorType("IQ3_XXS", 256, 98),
    19: TensorType("IQ1_S", 256, 50),
    20: TensorType("IQ4_NL", 32, 18),
    21: TensorType("IQ3_S", 256, 110),
    22: TensorType("IQ2_S", 256, 82),
    23: TensorType("IQ4_XS", 256, 136),
    24: TensorType("I8", 1, 1),
    25: TensorType("I16", 1, 2),
    26: TensorType("I32", 1, 4),
    27: TensorType("I64", 1, 8),
    28: TensorType("F64", 1, 8),
    29: TensorType("IQ1_M", 256, 56),
    30: TensorType("BF16", 1, 2),
    34: TensorType("TQ1_0", 256, 54),
    35: TensorType("TQ2_0", 256, 66),
    39: TensorType("MXFP4", 32, 17),
    40: TensorType("NVFP4", 64, 36),
}
# Those whose numbers are codes in blocks.
QUANTISED: Final = frozenset(kind.name for kind in TENSOR_TYPES.values() if kind.block > 1)
# What adapters are written in.
TYPE_NUMBERS: Final = {
    kind.name: number for number, kind in TENSOR_TYPES.items() if kind.name in ("F32", "F16", "BF16")
}


def aligned(position: int, alignment: int) -> int:
    """The first multiple of `alignment` from `position` on."""
    return position + -position % alignment
