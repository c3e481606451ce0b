"""A streaming, atomic writer of .safetensors files: header, tensors, rename. Standard library only."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any

from lora_inspect.files.byte_copy import Buffer, copy_bytes, write_all
from lora_inspect.files.dtypes import BITS
from lora_inspect.files.header import LENGTH_BYTES, TensorInfo, count_elements
from lora_inspect.files.input_file import Identity, InputFile
from lora_inspect.files.outputs import new_file
from lora_inspect.progress import Progress, silent
from lora_inspect.records import NamedTuple

# What a header of ours is longer than its text at least, so that another text may take its place.
ROOM = 4096
# Tensors begin at a multiple of it, as the safetensors library has them.
ALIGNMENT = 8


class TensorPlan(NamedTuple):
    """What will be written under `name`."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size in the file, in bytes."""
        return count_elements(self.shape) * BITS[self.dtype] // 8


def in_file_order(plans: Iterable[TensorPlan]) -> list[TensorPlan]:
    """The plans with wider element types first, so that every tensor is aligned; otherwise in the given order."""
    return sorted(plans, key=lambda plan: -BITS[plan.dtype])


def encode_header(plans: Sequence[TensorPlan], metadata: Mapping[str, str], room: int = 0) -> bytes:
    """The header of a file with the tensors `plans` in this order, its length before it and `room` blanks behind it."""
    return padded_header(header_text(plans, metadata), room)


def header_text(plans: Iterable[TensorPlan], metadata: Mapping[str, str]) -> bytes:
    """The JSON of a header in as few bytes as it takes."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    position = 0
    for plan in plans:
        stop = position + plan.nbytes
        entries[plan.name] = {"dtype": plan.dtype, "shape": list(plan.shape), "data_offsets": [position, stop]}
        position = stop
    return json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()


def padded_header(text: bytes, room: int = 0, behind: int = 0, step: int = ALIGNMENT) -> bytes:
    """A header with the length before its text and at least `room` blanks behind it.

    The data then begins `behind` a multiple of `step`.
    """
    blanks = room + (behind - LENGTH_BYTES - len(text) - room) % step
    return (len(text) + blanks).to_bytes(LENGTH_BYTES, "little") + text + b" " * blanks


class Writer:
    """Context manager that writes one file beside `path` and renames it when it is complete; else nothing is left.

    Tensors are written in the order of `plans`. With `force` the file replaces one of its name. Raises
    LoraInspectError when the disk refuses, where something has the name, and where one of the `inputs` is not the file
    any more that was read.
    """

    def __init__(
        self,
        path: str,
        plans: Sequence[TensorPlan],
        metadata: Mapping[str, str],
        inputs: Mapping[str, Identity] | None = None,
        force: bool = False,
        prove: Callable[[str], None] | None = None,
    ) -> None:
        self._file = new_file(path, inputs, force, prove)
        self._source: InputFile | None = None
        self._plans = iter(plans)
        self._header = encode_header(plans, metadata, ROOM)
        self._descriptor = -1

    def __enter__(self) -> "Writer":
        with ExitStack() as opened:
            self._descriptor = opened.enter_context(self._file)
            opened.callback(self._leave_source)
            write_all(self._descriptor, self._header)
            self._opened = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._opened.__exit__(kind, error, trace)
            return
        with self._opened:
            left = next(self._plans, None)
            if left is not None:
                raise AssertionError(f"{left.name} was planned but not written")

    def write(self, name: str, chunks: Iterable[Buffer]) -> None:
        """The whole content of the next tensor, which must be `name`, in as many chunks as the caller likes."""
        plan = self._next(name)
        written = 0
        for chunk in chunks:
            write_all(self._descriptor, chunk)
            written += memoryview(chunk).nbytes
        if written != plan.nbytes:
            raise AssertionError(f"{name}: {written} bytes written where {plan.nbytes} were planned")

    def copy(self, info: TensorInfo, name: str | None = None, progress: Progress = silent) -> None:
        """The bytes of `info` as the next tensor, moved by the system where it can."""
        plan = self._next(name or info.name)
        if plan.nbytes != info.nbytes:
            raise AssertionError(f"{info.name}: {info.nbytes} bytes do not fit a plan of {plan.nbytes}")
        copy_bytes(self._source_of(info), info.start, info.stop, self._descriptor, progress)

    def _source_of(self, info: TensorInfo) -> InputFile:
        """The file of `info`, which stays open until a tensor of another file is copied."""
        if self._source is None or (self._source.path, self._source.identity) != (info.file, info.identity):
            self._leave_source()
            self._source = InputFile(info.file, info.identity)
        return self._source

    def _leave_source(self) -> None:
        source, self._source = self._source, None
        if source is not None:
            source.close()

    def _next(self, name: str) -> TensorPlan:
        plan = next(self._plans, None)
        if plan is None or plan.name != name:
            raise AssertionError(f"{name} was written where {plan and plan.name} was planned")
        return plan
