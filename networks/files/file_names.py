"""The names of a network's tensors in a file.

A network names a module `lora_unet_` and its path in the trained model, with underscores. If kohya's trainers train
that model too, a file has the same names. The diffusers class of a family may name its layers differently, but loaders
of such files do not look for those names:

- if both layouts have the same layers, a file has the names of the original layout;
- else LoRA has diffusers' names (`transformer.` and dotted paths), and other algorithms have LyCORIS' names (`lycoris_`
  and paths with underscores), both of the diffusers layout.

diffusers reads no alpha and takes a scale of 1, so the scale is multiplied into `up`, in float32. In those models only
Linear layers are adapted, so a magnitude is (out,) in both forms.

Reading accepts every naming scheme of the model's own layers. A file may name a layer by its path in the trained model
or in another layout of the family, with dots or underscores. Its factors may be in the dialect of any program.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lora_inspect import schemes
from lora_inspect.architectures.patterns import counterparts
from lora_inspect.architectures.record import Architecture
from lora_inspect.architectures.trained import layout_of, one_to_one, original_path
from lora_inspect.maths.scaling import scale_of
from lora_inspect.reading.keys.suffixes import ParsedKey, parse_key
from lora_inspect.reading.metadata.output_metadata import without_scale_options
from lora_inspect.reading.model.evidence import DORA_FLAG, RSLORA_FLAG, SCALE_KEY
from lora_inspect.reading.peft import peft_config
from lora_inspect.reading.peft.regex import Steps
from lora_inspect.schemes.diffusers import DIFFUSERS
from lora_inspect.schemes.kohya import KOHYA
from lora_inspect.schemes.lycoris import LYCORIS
from lora_inspect.schemes.record import MODEL, Scheme

from .reading import MAGNITUDE, is_factor


def module_name(prefix: str, path: str) -> str:
    """Return the name that keys use for the layer at the dotted `path`."""
    return KOHYA.module(path, f"{prefix}_")


# The one spelling of a magnitude that is not one number per output in one dimension.
DORA_SCALE = "dora_scale"


class TensorPlace(NamedTuple):
    """A tensor of a module, with its names in the network and in the file.

    `name` is the network's name of the module, `key` the tensor's key in it, and `path` the part after the prefix of
    `scheme`.
    """

    name: str
    key: str
    role: str
    scheme: Scheme
    path: str


class KeyPlaces:
    """The tensors that keys can name in one model.

    Its layers have the dotted `paths`; the network names each by `prefix` and path.
    """

    def __init__(self, architecture: Architecture, paths: Collection[str], prefix: str) -> None:
        own = {path: module_name(prefix, path) for path in paths}
        pairs = one_to_one(architecture)
        others = [(other, own[path]) for path in paths for other in counterparts(pairs, path)]
        self._names = _unambiguous(own, others)
        flat_own = {path.replace(".", "_"): name for path, name in own.items()}
        self._flat_names = _unambiguous(flat_own, [(path.replace(".", "_"), name) for path, name in others])

    def find(self, key: str) -> TensorPlace | None:
        """Return the place of `key`, or None if it names no layer of this model."""
        parsed = parse_key(key)
        inner = _inner_key(parsed) if parsed else None
        if parsed is None or inner is None:
            return None
        for module in schemes.readings(parsed.module, (parsed.suffix,)):
            if module.component != MODEL:
                continue
            if name := (self._flat_names if module.flat else self._names).get(module.body):
                return TensorPlace(name, inner, parsed.role, schemes.by_name(module.scheme), module.body)
        return None


def _inner_key(parsed: ParsedKey) -> str | None:
    """Return the key inside a module as in a state dict, or None if networks have no such tensor."""
    if parsed.role == "alpha":
        return "alpha"
    if parsed.role == "magnitude":
        return DORA_SCALE if parsed.suffix == f".{DORA_SCALE}" else MAGNITUDE
    if all(name != "lora" for name, _ in parsed.meanings):
        return parsed.suffix.removeprefix(".") if parsed.algorithm else None
    if parsed.role not in ("down", "up"):
        return None
    part = "" if parsed.part is None else f".{parsed.part}"
    return f"lora_{parsed.role}{part}.weight"


def _unambiguous(own: Mapping[str, str], others: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the names by spelling, without ambiguous spellings.

    The model's own names override those of other layouts. A spelling that other layouts use for two layers is left out.
    """
    found: dict[str, str] = {}
    ambiguous: set[str] = set()
    for spelled, name in others:
        if found.setdefault(spelled, name) != name:
            ambiguous.add(spelled)
    return {spelled: name for spelled, name in found.items() if spelled not in ambiguous} | dict(own)


