"""Small adapter files of every naming scheme and kind, and the weights that their trainers meant with them.

The weights are those of a model in the layout of diffusers. What a trainer meant is written out here in float64.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from lora_inspect.architectures import by_name
from lora_inspect.architectures.patterns import pattern_of, patterns_of

RANK, ALPHA = 4, 3.0
Weights = Mapping[str, Tensor]


class Names(NamedTuple):
    """How files call a module: a prefix, the paths of a layout, underscored or not, and the spelling of factors."""

    prefix: str
    layout: str
    flat: bool
    down: str
    up: str

    def module(self, path: str, pipeline: str) -> str:
        return self.prefix.format(pipeline=pipeline) + (path.replace(".", "_") if self.flat else path)


_KOHYA, _PEFT, _DEFAULT = (
    (".lora_down.weight", ".lora_up.weight"),
    (".lora_A.weight", ".lora_B.weight"),
    (".lora_A.default.weight", ".lora_B.default.weight"),
)
NAMES = {
    "kohya": Names("lora_unet_", "kohya", True, *_KOHYA),
    "kohya, diffusers": Names("lora_unet_", "diffusers", True, *_KOHYA),
    "onetrainer": Names("lora_{pipeline}_", "diffusers", True, *_KOHYA),
    "lycoris": Names("lycoris_", "diffusers", True, *_KOHYA),
    "comfyui": Names("diffusion_model.", "comfyui", False, *_PEFT),
    "comfyui, down and up": Names("diffusion_model.", "comfyui", False, *_KOHYA),
    "comfyui, diffusers": Names("diffusion_model.", "diffusers", False, *_PEFT),
    "diffusers": Names("{pipeline}.", "diffusers", False, *_PEFT),
    "diffusers, down and up": Names("{pipeline}.", "diffusers", False, *_KOHYA),
    "bare": Names("", "diffusers", False, *_PEFT),
    "peft": Names("base_model.model.", "diffusers", False, *_PEFT),
    "peft, default": Names("base_model.model.", "diffusers", False, *_DEFAULT),
}


def layout_of(family: str, names: str) -> str | None:
    """The layout of the family that the names are of; None where it is the one of diffusers under another name."""
    known = by_name(family)
    asked = NAMES[names].layout
    own = {name: one.name for one in known.layouts if not one.borrowed for name in one.names}
    if asked == "kohya":
        return known.layouts[0].name
    if asked == "comfyui":
        return next((own[name] for name in ("comfyui", "original", "diffusers") if name in own), None)
    plain = {"kohya, diffusers": "kohya", "comfyui, diffusers": "comfyui"}.get(names)
    if asked not in own or (plain and layout_of(family, plain) == own[asked]):
        return None
    return own[asked]


class Arranged(NamedTuple):
    """Weights of a layout made of those of diffusers: `homes` has by path the weights whose rows it has, and which."""

    weights: dict[str, Tensor]
    homes: dict[str, list[tuple[str, list[tuple[int, int, int]]]]]

    def back(self, path: str, weight: Tensor) -> Iterator[tuple[str, Tensor, list[tuple[int, int, int]]]]:
        """(path in diffusers, the weight, which of its rows go where) for all that has rows of it."""
        for home, runs in self.homes[path]:
            yield home, weight, runs


def arranged(family: str, layout: str, weights: Weights) -> Arranged:
    """The weights as a layout of the family has them."""
    known = by_name(family)
    own = next(one for one in known.layouts if layout in one.names)
    patterns = patterns_of(own.paths, ".")
    shapes: dict[str, tuple[int, ...]] = {}
    homes: dict[str, list[tuple[str, list[tuple[int, int, int]]]]] = {}
    for path, weight in weights.items():
        rows, inputs = weight.shape[:2]
        links = [link for link in known.correspondence.links(path) if pattern_of(link.path, ".") in patterns]
        if not links:
            assert pattern_of(path, ".") in patterns, path
            shapes[path], homes[path] = tuple(weight.shape), [(path, [(0, rows, 0)])]
        for link in links:
            arrangement, whole, runs = link.relation.arrangement, rows, [(0, rows, 0)]
            if arrangement and link.is_whole:
                whole = arrangement.rows(link.part, rows, inputs)
                runs = list(arrangement.runs(whole, inputs)[link.part].each())
            elif arrangement:
                found = arrangement.runs(rows, inputs)[link.part]
                whole, runs = found.rows, list(found.inverted.each())
            shapes[link.path] = (whole, *weight.shape[1:])
            homes.setdefault(link.path, []).append((path, runs))
    made = {path: torch.zeros(shape) for path, shape in shapes.items()}
    for path, own_homes in homes.items():
        for home, runs in own_homes:
            for start, end, source in runs:
                made[path][start:end] = weights[home][source : source + end - start]
    # A fused layer of which a part is not among the weights is none that an adapter could be of.
    full = {path for path, of in homes.items() if sum(e - s for _, runs in of for s, e, _ in runs) == len(made[path])}
    return Arranged({p: w for p, w in made.items() if p in full}, {p: h for p, h in homes.items() if p in full})


@dataclass
class AdapterFile:
    """Tensors and metadata, the weights that they mean, the same without a magnitude, and what is added to biases."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    meant: dict[str, Tensor] = field(default_factory=dict)
    plain: dict[str, Tensor] = field(default_factory=dict)
    biases: dict[str, Tensor] = field(default_factory=dict)


