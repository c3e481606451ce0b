"""How the bytes of a header are laid out, which its meaning does not show. Standard library only."""

import re

from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.files.gguf.gguf_format import MAGIC
from lora_inspect.files.input_file import InputFile
from lora_inspect.files.safetensors.strict_header import METADATA

_LENGTH_BYTES = 8
_FIRST, _PIECE = 64, 1 << 16
_BLANKS = b" \t\r\n"
_METADATA_FIRST = re.compile(rb'\s*\{\s*"' + METADATA.encode() + rb'"')


class HeaderShape(NamedTuple):
    """The first two bytes of the JSON of `file`, whether its metadata come first, and the blanks behind it.

    `blanks` is how many there are, and `spaces` says that all of them are spaces.
    """

    file: str
    start: bytes
    metadata_first: bool
    blanks: int
    spaces: bool


def header_shapes(checkpoint: Checkpoint) -> list[HeaderShape]:
    """That of every safetensors file; a GGUF file has a header of another kind."""
    return [shape for file in checkpoint.files if (shape := _shape(file, checkpoint))]


def _shape(file: str, checkpoint: Checkpoint) -> HeaderShape | None:
    with InputFile(file, checkpoint.inputs[file]) as source:
        start = bytes(source.read(0, _LENGTH_BYTES))
        if start.startswith(MAGIC):
            return None
        stop = _LENGTH_BYTES + int.from_bytes(start, "little")
        first = bytes(source.read(_LENGTH_BYTES, min(_FIRST, stop - _LENGTH_BYTES)))
        blanks, spaces = 0, True
        while stop - blanks > _LENGTH_BYTES:
            size = min(_PIECE, stop - blanks - _LENGTH_BYTES)
            piece = bytes(source.read(stop - blanks - size, size))
            behind = piece[len(piece.rstrip(_BLANKS)) :]
            blanks, spaces = blanks + len(behind), spaces and not behind.strip(b" ")
            if len(behind) < size:
                break
    return HeaderShape(file, first[:2], bool(_METADATA_FIRST.match(first)), blanks, spaces)