_TRANSFORMER, _LYCORIS = "transformer.", "lycoris_"
# LoRA's keys, in which all of a module that diffusers has a name for is.
_ROLES = {"lora_down.weight": "down", "lora_up.weight": "up", MAGNITUDE: "magnitude"}


class NamedTensors(NamedTuple):
    """The tensors of a network or a file under the names of the other, with matching metadata.

    `folded` says that the scale is multiplied in; then there is neither an alpha nor a scale rule.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, Any]
    folded: bool = False


class FileNames:
    """Conversion between a network's and a file's names for one model with the dotted `paths`."""

    def __init__(self, architecture: Architecture, paths: Collection[str], prefix: str) -> None:
        self._paths = {module_name(prefix, path): path for path in paths}
        self._is_kohya = layout_of(architecture, paths).kohya_prefix == f"{prefix}_"
        originals = {} if self._is_kohya else {path: original_path(architecture, path) for path in paths}
        self._original = {
            module_name(prefix, path): module_name(prefix, other) for path, other in originals.items() if other
        }
        self._lycoris = {name: LYCORIS.module(path, _LYCORIS) for name, path in self._paths.items()}
        self._places = KeyPlaces(architecture, paths, prefix)

    def check(self, keys: Collection[str]) -> None:
        """Raise ValueError if a file has no name for a tensor of a network with these keys."""
        if self._table(keys) is not None:
            return
        modules, magnitudes = ({key.partition(".")[0] for key in keys if of in key} for of in (".lora_", MAGNITUDE))
        if magnitudes and (without := sorted(modules - magnitudes)):
            raise ValueError(
                f"{without[0]} has no magnitude, but diffusers applies magnitudes to all layers of a file or "
                "to none; leave use_dora out, or split_dims and split_qkv"
            )
        for key in keys:
            name, _, tail = key.partition(".")
            if tail.startswith("lora_") and tail not in _ROLES:
                raise ValueError(
                    f"{name} has slices, but diffusers has no names for these; set save_format=standard, or "
                    "leave split_dims and split_qkv out"
                )

    def to_file(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], rslora: bool) -> NamedTensors:
        """Return the file's tensors and metadata for a network's `tensors`.

        `rslora` says whether the network has the scale rule of RS-LoRA.
        """
        table = self._table(tensors)
        if table is not None:
            return NamedTensors(_renamed(tensors, table), dict(metadata))
        named: dict[str, Tensor] = {}
        for key, tensor in tensors.items():
            name, _, tail = key.partition(".")
            role = _ROLES.get(tail)
            if role == "up":
                tensor = tensor * scale_of(float(tensors[f"{name}.alpha"]), tensor.shape[1], rslora)
            if role:
                named[DIFFUSERS.spell(self._paths[name], role, _TRANSFORMER)] = tensor
        return NamedTensors(named, without_scale_options(metadata), folded=True)

    def from_file(
        self,
        weights: Mapping[str, Tensor],
        metadata: Mapping[str, str],
        own: Mapping[str, Tensor] | None = None,
        rslora: bool = False,
    ) -> NamedTensors:
        """Return the tensors that a network loads from a file's `weights`, in any of the spellings.

        `own` are the network's tensors as `to_file` takes them, if there is a network yet. A module under a dotted name
        without an alpha has the scale 1 or that of a config. The network then keeps its alpha and its scale rule, and
        its scale divides `up`. Keys of no module of the model stay unchanged. Raises ValueError if two keys name the
        same tensor, and if a scale is not in the file.
        """
        places = {key: self.place(key) for key in weights}
        with_alpha = {place.name for place in places.values() if place and place.key == "alpha"}
        scales = _Scales(metadata)
        # A file in standard form has one pair of factors for the slices of a layer.
        parts = (key.partition(".") for key in own or ())
        slices = Counter(name for name, _, tail in parts if tail.startswith("lora_down."))
        named: dict[str, Tensor] = {}
        folded = False
        for key, tensor in weights.items():
            place = places[key]
            new = f"{place.name}.{place.key}" if place else key
            if new in named:
                raise ValueError(f"{key} appears twice, in two spellings")
            without_alpha = place and not place.scheme.flat and place.name not in with_alpha
            if place and without_alpha and place.role == "up" and is_factor(tensor):
                folded = True
                scale = scales.of(place, tensor.shape[1])
                alpha = (own or {}).get(f"{place.name}.alpha")
                if alpha is not None:
                    count = slices[place.name] if place.key == "lora_up.weight" else 1
                    named[f"{place.name}.alpha"] = alpha * count
                    scale /= scale_of(float(alpha), tensor.shape[1] // count, rslora)
                tensor = tensor if scale == 1 else tensor.float() * scale
            named[new] = tensor
        if not folded or with_alpha:
            return NamedTensors(named, dict(metadata))
        # Nothing is left that a rule could be about.
        if own and rslora:
            dora = any(place is not None and place.role == "magnitude" for place in places.values())
            values = {RSLORA_FLAG: True, DORA_FLAG: dora}
            named |= {key: torch.tensor(value, dtype=torch.bool, device="cpu") for key, value in values.items()}
        rule_free = {key: value for key, value in without_scale_options(metadata).items() if key != SCALE_KEY}
        return NamedTensors(named, rule_free, folded=True)

    def place(self, key: str) -> TensorPlace | None:
        """Return the tensor that a file's `key` names, or None if the model has no such layer."""
        return self._places.find(key)

    def folds_the_scale(self, keys: Collection[str]) -> bool:
        """Return True if a file of a network with these keys has the scale in its factors.

        Such a file has no alphas.
        """
        return self._table(keys) is None

    def _table(self, keys: Collection[str]) -> Mapping[str, str] | None:
        """Return the file's module names by the network's, or None for diffusers' spelling.

        Equal names may be missing.
        """
        if self._is_kohya:
            return {}
        if {key.partition(".")[0] for key in keys if "." in key} <= self._original.keys():
            return self._original
        return None if any(".lora_" in key for key in keys) else self._lycoris