class Layer(NamedTuple):
    """A layer that a file of some kind changes: its name in the file, its spelling, its weight, and random numbers."""

    name: str
    names: Names
    weight: Tensor
    numbers: torch.Generator
    rank: int
    alpha: float | None
    at: int

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.numbers)

    def factors(self) -> tuple[Tensor, Tensor]:
        down = self.randn(self.rank, *self.weight.shape[1:])
        return down, 0.3 * self.randn(self.weight.shape[0], self.rank, *(1 for _ in self.weight.shape[2:]))

    @property
    def scale(self) -> float:
        return 1.0 if self.alpha is None else self.alpha / self.rank


# The tensors of a layer by their suffixes, what is added to its weight, and the weight that is meant.
Made = tuple[dict[str, Tensor], Tensor, Tensor]


def _lora(layer: Layer, scale: float | None = None) -> Made:
    down, up = layer.factors()
    product = up.double().flatten(1) @ down.double().flatten(1)
    delta = (layer.scale if scale is None else scale) * product.reshape(layer.weight.shape)
    return {layer.names.down: down, layer.names.up: up}, delta, layer.weight.double() + delta


def _root(layer: Layer) -> Made:
    return _lora(layer, (layer.rank if layer.alpha is None else layer.alpha) / layer.rank**0.5)


def _dora(suffix: str, shape: Callable[[int], tuple[int, ...]], axis: int = 1) -> Callable[[Layer], Made]:
    def make(layer: Layer, scale: float | None = None) -> Made:
        tensors, delta, changed = _lora(layer, scale)
        flat = changed.flatten(1)
        old = layer.weight.double().flatten(1).norm(dim=axis)
        magnitude = (old * (1 + torch.rand(len(old), generator=layer.numbers).double())).float()
        turned = magnitude.double().unsqueeze(axis) / flat.norm(dim=axis, keepdim=True)
        meant = (flat * turned).reshape(changed.shape)
        return {**tensors, suffix: magnitude.reshape(shape(len(magnitude)))}, delta, meant

    return make


def _rooted(kind: Callable[..., Made]) -> Callable[[Layer], Made]:
    return lambda layer: kind(layer, (layer.rank if layer.alpha is None else layer.alpha) / layer.rank**0.5)


def _added(layer: Layer, tensors: dict[str, Tensor], delta: Tensor) -> Made:
    delta = delta.double().reshape(layer.weight.shape)
    return tensors, delta, layer.weight.double() + delta


