"""The header-only view of a checkpoint: one file, a sharded set, or a folder. Standard library only."""

import os
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from lora_inspect.dtypes import decode_number
from lora_inspect.errors import LoraInspectError
from lora_inspect.header import PICKLE_ENDINGS, TensorInfo, read_header, refuse_foreign
from lora_inspect.json_text import parse_json

SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d+)-of-(?P<count>\d+)\.safetensors")
ADAPTER_CONFIG = "adapter_config.json"
PEFT_WEIGHTS = "adapter_model"


class Checkpoint(NamedTuple):
    """Every tensor of a file, of a set of shards or of a folder by name, in file order, and what lies beside them.

    `path` is what the user named; `root` is the folder that holds a sharded or folder checkpoint and None for
    a single file. `config` is an `adapter_config.json` found beside the file; whether it belongs to the file
    is for the reader of the tensors to say. `metadata` is the union over the files.
    """

    path: str
    files: tuple[str, ...]
    tensors: dict[str, TensorInfo]
    file_metadata: dict[str, dict[str, str]]
    metadata: dict[str, str]
    root: str | None = None
    index_path: str | None = None
    config: dict[str, Any] | None = None
    config_path: str | None = None

    @property
    def paths(self) -> tuple[str, ...]:
        """Every file that was read: the weights, the index and the config."""
        return (*self.files, *(path for path in (self.index_path, self.config_path) if path))

    @property
    def bytes(self) -> int:
        """Size of all files, in bytes."""
        return sum(os.path.getsize(file) for file in self.files)

    def numbers(self, names: Iterable[str]) -> dict[str, float | int | bool | None]:
        """The values of one-element tensors (alphas, flags) by name; None where a dtype has no plain reading.

        Raises LoraInspectError for a tensor with more than one element.
        """
        wanted: dict[str, list[TensorInfo]] = {}
        for name in names:
            info = self.tensors[name]
            if info.numel != 1:
                raise LoraInspectError(
                    f"{info.file}: {name} has shape {list(info.shape)}, but a single number was expected there; "
                    "the file is damaged or uses the name for something else."
                )
            wanted.setdefault(info.file, []).append(info)
        values: dict[str, float | int | bool | None] = {}
        for file, infos in wanted.items():
            with open(file, "rb") as handle:
                for info in infos:
                    handle.seek(info.start)
                    values[info.name] = decode_number(info.dtype, handle.read(info.nbytes))
        return values


def open_checkpoint(path: str) -> Checkpoint:
    """The view of `path`: a .safetensors file, a shard or index.json of a set, or a folder that holds one of them.

    Raises LoraInspectError for whatever is not such a file, and never unpickles anything.
    """
    path = os.fspath(path)
    if os.path.isdir(path):
        return _open_folder(path)
    if not os.path.exists(path):
        raise LoraInspectError(f"{path}: there is no such file or folder; check the path.")
    if not os.path.isfile(path):
        raise LoraInspectError(f"{path}: it is neither a file nor a folder; name a file on a disk.")
    folder, name = os.path.split(path)
    if name.endswith(".index.json"):
        return _open_index(path, named=path)
    shard = SHARD.fullmatch(name)
    if shard and int(shard["count"]) > 1:
        return _open_shards(folder, shard["stem"], int(shard["count"]), named=path)
    return _single_file(path, named=path)


def find_checkpoints(folder: str) -> Iterator[str]:
    """What there is to open below `folder`: PEFT folders and sharded sets as one path each, other files singly."""
    for parent, folders, names in os.walk(folder):
        folders.sort()
        seen: set[str] = set()
        for name in sorted(names):
            if not name.endswith(".safetensors"):
                continue
            shard = SHARD.fullmatch(name)
            group = shard["stem"] if shard and int(shard["count"]) > 1 else name
            if group not in seen:
                seen.add(group)
                yield os.path.join(parent, name)


def is_checkpoint_folder(folder: str) -> bool:
    """Whether `folder` is one checkpoint (a PEFT folder, a sharded set, one file) and not a collection of several."""
    names = os.listdir(folder)
    weights = [name for name in names if name.endswith(".safetensors")]
    stems = {shard["stem"] if (shard := SHARD.fullmatch(name)) else name for name in weights}
    has_subfolders = any(os.path.isdir(os.path.join(folder, name)) for name in names)
    if PEFT_WEIGHTS + ".safetensors" in names or any(name.endswith(".safetensors.index.json") for name in names):
        return True
    return len(stems) == 1 and not has_subfolders