class _Scales:
    """The scales of modules without an alpha.

    A scale is 1 unless the file carries PEFT's config, which diffusers then reads.
    """

    def __init__(self, metadata: Mapping[str, str]) -> None:
        configs = peft_config.embedded_configs(metadata)
        self._config = configs.get(_TRANSFORMER) or configs.get("")
        self._modules = peft_config.ModuleSettings(self._config or {}, Steps())

    def of(self, place: TensorPlace, rank: int) -> float:
        """Return the scale of the module at `place`.

        Raises ValueError if the alpha is not in the file.
        """
        if self._config is None:
            if place.scheme.absent_alpha == "config":
                raise ValueError(
                    f"the alpha of {place.path} is in adapter_config.json, not in the file; rewrite the "
                    "adapter with lora-inspect convert, which reads both"
                )
            return 1.0
        alpha = self._modules.alpha(place.path)
        if self._modules.refused:
            raise ValueError(
                f"{peft_config.EMBEDDED_KEY}: {self._modules.refused}; write the plain module path instead"
            )
        if alpha is None:
            raise ValueError(f"{peft_config.EMBEDDED_KEY} has no alpha for {place.path}")
        return scale_of(alpha, rank, self._config.get("use_rslora") is True)


def _renamed(tensors: Mapping[str, Tensor], table: Mapping[str, str]) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name, dot, tail = key.partition(".")
        renamed[f"{table.get(name, name)}{dot}{tail}"] = tensor
    return renamed