def _loha(layer: Layer) -> Made:
    rows, columns = layer.weight.flatten(1).shape
    a1, a2 = layer.randn(rows, layer.rank), layer.randn(rows, layer.rank)
    b1, b2 = 0.2 * layer.randn(layer.rank, columns), layer.randn(layer.rank, columns)
    tensors = {".hada_w1_a": a1, ".hada_w1_b": b1, ".hada_w2_a": a2, ".hada_w2_b": b2}
    return _added(layer, tensors, layer.scale * (a1.double() @ b1.double()) * (a2.double() @ b2.double()))


def _lokr(is_low: bool) -> Callable[[Layer], Made]:
    def make(layer: Layer) -> Made:
        rows, columns = layer.weight.flatten(1).shape
        left, right = 2 - rows % 2, 2 - columns % 2
        one = layer.randn(left, right)
        if not is_low:
            other = 0.3 * layer.randn(rows // left, columns // right)
            return _added(layer, {".lokr_w1": one, ".lokr_w2": other}, torch.kron(one.double(), other.double()))
        a, b = 0.3 * layer.randn(rows // left, layer.rank), layer.randn(layer.rank, columns // right)
        tensors = {".lokr_w1": one, ".lokr_w2_a": a, ".lokr_w2_b": b}
        return _added(layer, tensors, layer.scale * torch.kron(one.double(), a.double() @ b.double()))

    return make


def _oft(layer: Layer) -> Made:
    rows = layer.weight.shape[0]
    count = 1 if rows % 2 else 2
    blocks = 0.3 * layer.randn(count, rows // count, rows // count)
    skew = (blocks - blocks.transpose(1, 2)).double()
    eye = torch.eye(rows // count, dtype=torch.float64)
    turns = torch.block_diag(*((eye + one) @ torch.linalg.inv(eye - one) for one in skew))
    meant = (turns.T @ layer.weight.double().flatten(1)).reshape(layer.weight.shape)
    return {".oft_blocks": blocks}, meant - layer.weight.double(), meant


def _ia3(layer: Layer) -> Made:
    gain = 0.3 * layer.randn(layer.weight.shape[0])
    delta = layer.weight.double() * gain.double().reshape(-1, *(1 for _ in layer.weight.shape[1:]))
    return {".weight": gain, ".on_input": torch.tensor(False)}, delta, layer.weight.double() + delta


def _diff(layer: Layer) -> Made:
    diff = 0.3 * layer.randn(*layer.weight.shape)
    return _added(layer, {".diff": diff}, diff)


def _beside(suffix: str) -> Callable[[Layer], Made]:
    def make(layer: Layer) -> Made:
        tensors, delta, meant = _lora(layer)
        return {**tensors, suffix: layer.randn(len(layer.weight))}, delta, meant

    return make


class Kind(NamedTuple):
    """What is in a file: how its layers are made, tensors beside them, and an embedded config, of the model's name.

    `bias` is the suffix of what is added to biases too. `uneven` layers have ranks and alphas of their own, and
    `has_alpha` says whether an alpha may stand beside the factors, or else in the config.
    """

    make: Callable[[Layer], Made]
    beside: Mapping[str, Tensor] = {}
    config: Mapping[str, object] | None = None
    has_alpha: bool = True
    uneven: bool = False
    is_dora: bool = False
    bias: str = ""


_FLAG = {"use_rslora_flag": torch.tensor(True)}
_CONFIG = {"r": RANK, "lora_alpha": ALPHA}
_ROWS, _COLUMN, _ROW = lambda n: (n,), lambda n: (n, 1), lambda n: (1, n)
_PEFT_DORA = _dora(".lora_magnitude_vector", _ROWS)
KINDS = {
    "lora": Kind(_lora),
    "uneven": Kind(_lora, uneven=True),
    "rslora flag": Kind(_root, beside=_FLAG),
    "rslora config": Kind(_root, config={**_CONFIG, "use_rslora": True}),
    "alpha config": Kind(_lora, config={**_CONFIG, "use_rslora": False}),
    "dora config": Kind(_PEFT_DORA, config={**_CONFIG, "use_rslora": False, "use_dora": True}, is_dora=True),
    "rslora dora config": Kind(
        _rooted(_PEFT_DORA), config={**_CONFIG, "use_rslora": True, "use_dora": True}, is_dora=True
    ),
    "dora_layer": Kind(_dora(".dora_layer.weight", _ROWS), is_dora=True),
    "dora_scale output": Kind(_dora(".dora_scale", _COLUMN), is_dora=True),
    "dora_scale input": Kind(_dora(".dora_scale", _ROW, axis=0), is_dora=True),
    "magnitude": Kind(_PEFT_DORA, is_dora=True),
    "magnitude.weight": Kind(_dora(".lora_magnitude_vector.weight", _ROWS), is_dora=True),
    "loha": Kind(_loha),
    "lokr full": Kind(_lokr(False)),
    "lokr low": Kind(_lokr(True)),
    "oft": Kind(_oft),
    "ia3": Kind(_ia3, has_alpha=False),
    "diff": Kind(_diff, has_alpha=False),
    "diff_b": Kind(_beside(".diff_b"), bias=".diff_b"),
    "lora bias": Kind(_beside(".{up}.bias"), bias=".{up}.bias"),
    "stranger": Kind(_lora, beside={"extra": torch.ones(2)}),
    "dotted stranger": Kind(_lora, beside={"extra.weight": torch.ones(2)}),
}


def adapter_file(
    family: str, names: str, kind: str, has_alpha: bool, weights: Weights, seed: int = 7, says: str = ""
) -> AdapterFile:
    """A file of the kind that changes the layers of these weights, which are those of the model in diffusers."""
    made, spelled = KINDS[kind], NAMES[names]
    pipeline = by_name(family).pipeline_name
    own = arranged(family, layout_of(family, names) or "diffusers", weights)
    numbers = torch.Generator().manual_seed(seed)
    file = AdapterFile(metadata={"ss_base_model_version": says} if says else {})
    file.meant = {path: weight.double().clone() for path, weight in weights.items()}
    file.plain = {path: weight.double().clone() for path, weight in weights.items()}
    configured = made.config is not None and has_alpha
    for at, (path, weight) in enumerate(own.weights.items()):
        rank = RANK - at % 3 if made.uneven else RANK
        alpha = ALPHA + at % 2 if made.uneven else ALPHA
        layer = Layer(spelled.module(path, pipeline), spelled, weight, numbers, rank, alpha if has_alpha else None, at)
        tensors, delta, meant = made.make(layer)
        up = spelled.up.removesuffix(".weight").removeprefix(".")
        file.tensors |= {layer.name + suffix.format(up=up): value for suffix, value in tensors.items()}
        if layer.alpha is not None and made.has_alpha and not configured:
            file.tensors[f"{layer.name}.alpha"] = torch.tensor(layer.alpha)
        for home, runs in own.homes[path]:
            for start, end, source in runs:
                stop = source + end - start
                file.meant[home][source:stop] = meant[start:end]
                file.plain[home][source:stop] = (weight.double() + delta)[start:end]
                if made.bias:
                    bias = tensors[made.bias].double() * (layer.scale if "up" in made.bias else 1.0)
                    file.biases.setdefault(home, torch.zeros(len(weights[home])).double())
                    file.biases[home][source:stop] = bias[start:end]
    file.tensors |= made.beside
    if configured:
        own_config = {"target_modules": [*weights], **made.config}
        config = {f"{pipeline}.{key}": value for key, value in own_config.items()}
        file.metadata |= {"format": "pt", "lora_adapter_metadata": json.dumps(config)}
    return file
