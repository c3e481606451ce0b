"""The prefixes of module paths in base checkpoints, and the tensors of them that are weights."""

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING

from lora_inspect import schemes
from lora_inspect.algorithms.record import BIAS, WEIGHT
from lora_inspect.architectures.correspondence import UNKNOWN, Correspondence, Link
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.schemes.comfyui import COMFYUI
from lora_inspect.schemes.record import MODEL, ModuleName

if TYPE_CHECKING:
    from lora_inspect.architectures.rows import Arrangement


def _of_comfyui(component: str) -> tuple[str, ...]:
    """Return a text encoder's prefixes in ComfyUI's whole-pipeline checkpoints; its adapters have the same."""
    return tuple(prefix for prefix, own in COMFYUI.prefixes.items() if own == component)


BASE_PREFIXES = {
    MODEL: (
        "",
        "model.diffusion_model.",
        "diffusion_model.",
        "model.",
        "model.model.",
        "net.",
        "transformer.",
        "conditional_transformer.",
        "unet.",
    ),
    "model_2": ("transformer_2.",),
    "text_encoder": (
        "",
        "cond_stage_model.transformer.",
        "conditioner.embedders.0.transformer.",
        "cond_stage_model.model.",
        *_of_comfyui("text_encoder"),
        "text_encoder.",
    ),
    "text_encoder_2": (
        "",
        "conditioner.embedders.1.model.",
        "conditioner.embedders.0.model.",
        *_of_comfyui("text_encoder_2"),
        "text_encoder_2.",
    ),
    "text_encoder_3": ("", *_of_comfyui("text_encoder_3"), "text_encoder_3."),
    "text_encoder_4": ("", *_of_comfyui("text_encoder_4"), "text_encoder_4."),
}
# A component that files of one expert hold under the names of the main one.
EXPERTS = {"model_2": MODEL}

# What the classes of transformers put in front of the paths of the model that they wrap, and drop where that model is
# saved alone: their `base_model_prefix`, and the towers of models with several. The towers beside the language model
# stand here so that a bare path that fits two of them is ambiguous instead of the wrong one's.
ROOTS = frozenset(
    (
        "albert", "audio_model", "audio_tower", "backbone", "base_model", "bert", "camembert", "deberta",
        "distilbert", "electra", "ernie", "esm", "gpt_neox", "language_model", "longformer", "mobilebert", "model",
        "mpnet", "rembert", "roberta", "roformer", "text_model", "transformer", "vision_model", "vision_tower",
        "visual", "vit", "xlm_roberta",
    )
)  # fmt: skip
# How names begin with a root. In an underscored one `transformer_blocks` is a segment of its own, not a root.
_DOTTED_ROOT = f"(?:{'|'.join(sorted(ROOTS))})\\."
_FLAT_ROOT = f"(?:{'|'.join(sorted(ROOTS - {'transformer'}))})_"

# More than a layer of any model has; the names of all are spelled out.
_MOST_EXPERTS = 4096


# torch's MultiheadAttention has the parameters of its fused layer itself, as if of a layer `in_proj`.
_FUSED_WEIGHT = ".in_proj_weight"


class SharedRows(NamedTuple):
    """The rows that a module of the base shares with one of the adapter: one of the two is a part of the other.

    `part` is the number of the part, out of `parts`. If `of_whole`, the adapter's module is the whole and the base's is
    the part; otherwise the adapter's module is the part.
    """

    arrangement: "Arrangement"
    part: int
    parts: int
    of_whole: bool


class BaseModule(NamedTuple):
    """A module of the base that a name means: its path, and the `piece` that the name has of it, None for all of it.

    If the path is that of a parameter of all experts, (experts, rows, columns), the module is one `expert`, or the
    `parameter` itself. For a `single` expert, the path is a module's and the name is the parameter's. `joint` is
    between the path and the names of the parameters. `called` is a parameter of the module and the tensor that holds it
    under another name.
    """

    path: str
    piece: SharedRows | None = None
    expert: int | None = None
    parameter: bool = False
    single: int | None = None
    joint: str = "."
    called: tuple[str, str] | None = None

    def tensor(self, parameter: str) -> str:
        """Return the name of the tensor that has a parameter of the module."""
        if self.called and self.called[0] == parameter:
            return self.called[1]
        is_tensor = self.parameter or self.expert is not None
        return self.path if is_tensor and parameter == WEIGHT else f"{self.path}{self.joint}{parameter}"


