"""What is looked at: a file with its reading, and what is read of it only where a lint asks for it."""

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING

from lora_inspect.architectures.detection import Detection
from lora_inspect.checking.header_shape import HeaderShape, header_shapes
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.progress import Progress, silent
from lora_inspect.reading.adapter import Adapter, read_adapter
from lora_inspect.reading.file_info import ADAPTER, kind_of
from lora_inspect.reading.identify import adapter_candidates, base_candidates
from lora_inspect.reading.model.contribution import Contribution, Module
from lora_inspect.reading.model.settings import Settings

if TYPE_CHECKING:  # where the tensors are read
    from lora_inspect.checking.measured import Measured


class Subject:
    """A checkpoint, its kind ("adapter", "base", "other") and its reading, which is empty for what is no adapter."""

    def __init__(self, checkpoint: Checkpoint, settings: Settings, progress: Progress = silent) -> None:
        self.checkpoint, self.settings = checkpoint, settings
        self.kind, self.adapter = kind_of(read_adapter(checkpoint, settings))
        self.progress = progress

    @property
    def is_adapter(self) -> bool:
        """Whether there is an adapter to look at."""
        return self.kind == ADAPTER

    @property
    def metadata(self) -> Mapping[str, str]:
        """The metadata of all its files."""
        return self.checkpoint.metadata

    @property
    def ranked(self) -> list[tuple[Module, Contribution]]:
        """The changes whose alpha is divided by a rank, with their modules."""
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
        """How the header of each safetensors file is laid out."""
        return header_shapes(self.checkpoint)

    @cached_property
    def alphas(self) -> dict[str, float]:
        """The stored alphas that are plain numbers, by the name of their tensors."""
        infos = [module.alpha for module in self.adapter.modules.values() if module.alpha]
        numbers = self.checkpoint.numbers(info.name for info in infos)
        return {name: float(number) for name, number in numbers.items() if number is not None}

    @cached_property
    def measured(self) -> "dict[str, Measured]":
        """What the numbers of every tensor amount to, by its name."""
        from lora_inspect.checking.measured import measure

        return {name: measure(info, self.progress) for name, info in self.checkpoint.tensors.items()}


def read_again(subject: Subject, metadata: Mapping[str, str]) -> Adapter:
    """What the file would mean with other metadata; the subject has to be of one file."""
    (file,) = subject.checkpoint.files
    other = subject.checkpoint._replace(metadata=dict(metadata), file_metadata={file: dict(metadata)})
    return kind_of(read_adapter(other, subject.settings))[1]
