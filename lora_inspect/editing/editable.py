"""The file that an edit changes, with notes before a new file replaces it.

Some metadata are hashes of the file itself. `known_hashes` computes them, and an edit updates those that it makes
wrong.
"""

import os
import stat
from collections.abc import Mapping

from lora_inspect.errors import CouldNotWorkError, RefusedError
from lora_inspect.files.checkpoint import Checkpoint, open_checkpoint
from lora_inspect.files.file_types import GGUF_MAGIC
from lora_inspect.files.hashes import (
    LEGACY_HASH,
    MODEL_HASH,
    SPEC_HASH,
    FileHashes,
    file_hashes,
    legacy_hash,
    sshs_hashes,
)
from lora_inspect.files.input_file import InputFile
from lora_inspect.files.locations import refuse_remote
from lora_inspect.files.safetensors.edit_in_place import Headed, repair
from lora_inspect.files.safetensors.writer import renamed
from lora_inspect.progress import Progress, silent

_WRITABLE = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH


def editable_file(path: str) -> str:
    """The one .safetensors file at `path`; LoraInspectError where there is another number, or another kind."""
    repair(path)
    files = files_of(path, open_checkpoint(path))
    if not files:
        raise RefusedError(path, "the folder holds a configuration but no weights, so there is no metadata")
    if len(files) > 1:
        raise RefusedError(
            path,
            f"it is a set of {len(files)} files, each with its own metadata",
            f"name one of them, as {files[0]}",
        )
    if is_gguf(files[0]):
        raise RefusedError(
            path,
            "it is a GGUF file, and lora-inspect reads its metadata but does not change it",
            "use gguf_new_metadata.py of llama.cpp",
        )
    return files[0]


def files_of(path: str, checkpoint: Checkpoint) -> tuple[str, ...]:
    """The files that a path means: of a shard that is named itself, that one."""
    return (path,) if path in checkpoint.files else checkpoint.files


def is_gguf(file: str) -> bool:
    """Return True for a file of llama.cpp's format, by its first bytes."""
    with InputFile(file) as source:
        return source.identity.bytes >= len(GGUF_MAGIC) and source.read(0, len(GGUF_MAGIC)) == GGUF_MAGIC


def check_own_place(file: str, in_place: bool) -> list[str]:
    """Return notes on the side effects of replacing a file. Raises LoraInspectError for an unrequested one."""
    refuse_remote(file, "write another file with -o")
    if os.path.islink(file):
        raise RefusedError(
            file, f"it is a link to {os.path.realpath(file)}", "name that file, or write another one with -o"
        )
    status = os.stat(file)
    if not status.st_mode & _WRITABLE:
        raise CouldNotWorkError(file, "it is write-protected", "allow writing to it, or write another one with -o")
    if status.st_nlink < 2:
        return []
    if in_place:
        raise RefusedError(
            file,
            f"it has {status.st_nlink} names (hard links), and programs that read another one would not notice "
            "an interrupted rewrite",
            "leave --in-place out, or write another file with -o",
        )
    return [f"{file}: it had {status.st_nlink} names (hard links); the others keep the file as it was."]


def hashes_beside(headed: Headed, after: Mapping[str, str], asked: bool, progress: Progress = silent) -> dict[str, str]:
    """The hashes that have to be others beside this metadata, or all of them, for which the file is read twice."""
    infos = list(headed.tensors.values())
    if asked:
        found = sshs_hashes([renamed(info, info.name) for info in infos], after, progress)
        return {**found, SPEC_HASH: "0x" + _file_hashes(headed, progress).data}
    stays = after.get(LEGACY_HASH) is not None and after[LEGACY_HASH] == headed.metadata.get(LEGACY_HASH)
    if not stays or _of_trainer(after) == _of_trainer(headed.metadata):
        return {}
    return {LEGACY_HASH: legacy_hash(infos, after)}


def _of_trainer(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the metadata that the hashes of sd-scripts cover."""
    return {key: value for key, value in metadata.items() if key.startswith("ss_")}


def known_hashes(headed: Headed, progress: Progress = silent) -> dict[str, str]:
    """Return every known hash of a file by its common name; the file is read twice.

    If the file states the legacy hash as libraries of 2023 computed it, that form is returned.
    """
    found, infos = _file_hashes(headed, progress), list(headed.tensors.values())
    sshs = sshs_hashes([renamed(info, info.name) for info in infos], headed.metadata, progress)
    if headed.metadata.get(LEGACY_HASH) == (early := legacy_hash(infos, headed.metadata, padded=False)):
        sshs[LEGACY_HASH] = early
    return {
        "SHA256": found.whole,
        "AutoV1": found.piece,
        "AutoV2": found.whole[:10],
        "AutoV3": found.data[:12],
        MODEL_HASH: sshs[MODEL_HASH],
        LEGACY_HASH: sshs[LEGACY_HASH],
        SPEC_HASH: f"0x{found.data}",
    }


def _file_hashes(headed: Headed, progress: Progress) -> FileHashes:
    return file_hashes(headed.file, headed.data_start, headed.identity, progress)
