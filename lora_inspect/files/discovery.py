"""The checkpoints in a folder, found by the names of its files. Standard library only.

The file also mirrors a folder into another one, and finds the nearest path to a mistyped one.
"""

import os
import re
from collections.abc import Collection, Iterable, Iterator

from lora_inspect.errors import LoraInspectError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.file_types import PICKLE_ENDINGS, TRAINING_STATES, is_weights
from lora_inspect.files.locations import bytes_at, exists, is_folder, join, looking, names_in, walk
from lora_inspect.near_names import nearest_name
from lora_inspect.stores.address import is_remote

ADAPTER_CONFIG = "adapter_config.json"
PEFT_WEIGHTS = "adapter_model"
# What mlx-lm reads, and what it has saved on the way beside it.
MLX_WEIGHTS = "adapters"
_ON_THE_WAY = f"_{MLX_WEIGHTS}.safetensors"
_INDEX, _GGUF = ".safetensors.index.json", ".gguf"
_SHARD = r"(?P<stem>.+)-\d+-of-(?P<count>\d+)(?P<ending>\.[a-z]+)"


class ShardSet(NamedTuple):
    """The common parts of the shard names of one set."""

    stem: str
    shards: int
    ending: str


def set_of(name: str) -> ShardSet | None:
    """Return the set of a shard by its file name; None for any other file."""
    shard = re.fullmatch(_SHARD, name) if "-of-" in name else None  # to compile it takes longer than to use it
    return ShardSet(shard["stem"], int(shard["count"]), shard["ending"]) if shard else None


class FolderFiles(NamedTuple):
    """The files below a folder, by their names and the first bytes of some.

    `weights` are the paths to open: PEFT folders and sharded sets as one path each, other files singly. Pickles and
    models in GGUF are also in `unread`. `others` counts all other files, except parts of a checkpoint.
    """

    weights: tuple[str, ...]
    unread: frozenset[str]
    others: int

    @property
    def readable(self) -> list[str]:
        """The paths of the weights that are not in `unread`."""
        return [path for path in self.weights if path not in self.unread]


def find_checkpoints(folder: str) -> list[str]:
    """Return the readable weights below `folder`."""
    return files_below(folder).readable


def files_below(folder: str) -> FolderFiles:
    """Return all files below `folder`.

    Unreadable folders are the last of the weights, so that opening them reports the reason.
    """
    weights, closed, unread, others = list[str](), list[str](), set[str](), 0
    for parent, folders, names in walk(folder, lambda error: closed.append(error.filename)):
        folders.sort()
        groups: dict[str | ShardSet, list[str]] = {}
        for name in sorted(names):
            whole = set_of(name)
            if _may_be_weights(name):
                groups.setdefault(whole if whole and whole.shards > 1 else name, []).append(name)
            else:
                others += name != ADAPTER_CONFIG and not name.endswith(_INDEX)
        found = False
        for members in groups.values():
            readable = next((name for name in members if _is_listed(join(parent, name))), None)
            if readable is None and members[0].startswith(TRAINING_STATES):
                others += len(members)
                continue
            weights.append(join(parent, readable or members[0]))
            found |= readable is not None
            if readable is None:
                unread.add(weights[-1])
        if not found and is_config_alone(names):
            weights.append(parent)
    return FolderFiles((*weights, *closed), frozenset(unread), others)


def _may_be_weights(name: str) -> bool:
    return name.endswith(".safetensors") or name.lower().endswith((*PICKLE_ENDINGS, _GGUF))


def _is_listed(path: str) -> bool:
    """Return True for a file that a search of a folder lists: weights, and adapters of llama.cpp."""
    from lora_inspect.files.gguf.gguf_format import is_gguf_adapter

    return is_weights(path) or is_gguf_adapter(path)


def read_weights(names: Collection[str]) -> str | None:
    """Return the file, of these names of a folder, that its program reads; None if there is none.

    Intermediate saves of mlx-lm are ignored next to its last weights.
    """
    if PEFT_WEIGHTS + ".safetensors" in names:
        return PEFT_WEIGHTS + ".safetensors"
    last = MLX_WEIGHTS + ".safetensors"
    others = [name for name in names if name.endswith(".safetensors") and not _is_on_the_way(name)]
    return last if others == [last] else None


def _is_on_the_way(name: str) -> bool:
    """Return True if mlx-lm gives this name to weights that it saves before the last ones."""
    step = name.removesuffix(_ON_THE_WAY)
    return step != name and step.isdecimal() and step.isascii()


def is_config_alone(names: Iterable[str]) -> bool:
    """Return True if a folder of files with these names has an adapter's configuration but no weights."""
    endings = (".safetensors", *PICKLE_ENDINGS)
    return ADAPTER_CONFIG in names and not any(name.lower().endswith(endings) for name in names)


def file_of(path: str) -> str:
    """Return the file that represents a checkpoint: for a folder its weights, their index, or its configuration.

    A folder without any of them represents itself.
    """
    if not is_folder(path):
        return path
    names = sorted(names_in(path))
    endings = (".safetensors.index.json", ".safetensors", ".gguf", *PICKLE_ENDINGS, ADAPTER_CONFIG)
    found = read_weights(names) or next((name for end in endings for name in names if name.endswith(end)), "")
    return join(path, found) if found else path


