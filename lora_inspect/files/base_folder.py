"""The other files of a folder checkpoint, and their copies in the folder of an output."""

import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from lora_inspect.errors import CouldNotWorkError
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.files.input_file import Identity, InputFile, identify
from lora_inspect.files.json_files import read_index
from lora_inspect.files.locations import is_file, is_of_server, join, looking, real_path, walk
from lora_inspect.files.safetensors.writer import copy_bytes
from lora_inspect.files.temp_files import is_leftover
from lora_inspect.progress import Progress

# Beside the merged set these would still be the unmerged weights.
_OTHER_WEIGHTS = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".keras", ".msgpack", ".npz", ".onnx", ".onnx_data",
    ".ot", ".tflite",
)  # fmt: skip
# Folders that hold the unmerged model once more: exports, the vendor's own format, states of its training.
_OTHER_COPIES = re.compile(r"onnx|openvino|coreml|original|metal|checkpoint-\d+")
# Folders of other programs that are no part of a model.
_BOOKKEEPING = re.compile(r"\.git|\.cache")


@dataclass(frozen=True, slots=True)
class SideFiles:
    """Files next to the weights of a folder, by paths relative to it; none for a single file.

    `copied` files go into the output unchanged, from subfolders too; `folders` are the subfolders, parents first.
    `left_behind` are not copied: other weights, folders with another copy of the model (with a slash at their end),
    leftovers of runs that died, and anything that is not a file. If the folder is not listed, it may hold more of each.
    """

    root: str = os.curdir
    copied: dict[str, Identity] = field(default_factory=dict)
    folders: tuple[str, ...] = ()
    left_behind: tuple[str, ...] = ()
    is_listed: bool = True

    @property
    def inputs(self) -> dict[str, Identity]:
        """The files that are copied, by path."""
        return {join(self.root, name): identity for name, identity in self.copied.items()}

    @property
    def notes(self) -> list[str]:
        """Notes on files that may be missing next to the weights of the output."""
        if self.is_listed:
            return []
        return [
            f"{self.root}: a server does not list its folders, so the program copied only the weights and their "
            "index; put the configuration and the tokenizer of the model next to them."
        ]

    @property
    def bytes(self) -> int:
        """Size of all files that are copied."""
        return sum(identity.bytes for identity in self.copied.values())


def find_side_files(base: Checkpoint) -> SideFiles:
    """Find the side files in the folder of a base.

    Raises LoraInspectError for a link that leads out of the folder, to a folder or nowhere. Only the links of the
    Hugging Face cache, from `models--x/snapshots/y` into `models--x/blobs`, may leave it.
    """
    if base.root is None:
        return SideFiles()
    if is_of_server(base.root):
        return _of_server(base, base.root)
    with looking(base.root):
        return _find(base, base.root)


def _of_server(base: Checkpoint, root: str) -> SideFiles:
    """Return the index of a set as its only known side file, since a server does not list its folders."""
    own = [base.index_path] if base.index_path else []
    return SideFiles(root, {os.path.basename(path): base.inputs[path] for path in own}, is_listed=False)


def _find(base: Checkpoint, root: str) -> SideFiles:
    merged = {os.path.basename(file): real_path(root, os.path.basename(file)) for file in base.files}
    copied: dict[str, Identity] = {}
    folders: list[str] = []
    left: list[str] = []
    for name, is_folder in _walk(root, left):
        if is_folder:
            folders.append(name)
        elif is_leftover(os.path.basename(name)) or _is_weights(name, base):
            left.extend({name} - merged.keys())
        elif (target := real_path(root, name)) in merged.values() or not is_file(target):
            left.append(name)
        else:
            copied[name] = identify(target)
    return SideFiles(root, copied, tuple(folders), tuple(sorted(left)))


def copy_side_files(
    base: Checkpoint,
    side_files: SideFiles,
    folder: str,
    weight_bytes: int,
    progress: Progress,
    dropped: Collection[str] = (),
    rewritten: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    renamed: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Copy the side files of the weights into `folder`; the index gets `weight_bytes` as its total size.

    The index omits the `dropped` tensors and uses the new names of `renamed` ones. JSON files in `rewritten` get that
    content. `progress` gets the bytes of each finished file. Raises OSError if the disk refuses.
    """
    for name in side_files.folders:
        os.mkdir(os.path.join(folder, name))
    for name, identity in side_files.copied.items():
        target = os.path.join(folder, name)
        if base.index_path and name == os.path.basename(base.index_path):
            index = _index_of(base.index_path, base.inputs[base.index_path], dropped, renamed)
            _write_json(_with_size(index, weight_bytes), target)
        elif name in rewritten:
            _write_json(rewritten[name], target)
        else:
            _copy(join(side_files.root, name), identity, target)
        progress(identity.bytes)


def _copy(source: str, identity: Identity, target: str) -> None:
    with InputFile(source, identity) as opened, open(target, "xb", buffering=0) as written:
        copy_bytes(opened, 0, identity.bytes, written.fileno(), 0)


def _index_of(source: str, identity: Identity, dropped: Collection[str], renamed: Mapping[str, str]) -> dict[str, Any]:
    index, _ = read_index(source, identity)
    named = {name: file for name, file in index["weight_map"].items() if name not in dropped}
    return {**index, "weight_map": {renamed.get(name, name): file for name, file in named.items()}}


def _with_size(index: dict[str, Any], weight_bytes: int) -> dict[str, Any]:
    known = index.get("metadata")
    return {**index, "metadata": {**(known if isinstance(known, dict) else {}), "total_size": weight_bytes}}


def _write_json(content: Mapping[str, Any], target: str) -> None:
    with open(target, "x", encoding="utf-8") as handle:
        json.dump(content, handle, indent=2)


def _walk(root: str, left: list[str]) -> Iterator[tuple[str, bool]]:
    """Yield (path relative to `root`, True for a folder) for everything below it; copies of the model go to `left`."""
    for parent, folders, files in walk(root, _refuse_unreadable):
        below = "" if parent == root else os.path.relpath(parent, root)
        others = [name for name in folders if is_leftover(name) or (not below and _holds_no_part(name))]
        left.extend(f"{os.path.join(below, name)}/" for name in others)
        folders[:] = sorted(name for name in folders if name not in others)
        for name in folders:
            yield os.path.join(below, name), not os.path.islink(join(parent, name))
        for name in sorted(files):
            yield os.path.join(below, name), False


def _holds_no_part(name: str) -> bool:
    """Return True if a folder at the top is another copy of the model, or not part of it."""
    return bool(_OTHER_COPIES.fullmatch(name) or _BOOKKEEPING.fullmatch(name))


def _refuse_unreadable(error: OSError) -> None:
    raise CouldNotWorkError(error.filename, f"it cannot be read ({error.strerror})", "check the path and its rights")


def _is_weights(name: str, base: Checkpoint) -> bool:
    """Return True for weights at the top of the folder, and for an index of weights that are not merged."""
    is_own_index = base.index_path is not None and name == os.path.basename(base.index_path)
    at_the_top = os.path.basename(name) == name
    return at_the_top and not is_own_index and name.lower().removesuffix(".index.json").endswith(_OTHER_WEIGHTS)
