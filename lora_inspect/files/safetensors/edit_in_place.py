"""A .safetensors file with another metadata, whose tensors' bytes stay what they are: written anew, or where it stands.

Anew, the data keeps its distance from the blocks of the file system, so that one that can share blocks between files
copies none of it.
"""

import os
from collections.abc import Callable, Mapping, Sequence

from lora_inspect.errors import LoraInspectError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.input_file import Identity, InputFile, check_unchanged
from lora_inspect.files.outputs import new_file
from lora_inspect.files.safetensors.byte_copy import copy_bytes, write_all
from lora_inspect.files.safetensors.header import LENGTH_BYTES, TensorInfo, identified_header
from lora_inspect.files.safetensors.header_journal import Editing
from lora_inspect.files.safetensors.writer import ALIGNMENT, ROOM, TensorPlan, header_text, padded_header
from lora_inspect.files.system import give_rights
from lora_inspect.progress import Progress, silent

# File systems share blocks of this size, or of a part of it.
_BLOCK = 4096


class Headed(NamedTuple):
    """A file and what its header says: its tensors in file order, its metadata, and where its data begins."""

    file: str
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    identity: Identity
    data_start: int

    @property
    def room(self) -> int:
        """How many bytes the metadata may gain where it stands; less than none where the header lacks them."""
        return self.data_start - LENGTH_BYTES - len(header_text(self._plans, self.metadata))

    @property
    def _plans(self) -> Sequence[TensorPlan]:
        return [TensorPlan(info.name, info.dtype, info.shape) for info in self.tensors.values()]

    def written(self, metadata: Mapping[str, str]) -> bytes:
        """The text of its header with another metadata."""
        return header_text(self._plans, metadata)


def read_headed(file: str) -> Headed:
    """The header of one .safetensors file; raises LoraInspectError where it is none."""
    tensors, metadata, identity = identified_header(file)
    with InputFile(file, identity) as source:
        length = int.from_bytes(source.read(0, LENGTH_BYTES), "little")
    return Headed(file, tensors, metadata, identity, LENGTH_BYTES + length)


def write_anew(
    headed: Headed,
    metadata: Mapping[str, str],
    output: str,
    force: bool = False,
    progress: Progress = silent,
    prove: Callable[[str], None] | None = None,
) -> None:
    """Writes the file with another metadata to `output`, complete or not at all; onto itself with its own rights.

    `progress` is told of the bytes, and `prove` is called with the path of the whole file before it appears. Raises
    LoraInspectError where the disk refuses, where the file is not the one any more that was read, and where the
    metadata is more than is read back.
    """
    is_same = output == headed.file

    def prove_all(partial: str) -> None:
        _prove(headed, metadata, partial, output)
        if prove:
            prove(partial)
        if is_same:
            check_unchanged({headed.file: headed.identity})

    is_aligned = headed.data_start % ALIGNMENT == 0
    distance = {"behind": headed.data_start % _BLOCK, "step": _BLOCK} if is_aligned else {}
    header = padded_header(headed.written(metadata), ROOM, **distance)
    inputs = {} if is_same else {headed.file: headed.identity}
    with (
        new_file(output, inputs, force or is_same, prove_all) as descriptor,
        InputFile(headed.file, headed.identity) as source,
    ):
        if is_same:
            give_rights(descriptor, os.fstat(source.fileno()))
        write_all(descriptor, header)
        end = headed.identity.bytes
        block = min(headed.data_start + -headed.data_start % _BLOCK, end)
        copy_bytes(source, headed.data_start, block, descriptor, len(header))
        behind = len(header) + block - headed.data_start
        copy_bytes(source, block, end, descriptor, behind, progress)


def write_in_place(headed: Headed, metadata: Mapping[str, str], own: Editing) -> None:
    """Writes another metadata into the header where it stands, no byte behind which is touched.

    Raises LoraInspectError where it does not fit, and where the disk refuses.
    """
    text = headed.written(metadata)
    room = headed.data_start - LENGTH_BYTES
    if len(text) > room:
        raise LoraInspectError(
            f"{headed.file}: its header has room for {room:,} bytes, and the new one takes {len(text):,}; leave "
            "--in-place out, so that the file is written anew with room for more."
        )
    own.rewrite(padded_header(text, room - len(text), step=1), headed.identity)


def _prove(headed: Headed, metadata: Mapping[str, str], partial: str, output: str) -> None:
    """Raises LoraInspectError where the new file is not read as the old one with the metadata."""
    try:
        found = read_headed(partial)
    except LoraInspectError as error:
        raise LoraInspectError(str(error).replace(partial, output)) from None
    moved = found.data_start - headed.data_start
    tensors = {
        name: info._replace(file=partial, start=info.start + moved, stop=info.stop + moved, identity=found.identity)
        for name, info in headed.tensors.items()
    }
    if found.tensors != tensors or found.metadata != metadata:
        raise AssertionError(f"{output}: what was written is not what was to be written")
