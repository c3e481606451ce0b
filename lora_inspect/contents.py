"""Tensors on their way into a small file: each either a range of an input or bytes in memory."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from lora_inspect.errors import LoraInspectError
from lora_inspect.header import TensorInfo
from lora_inspect.writer import TensorPlan, Writer, in_file_order

_CHUNK = 1 << 22


@dataclass(frozen=True, slots=True)
class Content:
    """What will be written under a name, and where its bytes come from."""

    plan: TensorPlan
    source: TensorInfo | bytes

    def chunks(self) -> Iterator[bytes]:
        """The bytes, a few megabytes at a time."""
        if isinstance(self.source, bytes):
            yield self.source
            return
        with open(self.source.file, "rb") as handle:
            handle.seek(self.source.start)
            left = self.source.nbytes
            while left:
                data = handle.read(min(left, _CHUNK))
                if not data:
                    raise LoraInspectError(
                        f"{self.source.file}: it became shorter while it was read; run the command again."
                    )
                left -= len(data)
                yield data


def renamed(info: TensorInfo, name: str, shape: tuple[int, ...] | None = None) -> Content:
    """The bytes of `info` under another name, and in another shape of the same size."""
    return Content(TensorPlan(name, info.dtype, info.shape if shape is None else shape), info)


def write_contents(path: str, contents: Sequence[Content], metadata: Mapping[str, str]) -> None:
    """Writes all of them to `path`, atomically; raises LoraInspectError where two have the same name."""
    by_name = {content.plan.name: content for content in contents}
    if len(by_name) != len(contents):
        names = [content.plan.name for content in contents]
        twice = next(name for name in names if names.count(name) > 1)
        raise LoraInspectError(f"{path}: two tensors would both be called {twice}; convert the file in another scheme.")
    plans = in_file_order(content.plan for content in contents)
    with Writer(path, plans, metadata) as writer:
        for plan in plans:
            content = by_name[plan.name]
            if isinstance(content.source, bytes):
                writer.write(plan.name, [content.source])
            else:
                writer.copy(content.source, plan.name)
