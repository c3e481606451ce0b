"""The hashes that a metadata states of its own file: which an edit makes others, and what all of them are."""

from collections.abc import Mapping

from lora_inspect.files.hashes import (
    LEGACY_HASH,
    MODEL_HASH,
    SPEC_HASH,
    FileHashes,
    file_hashes,
    legacy_hash,
    sshs_hashes,
)
from lora_inspect.files.safetensors.edit_in_place import Headed
from lora_inspect.files.safetensors.writer import renamed
from lora_inspect.progress import Progress, silent


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
    """What the hashes of sd-scripts cover of a metadata."""
    return {key: value for key, value in metadata.items() if key.startswith("ss_")}


def known_hashes(headed: Headed, progress: Progress = silent) -> dict[str, str]:
    """Every hash of a file under the names that people know it by, for which it is read twice.

    Where the file states the legacy hash as libraries of 2023 took it, it is that.
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
