"""A streaming, atomic writer of .safetensors files: header, tensors, rename. Standard library only.

`Writer` writes the file and `write_contents` all tensors of it. A tensor is a range of an input, bytes in memory, or
computed while it is written; the system copies ranges of an input itself if it can. `EarlySync` makes the disk store
data while the program makes more, so that less remains at the end.
"""

import json
import os
import threading
from _thread import allocate_lock
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from lora_inspect.errors import RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.input_file import HeldInput, Identity, InputFile
from lora_inspect.files.outputs import new_file
from lora_inspect.files.safetensors.dtypes import BITS
from lora_inspect.files.safetensors.header import LENGTH_BYTES, Span, TensorInfo, count_elements, read_header
from lora_inspect.files.system import copy_in_system, start_writing, write_at
from lora_inspect.progress import Progress, silent

Buffer = bytes | bytearray | memoryview
_COPY_BYTES = 16 << 20
# What the system is asked to copy at a time, so that it can be told how far it is.
_SYSTEM_BYTES = 64 << 20


def write_all(descriptor: int, buffer: Buffer) -> None:
    """Append the whole of `buffer`. Raises OSError if the disk refuses."""
    view = memoryview(buffer).cast("B")
    while view:
        view = view[os.write(descriptor, view) :]


def write_all_at(descriptor: int, buffer: Buffer, position: int) -> int:
    """Write the whole of `buffer` at a `position`, and return the position after it. Raises OSError."""
    view = memoryview(buffer).cast("B")
    while view:
        written = write_at(descriptor, view, position)
        view, position = view[written:], position + written
    return position


def copy_bytes(source: InputFile, start: int, stop: int, descriptor: int, at: int, progress: Progress = silent) -> None:
    """Write the bytes `start` to `stop` of an input to the position `at`. Raises OSError if the disk refuses."""
    # Where the system cannot, reading and writing finds out whether the disk itself refuses.
    moved = _copy_in_system(source, start, stop, descriptor, at, progress)
    start, at = start + moved, at + moved
    for data in source.pieces(start, stop, _COPY_BYTES):
        at = write_all_at(descriptor, data, at)
        progress(len(data))


def _copy_in_system(source: InputFile, start: int, stop: int, descriptor: int, at: int, progress: Progress) -> int:
    """Copy as many bytes as the system copies by itself, and return the number."""
    done = 0
    while source.is_on_disk and start + done < stop:
        count = min(stop - start - done, _SYSTEM_BYTES)
        moved = copy_in_system(source.fileno(), descriptor, count, start + done, at + done)
        if not moved:
            break
        done += moved
        progress(moved)
    return done


# So much is written between two words to the disk; smaller files wait for none.
_STEP = 64 << 20


class EarlySync:
    """A thread that tells the system to write one open file to disk early; only this thread waits for a slow disk.

    Disk errors appear when the file is finally synced.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._since = 0
        self._due = threading.Event()
        self._is_over = False
        self._thread: threading.Thread | None = None

    def wrote(self, count: int) -> None:
        """Report `count` more written bytes; only one thread calls it at a time."""
        self._since += count
        if self._since < _STEP:
            return
        self._since = 0
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, daemon=True)
            with suppress(RuntimeError):  # without one all is left for the end
                self._thread.start()
        self._due.set()

    def close(self) -> None:
        """End the thread; afterwards the file may be closed."""
        self._is_over = True
        self._due.set()
        if self._thread is not None and self._thread.ident is not None:
            self._thread.join()

    def _serve(self) -> None:
        while True:
            self._due.wait()
            self._due.clear()
            if self._is_over or not start_writing(self._descriptor):
                return


# What a header of ours is longer than its text at least, so that another text may take its place.
ROOM = 4096
# Tensors begin at a multiple of it, as the safetensors library has them.
ALIGNMENT = 8


class TensorPlan(NamedTuple):
    """The element type and shape of a tensor to write under `name`."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size in the file, in bytes."""
        return count_elements(self.shape) * BITS[self.dtype] // 8


def in_file_order(plans: Iterable[TensorPlan]) -> list[TensorPlan]:
    """Return the plans with wider element types first, to align every tensor; otherwise in the given order."""
    return sorted(plans, key=lambda plan: -BITS[plan.dtype])


def encode_header(plans: Sequence[TensorPlan], metadata: Mapping[str, str], room: int = 0) -> bytes:
    """Return the header of a file with the tensors `plans` in this order, after its length and before `room` blanks."""
    return padded_header(header_text(plans, metadata), room)


