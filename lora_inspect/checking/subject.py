"""The subject of a check: a file with its reading, and more of it as soon as a lint asks for it.

`Rule` describes a problem of `check`: its code, severity and meaning, and the functions that find and fix it. `Draft`
is the file that --fix writes, while it changes: its tensors by name, in order, and its metadata. The layout of a
header's bytes is here too, which its meaning does not show.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING

from lora_inspect.architectures.detection import Detection
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.files.file_types import GGUF_MAGIC
from lora_inspect.files.input_file import InputFile
from lora_inspect.files.safetensors.strict_header import METADATA
from lora_inspect.files.safetensors.writer import Content, TensorPlan, renamed
from lora_inspect.progress import Progress, silent
from lora_inspect.reading.adapter import Adapter, read_adapter
from lora_inspect.reading.file_info import ADAPTER, kind_of
from lora_inspect.reading.identify import adapter_candidates, base_candidates
from lora_inspect.reading.model.contribution import Contribution, Module
from lora_inspect.reading.model.evidence import RawProblem
from lora_inspect.reading.model.settings import Settings

if TYPE_CHECKING:
    from lora_inspect.checking.measured import Measured


class Draft:
    """The contents of one file; unchanged parts keep their bytes."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.contents = {name: renamed(info, name) for name, info in checkpoint.tensors.items()}
        self.metadata = dict(checkpoint.metadata)
        self.changes_tensors = False

    def put(self, name: str, dtype: str, shape: tuple[int, ...], data: bytes) -> None:
        """Replace the bytes of a tensor."""
        self.contents[name] = Content(TensorPlan(name, dtype, shape), data)
        self.changes_tensors = True

    def reshape(self, name: str, shape: tuple[int, ...]) -> None:
        """Give a tensor another shape of the same size; the bytes stay."""
        content = self.contents[name]
        self.contents[name] = Content(content.plan._replace(shape=shape), content.source)
        self.changes_tensors = True

    def drop(self, keys: Iterable[str]) -> None:
        """Remove entries of the metadata."""
        for key in keys:
            self.metadata.pop(key, None)


_LENGTH_BYTES = 8
_FIRST, _PIECE = 64, 1 << 16
_BLANKS = b" \t\r\n"
_METADATA_FIRST = re.compile(rb'\s*\{\s*"' + METADATA.encode() + rb'"')


class HeaderShape(NamedTuple):
    """The first two bytes of the JSON of `file`, whether its metadata come first, and the blanks behind it.

    `blanks` is how many there are, and `spaces` says that all of them are spaces.
    """

    file: str
    start: bytes
    metadata_first: bool
    blanks: int
    spaces: bool


def header_shapes(checkpoint: Checkpoint) -> list[HeaderShape]:
    """Return the header's shape for every safetensors file; a GGUF file has a header of another kind."""
    return [shape for file in checkpoint.files if (shape := _shape(file, checkpoint))]


def _shape(file: str, checkpoint: Checkpoint) -> HeaderShape | None:
    with InputFile(file, checkpoint.inputs[file]) as source:
        start = bytes(source.read(0, _LENGTH_BYTES))
        if start.startswith(GGUF_MAGIC):
            return None
        stop = _LENGTH_BYTES + int.from_bytes(start, "little")
        first = bytes(source.read(_LENGTH_BYTES, min(_FIRST, stop - _LENGTH_BYTES)))
        blanks, spaces = 0, True
        while stop - blanks > _LENGTH_BYTES:
            size = min(_PIECE, stop - blanks - _LENGTH_BYTES)
            piece = bytes(source.read(stop - blanks - size, size))
            behind = piece[len(piece.rstrip(_BLANKS)) :]
            blanks, spaces = blanks + len(behind), spaces and not behind.strip(b" ")
            if len(behind) < size:
                break
    return HeaderShape(file, first[:2], bool(_METADATA_FIRST.match(first)), blanks, spaces)


class Subject:
    """A checkpoint with its kind ("adapter", "base", "other") and its reading, which is empty for no adapter.

    `look_at_sizes` finds the problems of the sizes of its changes, which take the algebra above this layer to measure.
    Without `compares_hashes` no hash of the metadata is compared with the tensors, which reads the whole file.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        settings: Settings,
        progress: Progress = silent,
        look_at_sizes: "Look | None" = None,
        compares_hashes: bool = True,
    ) -> None:
        self.checkpoint, self.settings, self.look_at_sizes = checkpoint, settings, look_at_sizes
        self.compares_hashes = compares_hashes
        self.kind, self.adapter = kind_of(read_adapter(checkpoint, settings))
        self.progress = progress

    @property
    def is_adapter(self) -> bool:
        """True if there is an adapter."""
        return self.kind == ADAPTER

    @property
    def metadata(self) -> Mapping[str, str]:
        """The metadata of all its files."""
        return self.checkpoint.metadata

    @property
    def ranked(self) -> list[tuple[Module, Contribution]]:
        """The changes that divide alpha by a rank, with their modules."""
        return [
            (module, contribution)
            for module in self.adapter.modules.values()
            for contribution in module.contributions
            if contribution.algorithm.formula and contribution.rank is not None and not contribution.algorithm.beside
        ]

    @cached_property
    def families(self) -> tuple[Detection, ...]:
        """The architectures that it may be of."""
        return adapter_candidates(self.adapter) if self.is_adapter else base_candidates(self.checkpoint)

    @cached_property
    def headers(self) -> list[HeaderShape]:
        """The layout of the header of each safetensors file."""
        return header_shapes(self.checkpoint)

    @cached_property
    def alphas(self) -> dict[str, float]:
        """The stored alphas that are plain numbers, by the name of their tensors."""
        infos = [module.alpha for module in self.adapter.modules.values() if module.alpha]
        numbers = self.checkpoint.numbers(info.name for info in infos)
        return {name: float(number) for name, number in numbers.items() if number is not None}

    @cached_property
    def measured(self) -> "dict[str, Measured]":
        """The measurements of every tensor's numbers, by name."""
        from lora_inspect.checking.measured import measure

        return {name: measure(info, self.progress) for name, info in self.checkpoint.tensors.items()}


def read_again(subject: Subject, metadata: Mapping[str, str]) -> Adapter:
    """Read the meaning of the file with other metadata; the subject must be one file."""
    (file,) = subject.checkpoint.files
    other = subject.checkpoint._replace(metadata=dict(metadata), file_metadata={file: dict(metadata)})
    return kind_of(read_adapter(other, subject.settings))[1]


Look = Callable[[Subject], Iterable[RawProblem]]
# Changes the draft of the output, and says what it changed, a sentence each; nothing where nothing can be proved.
Fix = Callable[[Subject, Draft], Iterable[str]]


class CheckRule(NamedTuple):
    """A kind of problem.

    `means`, `matters` and `way_out` are sentences for people: the problem, its importance and the way out. `looks` find
    it; there are none if the reading of the file finds it. `of_tensors` is true if it needs the tensors. `fix` is the
    fix of --fix, None if it would need a guess. `rewritten` is true if writing the file again fixes it.
    """

    code: str
    severity: str
    means: str
    matters: str
    way_out: str
    looks: tuple[Look, ...] = ()
    of_tensors: bool = False
    fix: Fix | None = None
    rewritten: bool = False
