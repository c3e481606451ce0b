"""The layers of two models, named as an adapter would name them that changes every one.

Such an adapter has rank 1 and none of its numbers: its keys and shapes are enough to find its family, its components
and its places in another layout.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from lora_inspect.algebra.extracting.model_pair import ModelPair, PairedTensor
from lora_inspect.algorithms.record import BIAS, WEIGHT
from lora_inspect.architectures.detection import Detection
from lora_inspect.architectures.patterns import layout_patterns, pattern_of
from lora_inspect.architectures.record import is_parameter
from lora_inspect.architectures.rows import Runs
from lora_inspect.architectures.text_encoders import OPEN_CLIP
from lora_inspect.errors import RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.reading.adapter import Adapter, read_adapter
from lora_inspect.reading.base.base_names import BASE_PREFIXES, leaf_of
from lora_inspect.reading.identify import base_candidates
from lora_inspect.reading.model.settings import Settings
from lora_inspect.reading.pipeline import base_parts
from lora_inspect.schemes.peft import PEFT
from lora_inspect.schemes.record import MODEL

_VAE, _OTHERS = "vae", "others"
OF_VAE = "it is of the VAE, which adapters do not change"
_NO_COMPONENT = {
    _VAE: OF_VAE,
    _OTHERS: "it is of no component of a known pipeline",
}
# The beginnings of keys in diffusers' names, which cover every component.
_PREFIXES = {MODEL: "transformer.", "model_2": "transformer_2."}
# The parameters of a module; RMSNorm of some programs calls its weight `scale`.
_PARAMETERS = {"weight": WEIGHT, "bias": BIAS, "scale": WEIGHT}
# Parameters of torch's MultiheadAttention, which has those of its fused layer itself.
_FUSED = {"in_proj_weight": WEIGHT, "in_proj_bias": BIAS}
# The last names of embeddings, which PEFT spells in its own way.
_EMBEDDINGS = frozenset(
    (
        *("embed_tokens", "embed_tokens_per_layer", "embed_in", "embed_positions", "shared", "tok_embeddings"),
        *("wte", "wpe", "word_embeddings", "position_embeddings", "token_type_embeddings"),
        *("token_embedding", "position_embedding"),
    )
)
# A weight with more numbers behind its inputs has the matrices of experts, not a kernel.
_LONGEST_KERNEL = 64


class Layer(NamedTuple):
    """A module of the difference and its share of a tensor: a parameter, in some `runs` of rows, or all without.

    `key` is the module's name as an adapter of the base has it. `runs` lead from the tensor to the module. Factors
    change a parameter that `is_matrix`. A weight that is `turned` is stored as (in, out).
    """

    tensor: PairedTensor
    component: str
    key: str
    parameter: str
    is_matrix: bool
    runs: Runs | None = None
    turned: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the parameter in the module, (out, in, *kernel) of a weight."""
        whole = self.tensor.shape[::-1] if self.turned else self.tensor.shape
        return whole if self.runs is None else (self.runs.rows, *whole[1:])

    @property
    def is_embedding(self) -> bool:
        """True if tokens look the weight up, judging by its name."""
        return self.is_matrix and leaf_of(self.key) in _EMBEDDINGS and len(self.tensor.shape) == 2


@dataclass(frozen=True, slots=True)
class ModelLayers:
    """The layers of both models in the order of the base.

    `is_image` is True for an image or video model, which has its own names of components. `left_out` are the tensors
    that no adapter changes, with the reason.
    """

    families: tuple[Detection, ...]
    is_image: bool
    layers: tuple[Layer, ...]
    left_out: Mapping[str, str]


def layers_of(pair: ModelPair, architecture: str | None) -> ModelLayers:
    """Return the layers of a pair; `architecture` names the family where several fit.

    Raises LoraInspectError for a family that does not fit.
    """
    families = _families(pair, architecture)
    is_image = any(family.layout.kohya_prefix for family in families)
    turned = _Orientations(pair, families)
    layers, left_out = list[Layer](), dict(pair.unread)
    for tensor, component, path in _placed(pair, families, is_image):
        found = _NO_COMPONENT.get(component) or _layer(tensor, component, path, turned.of(tensor.name))
        if isinstance(found, str):
            left_out[tensor.name] = found
        else:
            prefix = _PREFIXES.get(component, f"{component}.") if is_image else next(iter(PEFT.prefixes))
            layers += [one._replace(key=prefix + one.key) for one in _in_transformers(found)]
    return ModelLayers(families, is_image, tuple(layers), left_out)


def _families(pair: ModelPair, architecture: str | None) -> tuple[Detection, ...]:
    found = base_candidates(pair.base)
    if architecture is None:
        return found
    chosen = tuple(one for one in found if one.architecture.name == architecture)
    if not chosen:
        known = " or ".join(one.architecture.name for one in found) or "no known family"
        raise RefusedError(pair.base.path, f"it is of {known}, not of {architecture}", "leave --architecture out")
    return chosen


