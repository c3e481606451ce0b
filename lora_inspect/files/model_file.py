"""A model as it is stored: what `open_checkpoint` opens, or one in a GGUF file. Standard library only."""

import os

from lora_inspect.files.checkpoint import Checkpoint, open_checkpoint
from lora_inspect.files.file_types import is_gguf
from lora_inspect.files.gguf.gguf_format import ADAPTER
from lora_inspect.files.locations import is_file, looking, settled, shown


def open_model(path: str) -> Checkpoint:
    """The view of a model; raises LoraInspectError as `open_checkpoint` does, and for GGUF files in other names."""
    path = os.fspath(path)
    with looking(path):
        return _open(settled(path), named=shown(path))


def _open(path: str, named: str) -> Checkpoint:
    if not is_file(path) or not is_gguf(path):
        return open_checkpoint(path)._replace(path=named)
    from lora_inspect.files.gguf.gguf_kind import kind_of_gguf
    from lora_inspect.files.gguf.gguf_model import read_gguf_model

    if kind_of_gguf(path) == ADAPTER:
        return open_checkpoint(path)._replace(path=named)
    # Its metadata speak of this file, and not of what is made of it.
    tensors, _, identity = read_gguf_model(path)
    return Checkpoint(
        path=named, files=(path,), tensors=tensors, file_metadata={path: {}}, metadata={}, inputs={path: identity}
    )
