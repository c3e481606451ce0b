"""The description of a file: its kind (adapter, base or neither), its meaning, and its possible architectures.

Standard library only.
"""

from lora_inspect.architectures.detection import Detection
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.checkpoint import Checkpoint, open_checkpoint
from lora_inspect.reading.adapter import Adapter, read_adapter
from lora_inspect.reading.base.base_names import is_weight
from lora_inspect.reading.identify import adapter_candidates, base_candidates, with_paths
from lora_inspect.reading.model.evidence import CONTRADICTS
from lora_inspect.reading.model.settings import Settings
from lora_inspect.reading.pipeline import PipelineExpert, pipeline_expert

ADAPTER, BASE, OTHER = "adapter", "base", "other"

# What is said of modules that a base may have by chance.
_OF_CHANCE = ("algorithm-unsupported", "unclaimed", "mixed-schemes", "embeddings")


def kind_of(adapter: Adapter) -> tuple[str, Adapter]:
    """The kind of the file, and its reading, which is empty where a base has a few names like those of an adapter.

    Factors of a built algorithm with names of its own, and what is wrong with them, make an adapter. The names of the
    others are common words (`X.b1.weight`, `X.diff`): they make one where at least half of the tensors have them.
    """
    tensors = adapter.checkpoint.tensors
    built = any(c.algorithm.formula and not c.is_common for c in adapter.contributions)
    # What the user says can be wrong of a base too.
    said = tuple(problem for problem in adapter.problems if problem.code == CONTRADICTS)
    found = (problem for problem in adapter.problems if problem not in said)
    wrong = any(problem.code not in _OF_CHANCE or not problem.keys for problem in found)
    if built or wrong or _has_half(adapter):
        return ADAPTER, adapter
    kind = BASE if any(map(is_weight, tensors.values())) else OTHER
    if not adapter.modules:
        return kind, adapter
    known = {*adapter.flags, *(key for embedding in adapter.embeddings for key in embedding.keys)}
    unclaimed = tuple(key for key in tensors if key not in known)
    return kind, adapter._replace(modules={}, scheme=None, unclaimed=unclaimed, problems=said)


def _has_half(adapter: Adapter) -> bool:
    """Whether there are modules, and at least half of the tensors are theirs."""
    claimed = {tensor.name for module in adapter.modules.values() for tensor in module.tensors}
    return bool(claimed) and 2 * len(claimed) >= len(adapter.checkpoint.tensors)


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