def header_text(plans: Iterable[TensorPlan], metadata: Mapping[str, str]) -> bytes:
    """Return the JSON of a header in as few bytes as possible."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    position = 0
    for plan in plans:
        stop = position + plan.nbytes
        entries[plan.name] = {"dtype": plan.dtype, "shape": list(plan.shape), "data_offsets": [position, stop]}
        position = stop
    return json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()


def padded_header(text: bytes, room: int = 0, behind: int = 0, step: int = ALIGNMENT) -> bytes:
    """Return a header with its length before its text and at least `room` blanks after it.

    The data then begins `behind` a multiple of `step`.
    """
    blanks = room + (behind - LENGTH_BYTES - len(text) - room) % step
    return (len(text) + blanks).to_bytes(LENGTH_BYTES, "little") + text + b" " * blanks


class Writer:
    """Context manager that writes one file next to `path` and renames it when it is complete; else nothing is left.

    The places of all tensors and the `size` of the file are known from the header, so that several threads may write,
    each its own tensors or rows. With `force` the file replaces one of its name. Raises LoraInspectError if the disk
    refuses, if something has the name, and if one of the `inputs` changed since it was read.
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
        self._source = HeldInput()
        self._header = encode_header(plans, metadata, ROOM)
        self._places: dict[str, tuple[int, int]] = {}
        stop = len(self._header)
        for plan in plans:
            start, stop = stop, stop + plan.nbytes
            self._places[plan.name] = start, stop
        self.size = stop
        self._left = stop - len(self._header)
        self._counting = allocate_lock()
        self._descriptor = -1

    def __enter__(self) -> "Writer":
        with ExitStack() as opened:
            self._descriptor = opened.enter_context(self._file)
            opened.callback(self._source.close)
            self._sync = EarlySync(self._descriptor)
            opened.callback(self._sync.close)
            write_all_at(self._descriptor, self._header, 0)
            self._opened = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._opened.__exit__(kind, error, trace)
            return
        with self._opened:
            if self._left:
                raise AssertionError(f"{self._left} bytes were planned but not written")

    def place(self, name: str) -> tuple[int, int]:
        """Return the begin and the end of a tensor in the file."""
        return self._places[name]

    def has(self, name: str) -> bool:
        """Return True if the file has a tensor of this name."""
        return name in self._places

    def forget(self, name: str) -> None:
        """Allow a tensor that was written whole to be written again."""
        start, stop = self._places[name]
        self._count(start - stop)

    def write(self, name: str, chunks: Iterable[Buffer]) -> None:
        """Write the whole content of a tensor, in any number of chunks."""
        start, stop = self._places[name]
        position = 0
        for chunk in chunks:
            position = self.write_at(name, position, chunk)
        if position != stop - start:
            raise AssertionError(f"{name}: {position} bytes written where {stop - start} were planned")

    def write_at(self, name: str, position: int, buffer: Buffer) -> int:
        """Write bytes of a tensor from its own `position` on, each only once; return the position after them."""
        start, stop = self._places[name]
        count = memoryview(buffer).nbytes
        if start + position + count > stop:
            raise AssertionError(f"{name}: more bytes written than the {stop - start} that were planned")
        write_all_at(self._descriptor, buffer, start + position)
        self._count(count)
        return position + count

    def copy(self, info: TensorInfo, name: str | None = None, progress: Progress = silent) -> None:
        """Write the bytes of `info` as a whole tensor, moved by the system if it can."""
        start, stop = self._places[name or info.name]
        if stop - start != info.nbytes:
            raise AssertionError(f"{info.name}: {info.nbytes} bytes do not fit a plan of {stop - start}")
        self.copy_span(Span(info, info.start, info.stop, start), self._source.of(info.file, info.identity), progress)

    def copy_span(self, span: Span, source: InputFile, progress: Progress = silent) -> None:
        """Write the bytes of a span, from its open `source`, moved by the system if it can."""
        copy_bytes(source, span.start, span.stop, self._descriptor, span.at, progress)
        self._count(span.stop - span.start)

    def leave(self, count: int) -> None:
        """Skip `count` bytes of the tensors, which the file's receiver already has. They are holes in the file."""
        os.ftruncate(self._descriptor, self.size)
        self._count(count)

    def spans(self, infos: Iterable[TensorInfo]) -> Iterator[Span]:
        """Yield the spans to copy of tensors that keep their names, in file order; neighbours form one span."""
        last: Span | None = None
        for info in sorted(infos, key=lambda info: self._places[info.name]):
            at, _ = self._places[info.name]
            behind = last and (last.info.file, last.stop, last.at + last.stop - last.start)
            if last and behind == (info.file, info.start, at):
                last = last._replace(stop=info.stop)
                continue
            if last:
                yield last
            last = Span(info, info.start, info.stop, at)
        if last:
            yield last

    def _count(self, written: int) -> None:
        with self._counting:
            self._left -= written
            self._sync.wrote(written)