class NameTable:
    """The modules of a base by their names in an adapter of one scheme, component and prefix.

    Names come from the base's own paths after every base prefix, and from their names in other layouts by the
    `correspondence`. If no path matches, a path with other roots of transformers does, as long as roots are only added
    or only removed: `bert.` never matches `roberta.`.

    A module with a matrix or a kernel comes before a parameter with that name, and that before a module that has only
    vectors or its own parameters.
    """

    def __init__(
        self, base: Checkpoint, scheme: str, component: str, prefix: str, correspondence: Correspondence = UNKNOWN
    ) -> None:
        self._spell = schemes.by_name(scheme).module
        self._base, self._component, self._prefix = base, component, prefix
        self._correspondence = correspondence
        self._layers = self._spellings(_layer(info) for info in base.tensors.values() if is_weight(info))
        for info in filter(_may_be_of_experts, base.tensors.values()):
            self._add_experts(info, self._layers)
        self._others: tuple[_Spellings, ...] = ()
        self._parameters: dict[str, _Spellings] = {}

    def find(self, name: ModuleName) -> list[BaseModule]:
        """Return the modules that the name can mean: none, one, the parts of one, or several if it is ambiguous."""
        if found := self._layers.find(name):
            return found
        if not self._others:
            names = self._base.tensors
            parameters = self._spellings(_alone(name, WEIGHT) for name in names if _is_parameter(name))
            self._others = parameters, self._spellings(_owner(name, self._base) for name in names)
        return next((found for spellings in self._others if (found := spellings.find(name))), [])

    def find_parameter(self, name: ModuleName, parameter: str) -> list[BaseModule]:
        """Return the base's tensors with the `parameter` of the named module, if the base names it differently.

        `modulation` of `blocks.0` is found in a tensor `blocks.0.scale_shift_table`.
        """
        if parameter not in self._parameters:
            self._parameters[parameter] = spellings = _Spellings()
            for tensor in filter(_is_parameter, self._base.tensors):
                for own in own_paths(tensor, self._component, self._base):
                    for link in self._correspondence.links(own):
                        owner, _, leaf = link.path.rpartition(".")
                        if leaf == parameter and link.relation.arrangement is None:
                            self._add(owner, _alone(tensor, parameter), spellings)
        return self._parameters[parameter].find(name)

    def _spellings(self, modules: Iterable[BaseModule]) -> "_Spellings":
        spellings = _Spellings()
        for module in dict.fromkeys(modules):
            for own in own_paths(module.path, self._component, self._base):
                self._add(own, module, spellings)
                for link in self._correspondence.links(own):
                    self._add(link.path, module._replace(piece=_piece(link)), spellings)
                for link, expert in self._correspondence.links_of_expert(own):
                    self._add(link.path, module._replace(piece=_piece(link), single=expert), spellings)
        return spellings

    def _add_experts(self, info: TensorInfo, spellings: "_Spellings") -> None:
        for own in own_paths(info.name, self._component, self._base):
            if not is_weight(info):
                for name in (own, *(link.path for link in self._correspondence.links(own))):
                    self._add(name, BaseModule(info.name, parameter=True), spellings)
            for link in self._correspondence.links_of_parameters(own):
                self._add(link.path, BaseModule(info.name, _piece(link), parameter=True), spellings)
            # What is a module of a base that has all experts in it has them in its weight.
            for link in self._correspondence.links_of_experts(own.removesuffix(f".{WEIGHT}")):
                for expert in range(info.shape[0]):
                    name = link.path.replace("{i}", str(expert))
                    self._add(name, BaseModule(info.name, _piece(link), expert), spellings)

    def _add(self, name: str, found: BaseModule, spellings: "_Spellings") -> None:
        spellings.exact[self._spell(name, self._prefix)][found] = None
        roots, rest = without_roots(name)
        spellings.rooted[self._spell(rest, "")].append((roots, found))