def is_collection(path: str) -> bool:
    """Return True for a folder that is not one checkpoint."""
    with looking(path):
        return is_folder(path) and not is_checkpoint_folder(path)


# What libraries call the pickles that hold the same weights as the file beside them.
_COPIES = (PEFT_WEIGHTS, "pytorch_model", "diffusion_pytorch_model", "pytorch_lora_weights")


def files_of_several(path: str) -> FolderFiles | None:
    """Return the files below a folder of several that may hold weights; None for any other path.

    Such a folder is a collection, or a checkpoint next to pickles of other weights. If it has no readable weights, it
    has several files in formats that are never read, or one of them in a folder below it.
    """
    with looking(path):
        if not is_folder(path):
            return None
        stems = {os.path.splitext(name)[0] for name in names_in(path) if name.endswith(".safetensors")}
    files = files_below(path)
    if not files.readable:
        is_single = len(files.weights) == 1 and os.path.dirname(files.weights[0]) == path.rstrip(os.sep)
        return files if files.unread and not is_single else None
    pickles = map(os.path.basename, files.unread)
    others = [name for name in pickles if not name.startswith((*_COPIES, *stems))]
    return files if others or is_collection(path) else None


def is_checkpoint_folder(folder: str) -> bool:
    """Return True if `folder` is one checkpoint (a PEFT folder, a sharded set, one file), not a collection."""
    from lora_inspect.files.gguf.gguf_format import is_gguf_adapter

    with looking(folder):
        names = names_in(folder)
        weights = [name for name in names if is_weights(join(folder, name))]
        sets = {set_of(name) or name for name in weights}
        has_gguf = any(is_gguf_adapter(join(folder, name)) for name in names)
        has_subfolders = any(is_folder(join(folder, name)) for name in names)
    if is_config_alone(names) and not has_subfolders and not has_gguf:
        return True
    if read_weights(names) or any(name.endswith(_INDEX) for name in names):
        return True
    return len(sets) == 1 and not has_subfolders and not has_gguf


def stored_bytes(path: str) -> int:
    """Return the size of the files that belong to a checkpoint by their names; 0 if there is none."""
    folder, name = os.path.split(path)
    try:
        with looking(path):
            if is_folder(path):
                return _bytes_in(path, [name for name in names_in(path) if name.endswith(".safetensors")])
            if not (whole := set_of(name)):
                return bytes_at(path)
            return _bytes_in(folder, [name for name in names_in(folder) if set_of(name) == whole])
    except (OSError, ValueError, LoraInspectError):  # a NUL character in it
        return 0


def _bytes_in(folder: str, names: Iterable[str]) -> int:
    return sum(bytes_at(join(folder, name)) for name in names)


# What the weights are called that a config beside them makes an adapter.
_OF_FOLDERS = (f"{PEFT_WEIGHTS}.safetensors", f"{MLX_WEIGHTS}.safetensors")


class Mirrored(NamedTuple):
    """A checkpoint to open at `path`; `stem` is its path below the folder, without the ending of a file.

    `is_unread` says that it is a pickle, or a model in GGUF.
    """

    path: str
    stem: str
    is_unread: bool = False


def mirrored(folder: str, output: str) -> list[Mirrored]:
    """Return all weights below `folder`, except those below `output`."""
    own = _real(output)
    found = []
    files = files_below(folder)
    for path in files.weights:
        if path.startswith(join(output, "")) if is_remote(path) else _real(path).startswith(own):
            continue
        is_unread = path in files.unread
        parent, name = os.path.split(path)
        whole = set_of(name)
        has_config = exists(join(parent, ADAPTER_CONFIG))
        if name in _OF_FOLDERS and has_config and not _is_same(parent, folder):
            path = stem = parent
        elif whole and whole.shards > 1:
            stem = join(parent, whole.stem)
        else:
            stem = path if is_folder(path) else os.path.splitext(path)[0]
        found.append(Mirrored(path, os.path.relpath(stem, folder), is_unread))
    return found


def _real(path: str) -> str:
    return os.path.join(os.path.realpath(path), "")


def _is_same(one: str, other: str) -> bool:
    return one == other if is_remote(one) else os.path.samefile(one, other)


def nearest_path(path: str) -> str | None:
    """Return the most similar path in the same folder; None if none is similar or the folder cannot be read.

    A broken link is not similar to itself, and leftovers of runs are ignored.
    """
    from lora_inspect.files.temp_files import is_leftover

    folder, name = os.path.split(path.rstrip(os.sep))
    try:
        others = (other for other in _names_in(folder) if join(folder, other) != path)
        nearest = nearest_name(name, (other for other in others if not is_leftover(other)))
    except (OSError, ValueError, LoraInspectError):  # a null character is no part of a path
        return None
    return None if nearest is None else join(folder, nearest)


def _names_in(folder: str) -> Iterator[str]:
    """Yield the names in a folder; on a disk, one at a time as the system lists them."""
    if is_remote(folder):
        yield from names_in(folder)
        return
    with os.scandir(folder or os.curdir) as entries:
        yield from (entry.name for entry in entries)