def read_json(file: str) -> Any:
    """The parsed content of a small JSON file beside a checkpoint; LoraInspectError where it is not JSON."""
    try:
        with open(file, "rb") as handle:
            content = handle.read()
    except OSError as error:
        raise LoraInspectError(
            f"{file}: it cannot be read ({error.strerror}); check the path and its rights."
        ) from None
    try:
        return parse_json(content)
    except ValueError:
        refuse_foreign(file, content[:64], len(content))
        raise LoraInspectError(f"{file}: it is not valid JSON; fetch it again or repair it.") from None


def _open_folder(folder: str) -> Checkpoint:
    names = sorted(os.listdir(folder))
    if PEFT_WEIGHTS + ".safetensors" in names:
        return _single_file(os.path.join(folder, PEFT_WEIGHTS + ".safetensors"), named=folder, root=folder)
    indexes = [name for name in names if name.endswith(".safetensors.index.json")]
    if len(indexes) == 1:
        return _open_index(os.path.join(folder, indexes[0]), named=folder)
    weights = [name for name in names if name.endswith(".safetensors")]
    sets = {(shard["stem"], int(shard["count"])) for name in weights if (shard := SHARD.fullmatch(name))}
    if len(sets) == 1 and all(SHARD.fullmatch(name) for name in weights):
        ((stem, count),) = sets
        return _open_shards(folder, stem, count, named=folder)
    if len(weights) == 1:
        return _single_file(os.path.join(folder, weights[0]), named=folder, root=folder)
    pickles = [name for name in names if name.lower().endswith(PICKLE_ENDINGS)]
    if not weights and pickles:
        read_header(os.path.join(folder, pickles[0]))
    found = f"{len(weights)} .safetensors files" if weights else "no .safetensors file"
    raise LoraInspectError(
        f"{folder}: the folder holds {found}, but one checkpoint was expected; name the file itself."
    )


def _single_file(file: str, named: str, root: str | None = None) -> Checkpoint:
    tensors, metadata = read_header(file)
    config, config_path = _config_beside(file)
    return Checkpoint(
        path=named,
        files=(file,),
        tensors=tensors,
        file_metadata={file: metadata},
        root=root,
        config=config,
        config_path=config_path,
        metadata=metadata,
    )


def _config_beside(file: str) -> tuple[dict[str, Any] | None, str | None]:
    path = os.path.join(os.path.dirname(file), ADAPTER_CONFIG)
    if not os.path.isfile(path):
        return None, None
    config = read_json(path)
    if not isinstance(config, dict):
        raise LoraInspectError(f"{path}: it is JSON but not an object; fetch the adapter's configuration again.")
    return config, path


def _open_index(index: str, named: str) -> Checkpoint:
    folder = os.path.dirname(index)
    content = read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise LoraInspectError(f"{index}: it has no `weight_map` of tensor names to files; fetch the index again.")
    names = sorted(set(weight_map.values()))
    if any(os.path.basename(name) != name for name in names):
        raise LoraInspectError(f"{index}: it points outside its own folder; fetch the index again.")
    checkpoint = _join([os.path.join(folder, name) for name in names], folder, index, named)
    for tensor, name in weight_map.items():
        if tensor not in checkpoint.tensors or os.path.basename(checkpoint.tensors[tensor].file) != name:
            raise LoraInspectError(
                f"{index}: it places {tensor} in {name}, which does not hold it; fetch the set again."
            )
    return checkpoint


def _open_shards(folder: str, stem: str, count: int, named: str) -> Checkpoint:
    files = [
        os.path.join(folder, name)
        for name in sorted(os.listdir(folder or "."))
        if (shard := SHARD.fullmatch(name)) and shard["stem"] == stem and int(shard["count"]) == count
    ]
    if len(files) != count:
        raise LoraInspectError(
            f"{os.path.join(folder, stem)}: {len(files)} of {count} shards are there; fetch the missing ones."
        )
    index = os.path.join(folder, f"{stem}.safetensors.index.json")
    return _join(files, folder, index if os.path.isfile(index) else None, named)


def _join(files: list[str], folder: str, index: str | None, named: str) -> Checkpoint:
    tensors: dict[str, TensorInfo] = {}
    file_metadata: dict[str, dict[str, str]] = {}
    for file in files:
        if not os.path.exists(file):
            raise LoraInspectError(f"{file}: the shard is missing; fetch it.")
        shard, file_metadata[file] = read_header(file)
        for name, info in shard.items():
            if name in tensors:
                raise LoraInspectError(f"{file}: {name} is also in {tensors[name].file}; fetch the set again.")
            tensors[name] = info
    metadata = {key: value for found in file_metadata.values() for key, value in found.items()}
    config, config_path = _config_beside(files[0]) if files else (None, None)
    return Checkpoint(
        path=named,
        files=tuple(files),
        tensors=tensors,
        file_metadata=file_metadata,
        root=folder or ".",
        index_path=index,
        config=config,
        config_path=config_path,
        metadata=metadata,
    )
