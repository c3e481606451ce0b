"""The file that --fix writes, as long as it is changed: its tensors by name, in order, and its metadata."""

from collections.abc import Iterable

from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.files.safetensors.writer import Content, TensorPlan, renamed


class Draft:
    """The contents of one file. What is not changed keeps its bytes."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.contents = {name: renamed(info, name) for name, info in checkpoint.tensors.items()}
        self.metadata = dict(checkpoint.metadata)
        self.changes_tensors = False

    def put(self, name: str, dtype: str, shape: tuple[int, ...], data: bytes) -> None:
        """Other bytes for a tensor that is there."""
        self.contents[name] = Content(TensorPlan(name, dtype, shape), data)
        self.changes_tensors = True

    def reshape(self, name: str, shape: tuple[int, ...]) -> None:
        """Another shape of the same size; the bytes stay."""
        content = self.contents[name]
        self.contents[name] = Content(content.plan._replace(shape=shape), content.source)
        self.changes_tensors = True

    def drop(self, keys: Iterable[str]) -> None:
        """Leaves entries of the metadata out."""
        for key in keys:
            self.metadata.pop(key, None)
