"""The header-only view of a checkpoint: one file, a sharded set, or a folder. Standard library only.

`open_checkpoint` opens it; a model in a GGUF file has the same form.
"""

import os
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from lora_inspect.caching import Room
from lora_inspect.errors import DamagedError, LoraInspectError, NotFoundError, RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.discovery import ADAPTER_CONFIG, ShardSet, is_config_alone, read_weights, set_of
from lora_inspect.files.file_types import PICKLE_ENDINGS, is_gguf, is_weights, likely_weights
from lora_inspect.files.input_file import Identity, InputFile
from lora_inspect.files.json_files import read_index, read_json
from lora_inspect.files.locations import (
    begin_reading,
    exists,
    is_file,
    is_folder,
    is_of_server,
    join,
    looking,
    names_in,
    pinned,
    real_path,
    shown,
)
from lora_inspect.files.safetensors.dtypes import decode_number
from lora_inspect.files.safetensors.header import TensorInfo, identified_header, read_header
from lora_inspect.files.strict_json import TENSORS, too_many_tensors
from lora_inspect.stores.store_failures import WholeFilesOnly

# The module that PEFT puts all others below.
_PEFT_ROOT = "base_model."


class OpenTensors(dict[str, TensorInfo]):
    """The tensors of a file or a set of files; caches keep room for their names while this object is in use."""

    def __init__(self, tensors: Mapping[str, TensorInfo]) -> None:
        super().__init__(tensors)
        self.room = Room(len(tensors))


class Checkpoint(NamedTuple):
    """Every tensor of a file, a set of shards or a folder by name, in file order, with its metadata and config.

    `path` is the path that the user named; `root` is the folder of a sharded or folder checkpoint and None for a single
    file. `config` is the `adapter_config.json` next to the file; the reader of the tensors decides whether it belongs
    to the file. `files` is empty for a config without weights. `metadata` is the union over the files. `inputs` are all
    files that were read, by path: the weights, the index and the config, each with its identity when it was opened.
    `alpha` is the place of the alpha of all modules in a GGUF header. `codes` maps the name of a decoded weight in
    `tensors` to the tensor that is stored.
    """

    path: str
    files: tuple[str, ...]
    tensors: dict[str, TensorInfo]
    file_metadata: dict[str, dict[str, str]]
    metadata: dict[str, str]
    inputs: dict[str, Identity]
    root: str | None = None
    index_path: str | None = None
    config: dict[str, Any] | None = None
    config_path: str | None = None
    alpha: TensorInfo | None = None
    codes: Mapping[str, TensorInfo] = MappingProxyType({})

    @property
    def paths(self) -> tuple[str, ...]:
        """Every file that was read: the weights, the index and the config."""
        return tuple(self.inputs)

    @property
    def name(self) -> str:
        """The name of its file; for a sharded set, the name that a single file would have.

        Raises IndexError if there are no files.
        """
        name = os.path.basename(self.files[0])
        whole = set_of(name)
        return whole.stem + whole.ending if whole and len(self.files) > 1 else name

    @property
    def bytes(self) -> int:
        """Size of all files, in bytes."""
        return sum(self.inputs[file].bytes for file in self.files)

    def numbers(self, names: Iterable[str]) -> dict[str, float | int | bool | None]:
        """Return the values of one-element tensors (alphas, flags) by name; None for a dtype without a plain reading.

        The values of tensors with the same bytes are one object. Raises LoraInspectError for a tensor with more than
        one element.
        """
        wanted: dict[str, list[TensorInfo]] = {}
        for name in names:
            info = self.alpha if self.alpha and name == self.alpha.name else self.tensors[name]
            if info.shape and info.numel != 1:
                raise DamagedError(
                    info.file,
                    f"{name} has shape {list(info.shape)}, but lora-inspect expected a single number",
                    "fetch the file again, as it is damaged or uses the name for something else",
                )
            wanted.setdefault(info.file, []).append(info)
        values: dict[str, float | int | bool | None] = {}
        # What is stored alike is one object.
        decoded: dict[tuple[str, bytes], float | int | bool | None] = {}
        for file, infos in wanted.items():
            with InputFile(file, self.inputs[file]) as source:
                contents = source.read_each([(info.start, info.nbytes) for info in infos])
                for info, content in zip(infos, contents, strict=True):
                    stored = info.dtype, content
                    if stored not in decoded:
                        decoded[stored] = decode_number(*stored)
                    values[info.name] = decoded[stored]
        return values


