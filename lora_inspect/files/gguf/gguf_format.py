"""The bytes of a GGUF file: types of values and tensors, metadata, and the keys of an adapter.

Metadata are keys with numbers, strings and lists of them. The first keys of a header show if the file is an adapter:
models are large, and of no use here. Standard library only.

Source: the specification of GGUF in the ggml repository, `gguf.cpp` there, and `llama-adapter.cpp` of llama.cpp.
"""

import json
import struct
from collections.abc import Callable, Mapping
from typing import Any, Final

from lora_inspect.errors import DamagedError, LoraInspectError, RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.file_types import GGUF_MAGIC
from lora_inspect.files.input_file import InputFile
from lora_inspect.files.strict_json import JSON_ITEMS, KEY_BYTES, METADATA_CHARACTERS, METADATA_KEYS

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
    """Return the first multiple of `alignment` from `position` on."""
    return position + -position % alignment


AGAIN = "fetch the file again"
_PIECE_BYTES = 1 << 16
# Only language models say how their text becomes tokens, with lists of all tokens.
OF_TOKENS = "tokenizer."


class Value(NamedTuple):
    """A value of the metadata: the number of its type, its position, and the value itself."""

    type: int
    start: int
    value: Any


class Cursor:
    """A reader of a file from a position on, a piece at a time. Raises LoraInspectError at the file's end."""

    def __init__(self, source: InputFile, start: int) -> None:
        self.file, self.position, self.size = source.path, start, source.identity.bytes
        self.identity = source.identity
        self._source = source
        self._piece, self._first = b"", start

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes."""
        self.check(count)
        begin = self.position - self._first
        if begin + count > len(self._piece):
            length = min(max(count, _PIECE_BYTES), self.size - self.position)
            self._piece, self._first, begin = bytes(self._source.read(self.position, length)), self.position, 0
        self.position += count
        return self._piece[begin : begin + count]

    def check(self, count: int) -> None:
        """Raise LoraInspectError if the file ends before `count` more bytes."""
        if count > self.size - self.position:
            raise DamagedError(
                self.file,
                f"its GGUF header goes beyond the end of the file at byte {self.size}: it is truncated or damaged",
                AGAIN,
            )

    def number(self, form: str) -> Any:
        """Return the next number, spelled as `struct` does."""
        form = f"<{form}"
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self, longest: int) -> str:
        """Return the next string, of up to `longest` bytes."""
        length = self.number("Q")
        self.check(length)
        if length > longest:
            raise DamagedError(
                self.file, f"a string of its header has {length:,} bytes, but lora-inspect reads at most {longest:,}"
            )
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            raise DamagedError(self.file, "its GGUF header holds text that is not UTF-8", AGAIN) from None


# What raises LoraInspectError once a key shows that a file is not what it is read as: (the key, what is known by then).
Expect = Callable[[str, Mapping[str, Value]], None]


def read_values(cursor: Cursor, keys: int, expect: Expect) -> dict[str, Value]:
    """Return the metadata of a file; `expect` gets each key once it is read, and keys of tokens before that."""
    values: dict[str, Value] = {}
    room = METADATA_CHARACTERS
    for _ in range(keys):
        key = cursor.text(KEY_BYTES)
        if key.startswith(OF_TOKENS):
            expect(key, values)
        if key in values:
            raise DamagedError(cursor.file, f"its GGUF header has {key} twice", "write the file again")
        kind, start = cursor.number("I"), cursor.position
        value = _read_array(cursor, key, room) if kind == ARRAY else _read_value(cursor, key, kind, room)
        values[key] = Value(kind, start, value)
        expect(key, values)
        room -= cursor.position - start + len(key)
        if room < 0:
            raise DamagedError(
                cursor.file,
                f"its metadata has more than the {METADATA_CHARACTERS:,} bytes that lora-inspect reads",
                "write the file again with less metadata",
            )
    return values


def first_value(cursor: Cursor, keys: int, wanted: str) -> Any:
    """Return the value of one key; None if it is missing, or after the keys that only models have.

    Raises LoraInspectError if the file ends before.
    """
    for _ in range(min(keys, METADATA_KEYS)):
        key = cursor.text(KEY_BYTES)
        if key.startswith(OF_TOKENS):
            return None
        kind, room = cursor.number("I"), METADATA_CHARACTERS
        value = _read_array(cursor, key, room) if kind == ARRAY else _read_value(cursor, key, kind, room)
        if key == wanted:
            return value
    return None


def _read_value(cursor: Cursor, key: str, kind: int, room: int) -> Any:
    if kind == STRING:
        return cursor.text(max(room, 0))
    if kind not in NUMBERS:
        raise DamagedError(cursor.file, f"{key} has a value of the unknown type {kind}", AGAIN)
    if kind == BOOL:
        return cursor.take(1) != b"\0"
    return cursor.number(NUMBERS[kind])


def _read_array(cursor: Cursor, key: str, room: int) -> list[Any]:
    kind, count = cursor.number("I"), cursor.number("Q")
    # An element has one byte at least.
    cursor.check(count)
    if count > JSON_ITEMS or count > room:
        raise RefusedError(cursor.file, f"{key} is a list of {count:,} values, too many for lora-inspect to read")
    found = []
    for _ in range(count):
        before = cursor.position
        found.append(_read_value(cursor, key, kind, room))
        room -= cursor.position - before
    return found


def as_text(value: Any) -> str:
    """Return a value in the metadata of a checkpoint: numbers and lists as JSON, strings as they are."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


ENDING = ".gguf"


def is_gguf_adapter(path: str) -> bool:
    """Return True if a .gguf file says that it is an adapter, or ends before it says anything.

    A model states its type among its first keys. The reader reports a file that is truncated before that.
    """
    if not path.lower().endswith(ENDING):
        return False
    try:
        with InputFile(path) as source:
            if source.read(0, min(len(GGUF_MAGIC), source.identity.bytes)) != GGUF_MAGIC:
                return False
            return _kind(source) == ADAPTER
    except LoraInspectError:
        return True


def kind_of_gguf(path: str) -> object:
    """Return the type that a GGUF file states, or None. Raises LoraInspectError if the file ends before it."""
    with InputFile(path) as source:
        return _kind(source)


def _kind(source: InputFile) -> object:
    cursor = Cursor(source, len(GGUF_MAGIC))
    if cursor.number("I") not in VERSIONS:
        return None
    cursor.number("Q")
    said: object = first_value(cursor, cursor.number("Q"), TYPE_KEY)
    return said
