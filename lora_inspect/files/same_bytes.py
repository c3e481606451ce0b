"""Whether two tensors hold the same bytes, read a little of each at a time. Standard library only."""

from collections.abc import Iterable

from lora_inspect.files.input_file import InputFile
from lora_inspect.files.safetensors.header import TensorInfo

# Both pieces stay in the second-level cache.
_PIECE = 1 << 18


def are_same_bytes(one: TensorInfo, other: TensorInfo, ranges: Iterable[tuple[int, int, int]]) -> bool:
    """Whether each of the `ranges` (first byte in `one`, first byte in `other`, how many) is alike in both tensors.

    Raises LoraInspectError where a file is not the one any more whose header was read.
    """
    buffers = bytearray(_PIECE), bytearray(_PIECE)
    with InputFile(one.file, one.identity) as first, InputFile(other.file, other.identity) as second:
        for start, its_start, count in ranges:
            for position in range(0, count, _PIECE):
                size = min(_PIECE, count - position)
                for buffer in buffers:
                    del buffer[size:]
                    buffer.extend(bytes(size - len(buffer)))
                first.read_into(one.start + start + position, buffers[0])
                second.read_into(other.start + its_start + position, buffers[1])
                if buffers[0] != buffers[1]:
                    return False
    return True