def read_row(checkpoint: Checkpoint, name: str, number: int) -> bytes:
    """Return the bytes of one row of the matrix called `name`."""
    info = checkpoint.tensors[name]
    size = info.nbytes // info.shape[0]
    with InputFile(info.file, checkpoint.inputs[info.file]) as source:
        return bytes(source.read(info.start + number * size, size))


def open_checkpoint(path: str) -> Checkpoint:
    """Open `path`: a .safetensors file, a shard or index.json of a set, or a folder that holds one of them.

    Raises LoraInspectError for anything else, and never unpickles anything.
    """
    path = os.fspath(path)
    with looking(path):
        return _open(pinned(path), named=shown(path))


def _open(path: str, named: str) -> Checkpoint:
    if is_folder(path):
        return _open_folder(path, named)
    if not is_file(path):
        raise _is_no_file(path)
    folder, name = os.path.split(path)
    if name.endswith(".index.json"):
        return _open_index(path, named)
    whole = set_of(name)
    if whole and whole.shards > 1 and is_weights(path):
        return _open_shards(folder, whole, named)
    return _single_file(path, named)


def _is_no_file(path: str) -> LoraInspectError:
    if exists(path):
        if os.path.islink(path) and not os.path.exists(path):
            return NotFoundError(path, "it is a link that leads nowhere", "name the file that it should lead to")
        return RefusedError(path, "it is neither a file nor a folder", "name a file on a disk")
    from lora_inspect.files.discovery import nearest_path

    near = nearest_path(path)
    meant = f" (did you mean {near}?)" if near else ""
    return NotFoundError(path or "the empty name", "there is no such file or folder", f"check the path{meant}")


def _open_folder(folder: str, named: str) -> Checkpoint:
    names = sorted(names_in(folder))
    if own := read_weights(names):
        real_path(folder, own)
        return _single_file(join(folder, own), named=named, root=folder)
    indexes = [name for name in names if name.endswith(".safetensors.index.json")]
    if len(indexes) == 1:
        real_path(folder, indexes[0])
        return _open_index(join(folder, indexes[0]), named=named)
    weights = [name for name in names if is_weights(join(folder, name))]
    sets = {set_of(name) for name in weights}
    if len(sets) == 1 and (whole := sets.pop()):
        return _open_shards(folder, whole, named=named)
    if len(weights) == 1:
        real_path(folder, weights[0])
        return _single_file(join(folder, weights[0]), named=named, root=folder)
    pickles = [name for name in names if name.lower().endswith(PICKLE_ENDINGS)]
    if not weights and pickles:
        read_header(join(folder, likely_weights(pickles)))
    if is_config_alone(names):
        return _config_alone(folder, named)
    found = f"{len(weights)} .safetensors files" if weights else "no .safetensors file"
    raise RefusedError(
        folder, f"the folder holds {found}, but lora-inspect expected one checkpoint", "name the file itself"
    )


def _single_file(file: str, named: str, root: str | None = None) -> Checkpoint:
    if is_gguf(file):
        return _gguf_file(file, named, root)
    tensors, metadata, identity = identified_header(file)
    inputs = {file: identity}
    config, config_path = _config_beside(file, inputs, tensors, root)
    return Checkpoint(
        path=named,
        files=(file,),
        tensors=OpenTensors(tensors),
        file_metadata={file: metadata},
        metadata=metadata,
        inputs=inputs,
        root=root,
        config=config,
        config_path=config_path,
    )


def _gguf_file(file: str, named: str, root: str | None) -> Checkpoint:
    """Return an adapter of llama.cpp from its header only; a config next to it belongs to the conversion's source."""
    from lora_inspect.files.gguf.gguf_reader import read_gguf

    tensors, metadata, identity, alpha = read_gguf(file)
    return Checkpoint(
        path=named,
        files=(file,),
        tensors=OpenTensors(tensors),
        file_metadata={file: metadata},
        metadata=metadata,
        inputs={file: identity},
        root=root,
        alpha=alpha,
    )


def _config_alone(folder: str, named: str) -> Checkpoint:
    """Return a checkpoint without files, for an adapter folder that has a config but no weights."""
    inputs: dict[str, Identity] = {}
    config, config_path = _config_beside(join(folder, ADAPTER_CONFIG), inputs, (), folder)
    return Checkpoint(
        path=named,
        files=(),
        tensors={},
        file_metadata={},
        metadata={},
        inputs=inputs,
        root=folder,
        config=config,
        config_path=config_path,
    )


