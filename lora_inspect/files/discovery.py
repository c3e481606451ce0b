"""What there is to open in a folder, told by the names of its files alone. Standard library only."""

import os
import re
from collections.abc import Collection, Iterable, Iterator

from lora_inspect.errors import LoraInspectError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.file_types import PICKLE_ENDINGS, is_weights
from lora_inspect.files.locations import bytes_at, is_folder, join, looking, names_in, walk

ADAPTER_CONFIG = "adapter_config.json"
PEFT_WEIGHTS = "adapter_model"
# What mlx-lm reads, and what it has saved on the way beside it.
MLX_WEIGHTS = "adapters"
_ON_THE_WAY = f"_{MLX_WEIGHTS}.safetensors"
_SHARD = r"(?P<stem>.+)-\d+-of-(?P<count>\d+)(?P<ending>\.[a-z]+)"


class ShardSet(NamedTuple):
    """What the names of the shards of one set have in common."""

    stem: str
    shards: int
    ending: str


def set_of(name: str) -> ShardSet | None:
    """The set of which a file of this name is a shard."""
    shard = re.fullmatch(_SHARD, name) if "-of-" in name else None  # to compile it takes longer than to use it
    return ShardSet(shard["stem"], int(shard["count"]), shard["ending"]) if shard else None


def find_checkpoints(folder: str) -> Iterator[str]:
    """What there is to open below `folder`: PEFT folders and sharded sets as one path each, other files singly.

    Folders that cannot be read come last, so that opening them says why.
    """
    unreadable: list[str] = []
    for parent, folders, names in walk(folder, lambda error: unreadable.append(error.filename)):
        folders.sort()
        seen: set[str | ShardSet] = set()
        for name in sorted(names):
            if not _is_listed(join(parent, name)):
                continue
            whole = set_of(name)
            group = whole if whole and whole.shards > 1 else name
            if group not in seen:
                seen.add(group)
                yield join(parent, name)
        if not seen and is_config_alone(names):
            yield parent
    yield from unreadable


def _is_listed(path: str) -> bool:
    """Whether a file is one of those that a folder is looked through for: weights, and adapters of llama.cpp."""
    from lora_inspect.files.gguf.gguf_kind import is_gguf_adapter

    return is_weights(path) or is_gguf_adapter(path)


def read_weights(names: Collection[str]) -> str | None:
    """The file that its program reads in a folder of files with these names; None where there is no such one.

    What mlx-lm saved on the way counts for nothing beside its last weights.
    """
    if PEFT_WEIGHTS + ".safetensors" in names:
        return PEFT_WEIGHTS + ".safetensors"
    last = MLX_WEIGHTS + ".safetensors"
    others = [name for name in names if name.endswith(".safetensors") and not _is_on_the_way(name)]
    return last if others == [last] else None


def _is_on_the_way(name: str) -> bool:
    """Whether mlx-lm calls weights so that it saves before the last ones."""
    step = name.removesuffix(_ON_THE_WAY)
    return step != name and step.isdecimal() and step.isascii()


def is_config_alone(names: Iterable[str]) -> bool:
    """Whether of an adapter in a folder of files with these names the configuration is there, and no weights at all."""
    endings = (".safetensors", *PICKLE_ENDINGS)
    return ADAPTER_CONFIG in names and not any(name.lower().endswith(endings) for name in names)


def is_collection(path: str) -> bool:
    """Whether a folder is there that holds several checkpoints, or other folders, and is none itself."""
    with looking(path):
        return is_folder(path) and not is_checkpoint_folder(path)


def is_checkpoint_folder(folder: str) -> bool:
    """Whether `folder` is one checkpoint (a PEFT folder, a sharded set, one file) and not a collection of several."""
    from lora_inspect.files.gguf.gguf_kind import is_gguf_adapter

    with looking(folder):
        names = names_in(folder)
        weights = [name for name in names if is_weights(join(folder, name))]
        sets = {set_of(name) or name for name in weights}
        has_gguf = any(is_gguf_adapter(join(folder, name)) for name in names)
        has_subfolders = any(is_folder(join(folder, name)) for name in names)
    if is_config_alone(names) and not has_subfolders and not has_gguf:
        return True
    if read_weights(names) or any(name.endswith(".safetensors.index.json") for name in names):
        return True
    return len(sets) == 1 and not has_subfolders and not has_gguf


def stored_bytes(path: str) -> int:
    """The size of the files that belong to a checkpoint, as far as their names tell; 0 where there is none."""
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