def _layer(info: TensorInfo) -> BaseModule:
    return BaseModule(path_of(info), joint="_" if info.name.endswith(_FUSED_WEIGHT) else ".")


def _owner(name: str, base: Checkpoint) -> BaseModule:
    """Return the module of a tensor. An RMSNorm of some programs calls its weight `scale`."""
    path = name.rpartition(".")[0]
    scale = f"{path}.scale"
    is_called_so = scale in base.tensors and f"{path}.{WEIGHT}" not in base.tensors
    return BaseModule(path, called=(WEIGHT, scale) if is_called_so else None)


def _alone(tensor: str, parameter: str) -> BaseModule:
    """Return the module of a tensor that a name calls a module, or a parameter of a module."""
    return BaseModule(tensor, called=(parameter, tensor))


def _is_parameter(name: str) -> bool:
    """Return True for a tensor that is not named as a weight or a bias."""
    return not name.endswith((f".{WEIGHT}", f".{BIAS}"))


def _piece(link: Link) -> SharedRows | None:
    relation = link.relation
    if relation.arrangement is None:
        return None
    return SharedRows(relation.arrangement, link.part, len(relation.parts), link.is_whole)


class _Spellings:
    """Modules of a base by their spelling, and by their spelling without their roots."""

    def __init__(self) -> None:
        self.exact: dict[str, dict[BaseModule, None]] = defaultdict(dict)
        self.rooted: dict[str, list[tuple[frozenset[str], BaseModule]]] = defaultdict(list)

    def find(self, name: ModuleName) -> list[BaseModule]:
        """Return the modules with this spelling, or else modules related by their roots."""
        if name.key in self.exact:
            return list(self.exact[name.key])
        roots, rest = without_roots(name.body, flat=name.flat)
        return list(dict.fromkeys(f for others, f in self.rooted.get(rest, ()) if others <= roots or roots <= others))


def own_paths(path: str, component: str, base: Checkpoint) -> Iterable[str]:
    """Yield the path in the component's own model, for each base prefix that `path` begins with."""
    for prefix in prefixes_of(component, base):
        if path.startswith(prefix) and len(path) > len(prefix):
            yield path[len(prefix) :]


def prefixes_of(component: str, base: Checkpoint) -> tuple[str, ...]:
    """Return this base's possible prefixes of the component's paths.

    A file of one expert has the main model's prefixes.
    """
    prefixes = BASE_PREFIXES.get(component, ("",))
    if component in EXPERTS and not any(name.startswith(prefixes) for name in base.tensors):
        return BASE_PREFIXES[EXPERTS[component]]
    return prefixes


def without_roots(path: str, flat: bool = False) -> tuple[frozenset[str], str]:
    """Return the roots of transformers at the beginning of a path, and the rest: ({"model"}, "layers.0.q")."""
    root = _FLAT_ROOT if flat else _DOTTED_ROOT
    rest = re.sub(rf"\A(?:{root})*", "", path)
    return frozenset(found[:-1] for found in re.findall(root, path[: len(path) - len(rest)])), rest


def path_of(info: TensorInfo) -> str:
    """Return the dotted path of the module that a weight belongs to."""
    name = info.name
    return name.removesuffix("_weight") if name.endswith(_FUSED_WEIGHT) else name.removesuffix(".weight")


def leaf_of(path: str) -> str:
    """Return the last name of a path, with the numbers after it: "c_proj", "to_out.0"."""
    segments = path.split(".")
    start = next((i for i in range(len(segments) - 1, -1, -1) if not segments[i].isdigit()), 0)
    return ".".join(segments[start:])


def is_weight(info: TensorInfo) -> bool:
    """Return True if an adapter can change the tensor: a matrix or a kernel, not a vector."""
    return info.name.endswith((".weight", _FUSED_WEIGHT)) and len(info.shape) > 1


def _may_be_of_experts(info: TensorInfo) -> bool:
    return len(info.shape) == 3 and info.shape[0] <= _MOST_EXPERTS
