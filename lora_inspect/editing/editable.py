"""Which file a path means to an edit, and what is said before that file takes its own place."""

import os
import stat

from lora_inspect.errors import LoraInspectError
from lora_inspect.files.checkpoint import Checkpoint, open_checkpoint
from lora_inspect.files.gguf.gguf_format import MAGIC
from lora_inspect.files.input_file import InputFile
from lora_inspect.files.locations import refuse_remote
from lora_inspect.files.safetensors.edit_in_place import put_right

_WRITABLE = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH


def editable_file(path: str) -> str:
    """The one .safetensors file at `path`; LoraInspectError where there is another number, or another kind."""
    put_right(path)
    files = files_of(path, open_checkpoint(path))
    if not files:
        raise LoraInspectError(f"{path}: the folder holds a configuration and no weights, so there is no metadata.")
    if len(files) > 1:
        raise LoraInspectError(
            f"{path}: it is a set of {len(files)} files, each with a metadata of its own; name one of them, as "
            f"{files[0]}."
        )
    if is_gguf(files[0]):
        raise LoraInspectError(
            f"{path}: it is a GGUF file, of which lora-inspect reads the metadata and changes none; use "
            "gguf_new_metadata.py of llama.cpp."
        )
    return files[0]


def files_of(path: str, checkpoint: Checkpoint) -> tuple[str, ...]:
    """The files that a path means: of a shard that is named itself, that one."""
    return (path,) if path in checkpoint.files else checkpoint.files


def is_gguf(file: str) -> bool:
    """Whether it is a file of llama.cpp's format, by its first bytes."""
    with InputFile(file) as source:
        return source.identity.bytes >= len(MAGIC) and source.read(0, len(MAGIC)) == MAGIC


def check_own_place(file: str, in_place: bool) -> list[str]:
    """Sentences on what replacing a file does beside; LoraInspectError where it would do what nobody asked for."""
    refuse_remote(file, "write another file with -o")
    if os.path.islink(file):
        raise LoraInspectError(
            f"{file}: it is a link to {os.path.realpath(file)}; name that file, or write another one with -o."
        )
    status = os.stat(file)
    if not status.st_mode & _WRITABLE:
        raise LoraInspectError(f"{file}: it is write-protected; allow writing to it, or write another one with -o.")
    if status.st_nlink < 2:
        return []
    if in_place:
        raise LoraInspectError(
            f"{file}: it has {status.st_nlink} names (hard links), and whoever reads another one would not know of a "
            "rewriting that was broken off; leave --in-place out, or write another file with -o."
        )
    return [f"{file}: it had {status.st_nlink} names (hard links); the others keep the file as it was."]
