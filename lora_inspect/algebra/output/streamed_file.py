"""A .safetensors file with tensors that come one by one: its header is written last, and it is read back."""

import struct
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from zlib import crc32

import numpy
from numpy.typing import NDArray

from lora_inspect.errors import CouldNotWorkError
from lora_inspect.files.hashes import HASH_KEYS, LEGACY_HASH, MODEL_HASH, sshs_hashes
from lora_inspect.files.input_file import Identity, InputFile
from lora_inspect.files.outputs import new_file
from lora_inspect.files.safetensors.header import LENGTH_BYTES, TensorInfo, read_header
from lora_inspect.files.safetensors.writer import (
    ALIGNMENT,
    ROOM,
    Computed,
    Content,
    TensorPlan,
    encode_header,
    header_text,
    write_all_at,
)
from lora_inspect.files.system import read_at

# So many bytes of an output are read back at a time, which stay near the processor.
_PIECE = 1 << 18


def bytes_of(tensor: NDArray[numpy.generic]) -> memoryview:
    """Return the bytes of a contiguous array."""
    data: Any = tensor.reshape(-1).view(numpy.uint8)  # numpy's types know of buffers from Python 3.12 on
    return memoryview(data)


def alpha_plan(key: str) -> TensorPlan:
    """Return the plan of an alpha."""
    return TensorPlan(key, "F32", ())


def streamed_bytes(plans: Sequence[TensorPlan], metadata: Mapping[str, str]) -> int:
    """Return the bytes of a file with these tensors and metadata."""
    return _room(plans, metadata) + bytes_behind(plans)


def bytes_behind(plans: Sequence[TensorPlan]) -> int:
    """Return the bytes of the tensors after the header and the alphas."""
    return sum(plan.nbytes for plan in plans if not _is_in_front(plan))


def _is_in_front(plan: TensorPlan) -> bool:
    """Return True if the tensor is one number of four bytes, such as an alpha; these precede all larger ones."""
    return not plan.shape and plan.dtype == "F32"


def _room(plans: Sequence[TensorPlan], metadata: Mapping[str, str]) -> int:
    """Return the bytes before the factors: of a header with room for later numbers, and of the alphas.

    Factors of eight bytes are aligned as well.
    """
    alphas = sum(plan.nbytes for plan in plans if _is_in_front(plan))
    return len(encode_header(plans, metadata, ROOM)) + (alphas + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT


def hash_keys(hashed: Collection[str]) -> tuple[str, ...]:
    """Return the keys of the hashes that a file gets if `hashed` are the keys of an input; none without hashes."""
    return (MODEL_HASH, LEGACY_HASH) if any(key in HASH_KEYS for key in hashed) else ()


@contextmanager
def streamed_file(
    path: str,
    plans: Sequence[TensorPlan],
    metadata: Callable[[], Mapping[str, str]],
    inputs: Mapping[str, Identity] | None,
    force: bool,
    hashed: Collection[str] = (),
    look: Callable[[str], None] | None = None,
) -> Iterator["StreamedFile"]:
    """Yield a file that takes its name when the block ends well, and vanishes otherwise.

    `plans` are the tensors at the largest sizes that they may have, and `metadata` is asked before the block and after
    it. If a key of `hashed` is that of a hash that programs look up, the metadata get such hashes. The file is read
    back before it appears, and `look` is called with its path then. Raises LoraInspectError if the disk refuses, and if
    it holds something else.
    """
    sums: dict[str, int] = {}

    def prove(complete: str) -> None:
        check_written(complete, path, read_header(complete)[0], sums)
        if look:
            look(complete)

    with new_file(path, inputs, force, prove) as descriptor:
        file = StreamedFile(descriptor, _room(plans, metadata()), sums)
        yield file
        file.finish(dict(metadata()), bool(hash_keys(hashed)))


class StreamedFile:
    """The file on its way.

    In front of the tensors is `room` for the header and, right before the tensors, for the alphas. A tensor that does
    not come leaves its room to the header. `sums` gets the checksums by key.
    """

    def __init__(self, descriptor: int, room: int, sums: dict[str, int]) -> None:
        self._descriptor, self._sums = descriptor, sums
        self._begin = self._end = room
        self._places: list[tuple[TensorPlan, int]] = []
        self._alphas: dict[str, bytes] = {}

    def append(self, plan: TensorPlan, data: memoryview | bytes) -> None:
        """Write the whole of the next tensor."""
        self._sums[plan.name] = crc32(data)
        if _is_in_front(plan):
            self._alphas[plan.name] = bytes(data)
            return
        self._places.append((plan, self._end))
        self._end = write_all_at(self._descriptor, data, self._end)

    def set_alpha(self, key: str, alpha: float) -> None:
        """Take a number that is written at the end."""
        self.append(alpha_plan(key), struct.pack("<f", alpha))

    def finish(self, metadata: dict[str, str], is_hashed: bool) -> None:
        """Write the alphas and the header."""
        begin = self._begin - sum(map(len, self._alphas.values()))
        write_all_at(self._descriptor, b"".join(self._alphas.values()), begin)
        plans = [*map(alpha_plan, self._alphas), *(plan for plan, _ in self._places)]
        if is_hashed:
            own = [Content(alpha_plan(key), data) for key, data in self._alphas.items()]
            own += [Content(plan, Computed(partial(self._read, plan, at))) for plan, at in self._places]
            metadata |= sshs_hashes(own, metadata)
        text = header_text(plans, metadata)
        if LENGTH_BYTES + len(text) > begin:
            raise AssertionError(f"a header of {len(text)} bytes does not fit the {begin} before the tensors")
        header = (begin - LENGTH_BYTES).to_bytes(LENGTH_BYTES, "little") + text.ljust(begin - LENGTH_BYTES)
        write_all_at(self._descriptor, header, 0)

    def _read(self, plan: TensorPlan, at: int) -> bytes:
        pieces, stop = list[bytes](), at + plan.nbytes
        while at < stop:
            pieces.append(read_at(self._descriptor, min(stop - at, _PIECE), at))
            at += len(pieces[-1])
        return b"".join(pieces)


def check_written(complete: str, path: str, tensors: Mapping[str, TensorInfo], sums: Mapping[str, int]) -> None:
    """Raise LoraInspectError if the complete file of the output at `path` has other bytes than were made.

    `tensors` are the ones in its header, and `sums` the checksums by key.
    """
    with InputFile(complete) as source:
        for key, expected in sums.items():
            found = 0
            for piece in source.pieces(tensors[key].start, tensors[key].stop, _PIECE):
                found = crc32(piece, found)
            if found != expected:
                raise CouldNotWorkError(
                    path, f"{key} was read back with other bytes than were written", "check the disk, and try again"
                )
