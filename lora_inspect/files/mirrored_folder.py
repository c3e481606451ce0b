"""The checkpoints below a folder, and what each is to be called below another one. Standard library only."""

import os

from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.discovery import ADAPTER_CONFIG, MLX_WEIGHTS, PEFT_WEIGHTS, find_checkpoints, set_of
from lora_inspect.files.locations import exists, is_folder, join
from lora_inspect.stores.address import is_remote

# What the weights are called that a config beside them makes an adapter.
_OF_FOLDERS = (f"{PEFT_WEIGHTS}.safetensors", f"{MLX_WEIGHTS}.safetensors")


class Mirrored(NamedTuple):
    """A checkpoint to open at `path`; `stem` is its path below the folder, without the ending of a file."""

    path: str
    stem: str


def mirrored(folder: str, output: str) -> list[Mirrored]:
    """Every checkpoint below `folder`, but for what is below `output`."""
    own = _real(output)
    found = []
    for path in find_checkpoints(folder):
        if path.startswith(join(output, "")) if is_remote(path) else _real(path).startswith(own):
            continue
        parent, name = os.path.split(path)
        whole = set_of(name)
        has_config = exists(join(parent, ADAPTER_CONFIG))
        if name in _OF_FOLDERS and has_config and not _is_same(parent, folder):
            path = stem = parent
        elif whole and whole.shards > 1:
            stem = join(parent, whole.stem)
        else:
            stem = path if is_folder(path) else os.path.splitext(path)[0]
        found.append(Mirrored(path, os.path.relpath(stem, folder)))
    return found


def _real(path: str) -> str:
    return os.path.join(os.path.realpath(path), "")


def _is_same(one: str, other: str) -> bool:
    return one == other if is_remote(one) else os.path.samefile(one, other)
