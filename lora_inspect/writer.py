"""A streaming, atomic writer of .safetensors files: header, tensors, rename. Standard library only."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, NamedTuple

from lora_inspect.byte_copy import Buffer, copy_bytes, write_all
from lora_inspect.dtypes import BITS
from lora_inspect.errors import LoraInspectError
from lora_inspect.header import TensorInfo, count_elements
from lora_inspect.input_file import Identity, InputFile, check_unchanged


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


def encode_header(plans: Sequence[TensorPlan], metadata: Mapping[str, str]) -> bytes:
    """The length prefix and the padded JSON header of a file with the tensors `plans` in this order."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    position = 0
    for plan in plans:
        stop = position + plan.nbytes
        entries[plan.name] = {"dtype": plan.dtype, "shape": list(plan.shape), "data_offsets": [position, stop]}
        position = stop
    header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header


class Writer:
    """Context manager that writes one file beside `path` and renames it when it is complete; else nothing is left.

    Tensors are written in the order of `plans`. Raises LoraInspectError when the disk refuses, and where one of the
    `inputs` is not the file any more that was read.
    """

    def __init__(
        self,
        path: str,
        plans: Sequence[TensorPlan],
        metadata: Mapping[str, str],
        inputs: Mapping[str, Identity] | None = None,
    ) -> None:
        self.path = path
        self._inputs = inputs or {}
        self._source: InputFile | None = None
        self._plans = iter(plans)
        self._header = encode_header(plans, metadata)
        self._partial = f"{path}.{os.getpid()}.partial"
        self._descriptor = -1

    def __enter__(self) -> "Writer":
        try:
            self._descriptor = os.open(self._partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        except OSError as error:
            raise LoraInspectError(
                f"{self.path}: it cannot be written ({error.strerror}); choose another place."
            ) from None
        try:
            self._write_all(self._header)
        except BaseException:  # an interrupt leaves no partial file either
            self._discard()
            raise
        return self

    def write(self, name: str, chunks: Iterable[Buffer]) -> None:
        """The whole content of the next tensor, which must be `name`, in as many chunks as the caller likes."""
        plan = self._next(name)
        written = 0
        for chunk in chunks:
            self._write_all(chunk)
            written += memoryview(chunk).nbytes
        if written != plan.nbytes:
            raise AssertionError(f"{name}: {written} bytes written where {plan.nbytes} were planned")

    def copy(self, info: TensorInfo, name: str | None = None) -> None:
        """The bytes of `info` as the next tensor, moved by the system where it can."""
        plan = self._next(name or info.name)
        if plan.nbytes != info.nbytes:
            raise AssertionError(f"{info.name}: {info.nbytes} bytes do not fit a plan of {plan.nbytes}")
        try:
            copy_bytes(self._opened(info), info.start, info.stop, self._descriptor)
        except OSError as error:
            raise self._refused(error) from None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._discard()
            return
        try:
            self._complete()
        except OSError as failure:
            self._discard()
            raise self._refused(failure) from None
        except BaseException:  # an interrupt leaves no partial file either
            self._discard()
            raise

    def _complete(self) -> None:
        left = next(self._plans, None)
        if left is not None:
            raise AssertionError(f"{left.name} was planned but not written")
        os.fsync(self._descriptor)
        self._close()
        check_unchanged(self._inputs)
        os.replace(self._partial, self.path)

    def _discard(self) -> None:
        with suppress(OSError):
            self._close()
        with suppress(OSError):
            os.unlink(self._partial)

    def _opened(self, info: TensorInfo) -> InputFile:
        """The file of `info`, which stays open until a tensor of another file is copied."""
        if self._source is None or (self._source.path, self._source.identity) != (info.file, info.identity):
            self._leave_source()
            self._source = InputFile(info.file, info.identity)
        return self._source

    def _leave_source(self) -> None:
        source, self._source = self._source, None
        if source is not None:
            source.close()

    def _close(self) -> None:
        self._leave_source()
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _next(self, name: str) -> TensorPlan:
        plan = next(self._plans, None)
        if plan is None or plan.name != name:
            raise AssertionError(f"{name} was written where {plan and plan.name} was planned")
        return plan

    def _write_all(self, buffer: Buffer) -> None:
        try:
            write_all(self._descriptor, buffer)
        except OSError as error:
            raise self._refused(error) from None

    def _refused(self, error: OSError) -> LoraInspectError:
        return LoraInspectError(
            f"{self.path}: it cannot be written ({error.strerror}); free space or choose another place."
        )
