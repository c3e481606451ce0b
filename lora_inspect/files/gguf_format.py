"""What the bytes of a GGUF file are: the types of its values and of its tensors, and the keys of an adapter.

Source: the specification of GGUF in the ggml repository, `gguf.cpp` there, and `llama-adapter.cpp` of llama.cpp.
"""

from typing import Final

from lora_inspect.records import NamedTuple

MAGIC: Final = b"GGUF"
# Of version 1, which counts in 32 bits, there are no adapters.
VERSIONS: Final = (2, 3)
WRITTEN_VERSION: Final = 3
# Tensors begin at multiples of it where the header names no other number.
ALIGNMENT: Final = 32
# ggml keeps a name in 64 bytes with a zero at its end.
NAME_BYTES: Final = 63
MOST_DIMENSIONS: Final = 4

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
    28: TensorType("F64", 1, 8),
    30: TensorType("BF16", 1, 2),
}
# What adapters are written in.
TYPE_NUMBERS: Final = {
    kind.name: number for number, kind in TENSOR_TYPES.items() if kind.name in ("F32", "F16", "BF16")
}


def aligned(position: int, alignment: int) -> int:
    """The first multiple of `alignment` from `position` on."""
    return position + -position % alignment