def _placed(pair: ModelPair, families: Sequence[Detection], is_image: bool) -> Iterator[tuple[PairedTensor, str, str]]:
    """Yield (tensor, component, path in its component) of every tensor."""
    layouts = [layout for family in families for layout in family.architecture.layouts]
    known = frozenset(pattern for layout in layouts for pattern in layout_patterns(layout.named, "."))
    components = {info.name: part.component for part in base_parts(pair.base, families) for info in part.tensors}
    for tensor in pair.tensors.values():
        component = components[tensor.name if tensor.name in components else tensor.base.info.name]
        if not is_image:
            yield tensor, component if component == _VAE else MODEL, tensor.name
            continue
        prefixes = sorted(BASE_PREFIXES.get(component, ("",)), key=len, reverse=True)
        paths = [tensor.name[len(one) :] for one in prefixes if tensor.name.startswith(one)] or [tensor.name]
        fitting = (path for path in paths if pattern_of(path.rpartition(".")[0], ".") in known)
        yield tensor, component, next(fitting, paths[0])


def _layer(tensor: PairedTensor, component: str, path: str, turned: bool) -> Layer | str:
    """Return the layer of a tensor, its path for a key; or the reason why no adapter changes it."""
    module, _, leaf = path.rpartition(".")
    shape = tensor.shape
    if leaf in _FUSED:
        return Layer(tensor, component, f"{module}.in_proj", _FUSED[leaf], len(shape) > 1)
    if module and (leaf == "weight" or (leaf in _PARAMETERS and len(shape) == 1)):
        if len(shape) == 3 and shape[-1] > _LONGEST_KERNEL:
            return "it has the matrices of several experts"
        return Layer(tensor, component, module, _PARAMETERS[leaf], len(shape) > 1, turned=turned)
    if not shape:
        return "it is a single number"
    if tensor.base.info.numel == max(shape) or is_parameter(path):
        return Layer(tensor, component, path, WEIGHT, False)
    return "it is no weight of a layer"


def _in_transformers(layer: Layer) -> list[Layer]:
    """Return the layers of a text encoder under transformers' names, which programs load; else itself."""
    found = []
    # The wholes of these relations are open_clip's.
    for link in (link for link in OPEN_CLIP.links(layer.key) if layer.component != MODEL and not link.is_whole):
        arrangement = link.relation.arrangement
        runs = arrangement.runs(layer.tensor.shape[0], layer.tensor.shape[-1]) if arrangement else None
        found.append(layer._replace(key=link.path, runs=runs[link.part] if runs else None))
    return found or [layer]


class _Orientations:
    """The matrices that are stored as (in, out), as in transformers' Conv1D.

    The bias of a layer shows it if the weight is not square; layers of the same name show it for a square one. Without
    a bias, the table of the family decides.
    """

    def __init__(self, pair: ModelPair, families: Sequence[Detection]) -> None:
        self._tables = {leaf for family in families for leaf in family.layout.transposed}
        self._pair = pair

    def of(self, name: str) -> bool:
        """Return True if the weight of this name is stored so."""
        path, _, leaf = name.rpartition(".")
        if leaf != "weight" or len(self._pair.tensors[name].shape) != 2:
            return False
        own = self._by_bias(path)
        if own is None:
            own = self._by_leaf.get(leaf_of(path))
        return leaf_of(path) in self._tables if own is None else own

    def _by_bias(self, path: str) -> bool | None:
        weight, bias = (self._pair.tensors.get(f"{path}.{leaf}") for leaf in ("weight", "bias"))
        if weight is None or bias is None or len(bias.shape) != 1 or len(weight.shape) != 2:
            return None
        rows, columns = weight.shape
        return bias.shape[0] == columns if rows != columns and bias.shape[0] in weight.shape else None

    @cached_property
    def _by_leaf(self) -> dict[str, bool]:
        """The same by the last name of layers, where all that show it agree."""
        found: dict[str, set[bool]] = {}
        for name in self._pair.tensors:
            path, _, leaf = name.rpartition(".")
            if leaf == "weight" and (shown := self._by_bias(path)) is not None:
                found.setdefault(leaf_of(path), set()).add(shown)
        return {leaf: next(iter(shown)) for leaf, shown in found.items() if len(shown) == 1}


def as_adapter(pair: ModelPair, found: ModelLayers, layers: Sequence[Layer]) -> Adapter:
    """Return some of the layers as the modules of an adapter in the base's names."""
    tensors = {}
    for layer in layers:
        shape, ones = layer.shape, (1,) * (len(layer.shape) - 2)
        if not layer.is_matrix:
            shapes = {".diff_b" if layer.parameter == BIAS else ".diff": shape}
        elif layer.is_embedding:
            shapes = {".lora_embedding_A": (1, layer.tensor.shape[0]), ".lora_embedding_B": (layer.tensor.shape[1], 1)}
        else:
            shapes = {".lora_A.weight": (1, *shape[1:]), ".lora_B.weight": (shape[0], 1, *ones)}
        for suffix, own in shapes.items():
            key = layer.key + suffix
            tensors[key] = layer.tensor.base.info._replace(name=key, dtype="F32", shape=own)
    names = {one.architecture.name for one in found.families}
    settings = Settings(architecture=names.pop()) if len(names) == 1 else Settings()
    return read_adapter(pair.base._replace(tensors=tensors, config=None, config_path=None, codes={}), settings)
