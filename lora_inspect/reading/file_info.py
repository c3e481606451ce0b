"""What a file is: its kind, what its tensors mean, and the architectures that it may be of. Standard library only."""

from lora_inspect.architectures.detection import Detection
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.checkpoint import Checkpoint, open_checkpoint
from lora_inspect.reading.adapter import Adapter, read_adapter
from lora_inspect.reading.identify import adapter_candidates, base_candidates
from lora_inspect.reading.kinds import ADAPTER, kind_of
from lora_inspect.reading.model.settings import Settings
from lora_inspect.reading.paths import with_paths
from lora_inspect.reading.pipeline import PipelineExpert, pipeline_expert


class FileInfo(NamedTuple):
    """One checkpoint, read: its kind, its adapter reading (also of a base, where it is empty) and its architecture.

    `candidates` are all architectures that it may be of.
    """

    adapter: Adapter
    kind: str
    candidates: tuple[Detection, ...]

    @property
    def checkpoint(self) -> Checkpoint:
        """The headers that were read."""
        return self.adapter.checkpoint

    @property
    def detection(self) -> Detection | None:
        """The architecture, None where there is no candidate or more than one."""
        return self.candidates[0] if len(self.candidates) == 1 else None

    @property
    def expert(self) -> PipelineExpert | None:
        """The expert that it is of, where a pipeline of its family has several models."""
        components = {module.name.component for module in self.adapter.modules.values()}
        return pipeline_expert(self.checkpoint, components, self.candidates)


def inspect(path: str, settings: Settings = Settings()) -> FileInfo:  # noqa: B008 (frozen)
    """Reads the headers, alphas and flags of `path`; raises LoraInspectError where it is no readable checkpoint."""
    return inspect_adapter(open_checkpoint(path), settings)


def inspect_adapter(checkpoint: Checkpoint, settings: Settings = Settings()) -> FileInfo:  # noqa: B008 (frozen)
    """The reading of an opened checkpoint, with what the user settles."""
    kind, adapter = kind_of(read_adapter(checkpoint, settings))
    if kind != ADAPTER:
        return FileInfo(adapter, kind, base_candidates(checkpoint))
    families = adapter_candidates(adapter)
    return FileInfo(with_paths(adapter, families), kind, families)
