"""The header-only view of a checkpoint: one file, a sharded set, or a folder. Standard library only."""

import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lora_inspect.dtypes import BITS, decode_number
from lora_inspect.errors import LoraInspectError

MAX_HEADER_BYTES = 100_000_000  # the safetensors library refuses larger headers
SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d+)-of-(?P<count>\d+)\.safetensors")
ADAPTER_CONFIG = "adapter_config.json"
PEFT_WEIGHTS = "adapter_model"

_PICKLE_ENDINGS = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle")
# How a file begins that is often found under a .safetensors name, and what it is.
_FOREIGN_STARTS = (
    (b"version https://git-lfs.github.com/spec/", "a Git-LFS pointer, not the file itself", "run `git lfs pull`"),
    (b"PK\x03\x04", "a PyTorch pickle (zip)", "save it as .safetensors with the program that wrote it"),
    (b"GGUF", "a GGUF file", "use the .safetensors version of the model"),
    (b"<!DOCTYPE", "a saved web page", "download the file itself"),
    (b"<html", "a saved web page", "download the file itself"),
)


class TensorInfo(NamedTuple):
    """One tensor of a file, unread: `start` and `stop` are byte positions in `file`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    start: int
    stop: int

    @property
    def numel(self) -> int:
        """Number of elements."""
        return count_elements(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in the file, in bytes."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Every tensor of a file, of a set of shards or of a folder by name, in file order, and what lies beside them.

    `path` is what the user named; `root` is the folder that holds a sharded or folder checkpoint and None for
    a single file. `config` is an `adapter_config.json` found beside the file; whether it belongs to the file
    is for the reader of the tensors to say. `metadata` is the union over the files.
    """

    path: str
    files: tuple[str, ...]
    tensors: dict[str, TensorInfo]
    file_metadata: dict[str, dict[str, str]]
    root: str | None = None
    index: str | None = None
    config: dict[str, Any] | None = None
    config_path: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)

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
    folder, name = os.path.split(path)
    if name.endswith(".index.json"):
        return _open_index(path, named=path)
    shard = SHARD.fullmatch(name)
    if shard and int(shard["count"]) > 1:
        return _open_shards(folder, shard["stem"], int(shard["count"]), named=path)
    return _single_file(path, named=path)


def read_header(file: str) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Tensors in file order and metadata of one .safetensors file, with every rule of the format checked.

    Raises LoraInspectError where the file cannot be what its name says.
    """
    if file.lower().endswith(_PICKLE_ENDINGS):
        raise LoraInspectError(
            f"{file}: a pickle can run code when it is opened, so it is never read; "
            "save it as .safetensors with the program that wrote it."
        )
    try:
        with open(file, "rb") as handle:
            size = os.fstat(handle.fileno()).st_size
            start = handle.read(64)
            _refuse_foreign(file, start, size)
            length = int.from_bytes(start[:8], "little")
            if length > MAX_HEADER_BYTES or length > size - 8:
                raise LoraInspectError(
                    f"{file}: its first 8 bytes announce a header of {length} bytes, but the file has {size} and a "
                    f"header at most {MAX_HEADER_BYTES}: it is truncated or no safetensors file; fetch it again."
                )
            handle.seek(8)
            header = handle.read(length)
    except OSError as error:
        raise LoraInspectError(f"{file}: it cannot be read ({error.strerror}); check the path and its rights.") from None
    return _parse_header(file, header, 8 + length, size)


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
        raise LoraInspectError(f"{file}: it cannot be read ({error.strerror}); check the path and its rights.") from None
    try:
        return json.loads(content)
    except ValueError:
        _refuse_foreign(file, content[:64], len(content))
        raise LoraInspectError(f"{file}: it is not valid JSON; fetch it again or repair it.") from None


def count_elements(shape: Iterable[int]) -> int:
    """Product of the dimensions; 1 for a scalar."""
    count = 1
    for dimension in shape:
        count *= dimension
    return count


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
    pickles = [name for name in names if name.lower().endswith(_PICKLE_ENDINGS)]
    if not weights and pickles:
        read_header(os.path.join(folder, pickles[0]))
    found = f"{len(weights)} .safetensors files" if weights else "no .safetensors file"
    raise LoraInspectError(f"{folder}: the folder holds {found}, but one checkpoint was expected; name the file itself.")


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
            raise LoraInspectError(f"{index}: it places {tensor} in {name}, which does not hold it; fetch the set again.")
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
    return Checkpoint(
        path=named,
        files=tuple(files),
        tensors=tensors,
        file_metadata=file_metadata,
        root=folder or ".",
        index=index,
        metadata=metadata,
    )


def _refuse_foreign(file: str, start: bytes, size: int) -> None:
    for magic, what, mend in _FOREIGN_STARTS:
        if start.startswith(magic):
            raise LoraInspectError(f"{file}: it is {what}; {mend}.")
    if start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05" and start[8:9] != b"{":
        raise LoraInspectError(f"{file}: it is a pickle, which is never read; save it as .safetensors.")
    if size < 8 and file.endswith(".safetensors"):
        raise LoraInspectError(
            f"{file}: it has {size} bytes, fewer than the 8 that begin a safetensors file; fetch it again."
        )


def _parse_header(file: str, header: bytes, data_start: int, size: int) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    try:
        entries = json.loads(header)
    except ValueError:
        raise LoraInspectError(f"{file}: its header is not JSON, so it is no safetensors file; fetch it again.") from None
    if not isinstance(entries, dict):
        raise LoraInspectError(f"{file}: its header is not a JSON object, so it is no safetensors file; fetch it again.")
    metadata = entries.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise LoraInspectError(f"{file}: its __metadata__ is not a map of strings to strings; write the file anew.")
    tensors = [_parse_entry(file, name, entry, data_start) for name, entry in entries.items()]
    tensors.sort(key=lambda info: (info.start, info.stop))
    position = data_start
    for info in tensors:
        if info.start != position:
            relation = "overlaps the tensor before it" if info.start < position else "leaves a hole before it"
            raise LoraInspectError(f"{file}: {info.name} {relation}, so the header is damaged; fetch the file again.")
        position = info.stop
    if position != size:
        state = "truncated" if position > size else "longer than its header says"
        raise LoraInspectError(
            f"{file}: its tensors end at byte {position} and the file at byte {size}: it is {state}; fetch it again."
        )
    return {info.name: info for info in tensors}, metadata


def _parse_entry(file: str, name: str, entry: Any, data_start: int) -> TensorInfo:
    try:
        dtype, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = [*shape, start, stop]
    except (TypeError, KeyError, ValueError):
        raise LoraInspectError(
            f"{file}: the header entry of {name} lacks dtype, shape or data_offsets; fetch the file again."
        ) from None
    if dtype not in BITS:
        raise LoraInspectError(f"{file}: {name} has the unknown dtype {dtype!r}; a newer lora-inspect may know it.")
    if any(type(number) is not int or number < 0 for number in numbers):
        raise LoraInspectError(f"{file}: the shape or range of {name} is not made of whole numbers; fetch it again.")
    bits = count_elements(shape) * BITS[dtype]
    if bits % 8 or stop - start != bits // 8:
        raise LoraInspectError(
            f"{file}: {name} has {stop - start} bytes, but {dtype} {list(shape)} needs {bits // 8}; fetch it again."
        )
    return TensorInfo(name, dtype, tuple(shape), file, data_start + start, data_start + stop)
