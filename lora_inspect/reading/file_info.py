"""The description of a file: its kind (adapter, base or neither), its meaning, and its possible architectures.

Standard library only.
"""

from collections.abc import Collection

from lora_inspect.architectures.detection import Detection
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.checkpoint import Checkpoint, open_checkpoint
from lora_inspect.reading.adapter import Adapter, read_adapter
from lora_inspect.reading.base.base_names import is_weight
from lora_inspect.reading.identify import adapter_candidates, base_candidates, with_paths
from lora_inspect.reading.metadata.sidecars import NO_SIDECARS, NamedFamily, Sidecars, named_family
from lora_inspect.reading.model.evidence import CONTRADICTS
from lora_inspect.reading.model.settings import Settings
from lora_inspect.reading.pipeline import PipelineExpert, expert_of_names, pipeline_expert

ADAPTER, BASE, OTHER = "adapter", "base", "other"

# What is said of modules that a base may have by chance.
_OF_CHANCE = ("algorithm-unsupported", "unclaimed", "mixed-schemes", "embeddings")


def kind_of(adapter: Adapter) -> tuple[str, Adapter]:
    """Return the kind of the file, and its reading; a base with a few names like an adapter's has an empty one.

    Factors of a built algorithm with its own names, and problems with them, make an adapter. The names of the others
    are common words (`X.b1.weight`, `X.diff`): they make one if at least half of the tensors have them.
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
    """Return True if there are modules and they have at least half of the tensors."""
    claimed = {tensor.name for module in adapter.modules.values() for tensor in module.tensors}
    return bool(claimed) and 2 * len(claimed) >= len(adapter.checkpoint.tensors)


class OtherModel(NamedTuple):
    """A kind of model that is neither an adapter nor a base of one: its title, and tensors that show it."""

    title: str
    marks: tuple[str, ...]


# Each is told by names that only such files have. Sources of the names: AutoencoderKL, ControlNetModel and the text
# encoders in diffusers and transformers; the first stage and the control model in Stable Diffusion's repositories; the
# VAE of Wan; BasicSR's RRDBNet and its older spellings; IP-Adapter; A1111's embeddings.
OTHER_MODELS = (
    OtherModel("ControlNet", (
        "controlnet_cond_embedding.conv_in.weight", "controlnet_x_embedder.weight", "controlnet_blocks.0.weight",
        "control_model.input_hint_block.0.weight", "input_hint_block.0.weight",
    )),
    OtherModel("IP-Adapter", ("ip_adapter.1.to_k_ip.weight", "image_proj.proj.weight", "image_proj.latents")),
    OtherModel("VAE", (
        "decoder.mid_block.resnets.0.conv1.weight", "decoder.mid.block_1.conv1.weight",
        "first_stage_model.decoder.mid.block_1.conv1.weight", "decoder.middle.0.residual.0.gamma",
    )),
    OtherModel("upscaler", (
        "body.0.rdb1.conv1.weight", "RRDB_trunk.0.RDB1.conv1.weight", "model.1.sub.0.RDB1.conv1.0.weight",
    )),
    OtherModel("image encoder", ("vision_model.embeddings.class_embedding", "embeddings.class_embedding")),
    OtherModel("text encoder", (
        "text_model.embeddings.token_embedding.weight", "embeddings.token_embedding.weight",
    )),
    OtherModel("embedding", ("emb_params", "clip_l", "clip_g")),
)  # fmt: skip
# The models that adapters change hold a VAE and text encoders too, where one file has a whole pipeline.
_OF_PIPELINES = ("model.diffusion_model.", "diffusion_model.", "unet.", "transformer.")


def other_model(tensors: Collection[str]) -> str | None:
    """Return the title of the kind of model with tensors of these names; None for any other one."""
    if any(name.startswith(_OF_PIPELINES) for name in tensors):
        return None
    return next((one.title for one in OTHER_MODELS if any(mark in tensors for mark in one.marks)), None)


class FileInfo(NamedTuple):
    """One checkpoint after reading: its kind, its adapter reading (empty for a base) and its architecture.

    `candidates` are all its possible architectures. `sidecars` are the files of other programs next to it, and `named`
    is set if one of them decides between the candidates that its own content leaves.
    """

    adapter: Adapter
    kind: str
    candidates: tuple[Detection, ...]
    sidecars: Sidecars = NO_SIDECARS
    named: NamedFamily | None = None

    @property
    def checkpoint(self) -> Checkpoint:
        """The headers that were read."""
        return self.adapter.checkpoint

    @property
    def other_model(self) -> str | None:
        """The kind of a model without adapters, such as a VAE; None for an adapter and for a possible base."""
        if self.kind == ADAPTER or self.candidates:
            return None
        return "embedding" if self.adapter.embeddings else other_model(self.checkpoint.tensors)

    @property
    def detection(self) -> Detection | None:
        """The architecture, None where there is no candidate or more than one."""
        return self.candidates[0] if len(self.candidates) == 1 else None

    @property
    def expert(self) -> PipelineExpert | None:
        """The expert that it is of, where a pipeline of its family has several models."""
        components = {module.name.component for module in self.adapter.modules.values()}
        told = pipeline_expert(self.checkpoint, components, self.candidates)
        return told or expert_of_names(
            [(one.file, name) for one in self.sidecars.found for name in one.names], self.candidates
        )


def inspect(path: str, settings: Settings = Settings()) -> FileInfo:  # noqa: B008 (frozen)
    """Read the headers, alphas and flags of `path`. Raises LoraInspectError for an unreadable checkpoint.

    The sidecars of an adapter decide its family if the file itself leaves several.
    """
    checkpoint = open_checkpoint(path)
    info = inspect_adapter(checkpoint, settings)
    if info.kind != ADAPTER:
        return info
    info = info._replace(sidecars=Sidecars(checkpoint.files, checkpoint.root))
    if len(info.candidates) < 2 or not (named := named_family(info.candidates, info.sidecars.found)):
        return info
    return info._replace(adapter=with_paths(info.adapter, named.candidates), candidates=named.candidates, named=named)


def inspect_adapter(checkpoint: Checkpoint, settings: Settings = Settings()) -> FileInfo:  # noqa: B008 (frozen)
    """Return the reading of an opened checkpoint with the user's settings."""
    kind, adapter = kind_of(read_adapter(checkpoint, settings))
    if kind != ADAPTER:
        return FileInfo(adapter, kind, base_candidates(checkpoint))
    families = adapter_candidates(adapter)
    return FileInfo(with_paths(adapter, families), kind, families)
