"""Tensors on their way into a file: each a range of an input, bytes in memory, or bytes that are yet to be made."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from lora_inspect.errors import LoraInspectError
from lora_inspect.files.input_file import Identity, InputFile
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.files.safetensors.writer import TensorPlan, Writer, in_file_order
from lora_inspect.progress import Progress, silent

_CHUNK = 1 << 22


@dataclass(frozen=True, slots=True)
class Computed:
    """Bytes that are made once they are written, where all of them together would take too much memory."""

    make: Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class Content:
    """What will be written under a name, and where its bytes come from."""

    plan: TensorPlan
    source: "TensorInfo | bytes | Computed"

    def chunks(self) -> Iterator[bytes]:
        """The bytes, a few megabytes at a time."""
        if not isinstance(self.source, TensorInfo):
            yield self.source.make() if isinstance(self.source, Computed) else self.source
            return
        with InputFile(self.source.file, self.source.identity) as source:
            yield from _chunks_in(source, self.source)


def chunks_of(contents: Iterable[Content]) -> Iterator[bytes]:
    """The bytes of one after the other. A file stays open for as long as the next tensor is in it."""
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
    """The bytes of `info` under another name, and in another shape of the same size."""
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
    """Writes all of them to `path`, atomically; raises LoraInspectError where two have the same name.

    `inputs` are the files that the contents were made of, and have to be those still when the output is complete.
    With `force` it replaces a file of its name. `prove` is called with the path of the complete file before it appears.
    `progress` is told of the bytes that are copied.
    """
    by_name = {content.plan.name: content for content in contents}
    if len(by_name) != len(contents):
        names = [content.plan.name for content in contents]
        twice = next(name for name in names if names.count(name) > 1)
        raise LoraInspectError(f"{path}: two tensors would both be called {twice}; convert the file in another scheme.")
    plans = in_file_order(content.plan for content in contents)
    with Writer(path, plans, metadata, inputs, force, prove) as writer:
        for plan in plans:
            content = by_name[plan.name]
            if isinstance(content.source, TensorInfo):
                writer.copy(content.source, plan.name, progress)
            else:
                writer.write(plan.name, content.chunks())
