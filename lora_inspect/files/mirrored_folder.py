"""The checkpoints below a folder, and what each is to be called below another one. Standard library only."""

import os

from lora_inspect.files.found_checkpoints import ADAPTER_CONFIG, MLX_WEIGHTS, PEFT_WEIGHTS, find_checkpoints, set_of
from lora_inspect.records import NamedTuple

# What the weights are called that a config beside them makes an adapter.
_OF_FOLDERS = (f"{PEFT_WEIGHTS}.safetensors", f"{MLX_WEIGHTS}.safetensors")


class Mirrored(NamedTuple):
    """A checkpoint to open at `path`; `stem` is its path below the folder, without the ending of a file."""

    path: str
    stem: str


def mirrored(folder: str, output: str) -> list[Mirrored]:
    """Every checkpoint below `folder`, but for what is below `output`."""
    own = os.path.join(os.path.realpath(output), "")
    found = []
    for path in find_checkpoints(folder):
        if os.path.join(os.path.realpath(path), "").startswith(own):
            continue
        parent, name = os.path.split(path)
        whole = set_of(name)
        has_config = os.path.lexists(os.path.join(parent, ADAPTER_CONFIG))
        if name in _OF_FOLDERS and has_config and not os.path.samefile(parent, folder):
            path = stem = parent
        elif whole and whole.shards > 1:
            stem = os.path.join(parent, whole.stem)
        else:
            stem = path if os.path.isdir(path) else os.path.splitext(path)[0]
        found.append(Mirrored(path, os.path.relpath(stem, folder)))
    return found