def _config_beside(
    file: str, inputs: dict[str, Identity], names: Iterable[str], root: str | None
) -> tuple[dict[str, Any] | None, str | None]:
    """Return the `adapter_config.json` next to `file` and its path, and add it to the `inputs`; None without one.

    `names` are those of the tensors. Some servers answer every path, with a page: what is no configuration there counts
    as missing, unless the names are PEFT's. Raises LoraInspectError for any other file that is no configuration, and
    for a link out of the folder `root`.
    """
    path = join(os.path.dirname(file), ADAPTER_CONFIG)
    try:
        if not exists(path):
            return None, None
        if root is not None:
            real_path(root, ADAPTER_CONFIG)
        config, identity = read_json(path)
        if not isinstance(config, dict):
            raise DamagedError(path, "it is JSON but not an object", "fetch the adapter's configuration again")
    except (DamagedError, RefusedError, WholeFilesOnly):
        if is_of_server(path) and not any(name.startswith(_PEFT_ROOT) for name in names):
            return None, None
        raise
    inputs[path] = identity
    return config, path


def _open_index(index: str, named: str) -> Checkpoint:
    folder = os.path.dirname(index)
    content, identity = read_index(index)
    weight_map = content["weight_map"]
    names = sorted(set(weight_map.values()))
    if any(os.path.basename(name) != name for name in names):
        raise DamagedError(index, "it points outside its own folder", "fetch the index again")
    checkpoint = _join([join(folder, name) for name in names], folder, {index: identity}, named)
    for tensor, name in weight_map.items():
        if tensor not in checkpoint.tensors or os.path.basename(checkpoint.tensors[tensor].file) != name:
            raise DamagedError(index, f"it places {tensor} in {name}, but that does not hold it", "fetch the set again")
    return checkpoint


def _open_shards(folder: str, whole: ShardSet, named: str) -> Checkpoint:
    index = join(folder, f"{whole.stem}{whole.ending}.index.json")
    if is_of_server(folder):
        return _open_index(index, named)
    # In a folder of many sets the names are gone through for each of them.
    names = sorted(name for name in names_in(folder) if name.startswith(f"{whole.stem}-"))
    files = [join(folder, name) for name in names if set_of(name) == whole]
    if len(files) != whole.shards:
        raise NotFoundError(
            f"{join(folder, whole.stem)}: only {len(files)} of {whole.shards} shards exist; fetch the missing ones."
        )
    found: dict[str, Identity] = {}
    if exists(index):
        real_path(folder, os.path.basename(index))
        found[index] = read_index(index)[1]
    return _join(files, folder, found, named)


def _join(files: list[str], folder: str, index: dict[str, Identity], named: str) -> Checkpoint:
    tensors: dict[str, TensorInfo] = {}
    file_metadata: dict[str, dict[str, str]] = {}
    identities: dict[str, Identity] = {}
    begin_reading(files)
    for file in files:
        if not exists(file):
            raise NotFoundError(file, "the shard is missing", "fetch it")
        if file != named:
            real_path(folder, os.path.basename(file))
        shard, file_metadata[file], identities[file] = identified_header(file)
        for name, info in shard.items():
            if name in tensors:
                raise DamagedError(file, f"{name} is also in {tensors[name].file}", "fetch the set again")
            tensors[name] = info
        if len(tensors) > TENSORS:
            raise too_many_tensors(named, len(tensors))
    metadata = {key: value for found in file_metadata.values() for key, value in found.items()}
    inputs = {**identities, **index}
    config, config_path = _config_beside(files[0], inputs, tensors, folder) if files else (None, None)
    return Checkpoint(
        path=named,
        files=tuple(files),
        tensors=OpenTensors(tensors),
        file_metadata=file_metadata,
        metadata=metadata,
        inputs=inputs,
        root=folder or ".",
        index_path=next(iter(index), None),
        config=config,
        config_path=config_path,
    )


def open_model(path: str) -> Checkpoint:
    """Open a model. Raises LoraInspectError like `open_checkpoint`, and for GGUF files with other names."""
    path = os.fspath(path)
    with looking(path):
        return _open_model(pinned(path), named=shown(path))


def _open_model(path: str, named: str) -> Checkpoint:
    if not is_file(path) or not is_gguf(path):
        return open_checkpoint(path)._replace(path=named)
    from lora_inspect.files.gguf.gguf_format import ADAPTER, kind_of_gguf
    from lora_inspect.files.gguf.gguf_reader import read_gguf_model

    if kind_of_gguf(path) == ADAPTER:
        return open_checkpoint(path)._replace(path=named)
    # Its metadata speak of this file, and not of what is made of it.
    tensors, _, identity = read_gguf_model(path)
    return Checkpoint(
        path=named,
        files=(path,),
        tensors=OpenTensors(tensors),
        file_metadata={path: {}},
        metadata={},
        inputs={path: identity},
    )