def rewrite_header(file: str, header: bytes, length: int) -> None:
    """Replace the header of a file, of `length` bytes, by one of the same tensors; OSError if the disk refuses.

    Blanks make up the difference in length.
    """
    text = header[LENGTH_BYTES:].rstrip(b" ")
    if LENGTH_BYTES + len(text) > length:
        raise AssertionError(f"{file}: a header of {len(text)} bytes does not fit the {length} of its own")
    written = (length - LENGTH_BYTES).to_bytes(LENGTH_BYTES, "little") + text.ljust(length - LENGTH_BYTES)
    with open(file, "r+b", buffering=0) as opened:
        write_all_at(opened.fileno(), written, 0)
        os.fsync(opened.fileno())


def rewrite_tensor(file: str, name: str, content: bytes) -> None:
    """Write the whole content of one tensor into an existing file. Raises OSError if the disk refuses."""
    tensors, _ = read_header(file)
    info = tensors[name]
    if info.nbytes != len(content):
        raise AssertionError(f"{name}: {len(content)} bytes do not fit its {info.nbytes}")
    with open(file, "r+b", buffering=0) as opened:
        write_all_at(opened.fileno(), content, info.start)
        os.fsync(opened.fileno())


_CHUNK = 1 << 22


@dataclass(frozen=True, slots=True)
class Computed:
    """Bytes that are made once they are written, where all of them together would take too much memory."""

    make: Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class Content:
    """The plan of a tensor to write, and the source of its bytes."""

    plan: TensorPlan
    source: "TensorInfo | bytes | Computed"

    def chunks(self) -> Iterator[bytes]:
        """Yield the bytes, a few megabytes at a time."""
        if not isinstance(self.source, TensorInfo):
            yield self.source.make() if isinstance(self.source, Computed) else self.source
            return
        with InputFile(self.source.file, self.source.identity) as source:
            yield from _chunks_in(source, self.source)


def chunks_of(contents: Iterable[Content]) -> Iterator[bytes]:
    """Yield the bytes of one tensor after the other. A file stays open while the next tensor is in it."""
    opened: InputFile | None = None
    try:
        for content in contents:
            info = content.source
            if not isinstance(info, TensorInfo):
                yield from content.chunks()
                continue
            if opened is None or (opened.path, opened.identity) != (info.file, info.identity):
                before, opened = opened, InputFile(info.file, info.identity)
                if before:
                    before.close()
            yield from _chunks_in(opened, info)
    finally:
        if opened:
            opened.close()


def _chunks_in(source: InputFile, info: TensorInfo) -> Iterator[bytes]:
    return map(bytes, source.pieces(info.start, info.stop, _CHUNK))


def renamed(info: TensorInfo, name: str, shape: tuple[int, ...] | None = None) -> Content:
    """Return the bytes of `info` under another name, and in another shape of the same size."""
    return Content(TensorPlan(name, info.dtype, info.shape if shape is None else shape), info)


def write_contents(
    path: str,
    contents: Sequence[Content],
    metadata: Mapping[str, str],
    inputs: Mapping[str, Identity] | None = None,
    force: bool = False,
    prove: Callable[[str], None] | None = None,
    progress: Progress = silent,
) -> None:
    """Write all contents to `path`, atomically. Raises LoraInspectError if two have the same name.

    `inputs` are the source files of the contents, and must be unchanged when the output is complete. With `force` it
    replaces a file of its name. `prove` is called with the path of the complete file before it appears. `progress` gets
    the number of copied bytes.
    """
    by_name = {content.plan.name: content for content in contents}
    if len(by_name) != len(contents):
        names = [content.plan.name for content in contents]
        twice = next(name for name in names if names.count(name) > 1)
        raise RefusedError(path, f"two tensors would both have the name {twice}", "convert the file in another scheme")
    plans = in_file_order(content.plan for content in contents)
    with Writer(path, plans, metadata, inputs, force, prove) as writer:
        for plan in plans:
            content = by_name[plan.name]
            if isinstance(content.source, TensorInfo):
                writer.copy(content.source, plan.name, progress)
            else:
                writer.write(plan.name, content.chunks())
