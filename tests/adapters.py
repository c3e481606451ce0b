"""Adapters: in the names of any scheme, of any kind, in two forms of one definition, with what is meant by them.

Tensors that are only read are (dtype, shape, number), as `write_safetensors` takes them, and load no torch:
`lora` of one module, `loras` of those that `base` has, `split` of a layer in parts.

Tensors that are computed with are torch's. `factors` makes LoRA or DoRA of some layers of a base, and `kohya`, `dotted`
or an entry of `NAMES` spells it. `expected` merges it in float64, and `assert_within` holds a merge to that.

`adapter` makes any of the `KINDS` of some layers, and says what their weights become: each formula is written out here
in float64, and is none of the program's. `adapter_files` writes adapters of all layers of a model family.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Shape = tuple[int, ...]
# What rounding to float32 changes of a number at most, relative to it.
EPS = 2.0**-24


class Spelling(NamedTuple):
    """The ends of the names of a layer's tensors."""

    down: str
    up: str
    magnitude: str = ""


KOHYA = Spelling(".lora_down.weight", ".lora_up.weight", ".dora_scale")
PEFT = Spelling(".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector")
DEFAULT = Spelling(".lora_A.default.weight", ".lora_B.default.weight", ".lora_magnitude_vector.default.weight")
SPELLINGS = {"kohya": KOHYA, "peft": PEFT}


class Names(NamedTuple):
    """The names of a layer in files: a prefix, the paths of a layout, underscored or not, and the ends."""

    prefix: str
    layout: str
    is_flat: bool
    spelling: Spelling

    def module(self, path: str, pipeline: str = "") -> str:
        """The name of the layer; `pipeline` is what that of the family in diffusers calls its model."""
        return self.prefix.format(pipeline=pipeline) + (path.replace(".", "_") if self.is_flat else path)

    def tensors(self, layers: Mapping[str, Factors], pipeline: str = "", has_alpha: bool = True) -> dict[str, Tensor]:
        """The tensors of an adapter, with an alpha for each layer or without."""
        import torch

        tensors = {}
        for path, own in layers.items():
            name = self.module(path, pipeline)
            tensors |= {name + self.spelling.down: own.down, name + self.spelling.up: own.up}
            if has_alpha:
                tensors[f"{name}.alpha"] = torch.tensor(own.alpha)
            if own.magnitude is not None:
                kernel = (1,) * (own.down.dim() - 2)
                # ComfyUI reads a column, and PEFT broadcasts a vector over the kernel.
                shape = (-1, 1, *kernel) if self.spelling is KOHYA else (1, -1, *kernel) if kernel else (-1,)
                tensors[name + self.spelling.magnitude] = own.magnitude.reshape(shape)
        return tensors


# The layout "kohya" is the first one of a family, and "comfyui" the first that is there of ComfyUI's and the original.
NAMES = {
    "kohya": Names("lora_unet_", "kohya", True, KOHYA),
    "kohya, diffusers": Names("lora_unet_", "diffusers", True, KOHYA),
    "onetrainer": Names("lora_{pipeline}_", "diffusers", True, KOHYA),
    "lycoris": Names("lycoris_", "diffusers", True, KOHYA),
    "comfyui": Names("diffusion_model.", "comfyui", False, PEFT),
    "comfyui, down and up": Names("diffusion_model.", "comfyui", False, KOHYA),
    "comfyui, diffusers": Names("diffusion_model.", "diffusers", False, PEFT),
    "diffusers": Names("{pipeline}.", "diffusers", False, PEFT),
    "diffusers, down and up": Names("{pipeline}.", "diffusers", False, KOHYA),
    "bare": Names("", "diffusers", False, PEFT),
    "peft": Names("base_model.model.", "diffusers", False, PEFT),
    "peft, default": Names("base_model.model.", "diffusers", False, DEFAULT),
}


def families(record: Mapping[str, Any]) -> list[str]:
    """The families that a file may be of, in the record of `info --json`."""
    return record["candidates"] or [record["architecture"]] * (record["architecture"] is not None)


def kohya(prefix: str, layers: Mapping[str, Factors]) -> dict[str, Tensor]:
    """Tensors of the underscored names, with alphas; the magnitude as ComfyUI's users know it."""
    return Names(prefix, "", True, KOHYA).tensors(layers)


def dotted(prefix: str, layers: Mapping[str, Factors]) -> dict[str, Tensor]:
    """Tensors of dotted names, with alphas; the magnitude in PEFT's spelling."""
    return Names(prefix, "", False, PEFT).tensors(layers)


def shapes_of_factors(shape: Iterable[int], rank: int) -> tuple[Shape, Shape]:
    """Those of down and up, of a weight of this shape; up has a kernel of one element."""
    out, inputs, *kernel = shape
    return (rank, inputs, *kernel), (out, rank, *(1 for _ in kernel))


# Tensors of small adapters as (dtype, shape, number).

OUT, IN = 6, 5
Toy = dict[str, tuple[str, Shape, Any]]


def lora(module, rank=16, alpha=8.0, out=OUT, inputs=IN, spelling="kohya", kernel=(), dtype="F32", **extra) -> Toy:
    """down and up of one module, its alpha where not None, and `extra` tensors under it with _ for the first dot."""
    names, (down, up) = SPELLINGS[spelling], shapes_of_factors((out, inputs, *kernel), rank)
    tensors = {module + names.down: (dtype, down, 0.5), module + names.up: (dtype, up, 0.25)}
    if alpha is not None:
        tensors[f"{module}.alpha"] = alpha if isinstance(alpha, tuple) else ("F32", (), alpha)
    return tensors | {f"{module}.{suffix}": tensor for suffix, tensor in extra.items()}


def loras(count=3, **options) -> Toy:
    """`count` Linear modules of kohya's names."""
    return {key: t for i in range(count) for key, t in lora(f"lora_unet_blocks_{i}_attn_q", **options).items()}


def split(module="lora_unet_blocks_0_attn_qkv", parts=(0, 1, 2), rank=4, alpha=4.0, out=2, inputs=IN) -> Toy:
    """A split layer: a pair of factors for each part, and one alpha."""
    tensors: Toy = {} if alpha is None else {f"{module}.alpha": ("F32", (), alpha)}
    for part in parts:
        down, up = shapes_of_factors((out, inputs), rank)
        tensors[f"{module}.lora_down.{part}.weight"] = ("F32", down, 0.5)
        tensors[f"{module}.lora_up.{part}.weight"] = ("F32", up, 0.25)
    return tensors


def base(count=3, out=OUT, inputs=IN, prefix="", dtype="F32") -> Toy:
    """A base with the weights that `loras` change."""
    return {f"{prefix}blocks.{i}.attn.q.weight": (dtype, (out, inputs), 1) for i in range(count)}


# LoRA and DoRA of the layers of a base in torch's tensors.


def drawn(seed: int, *shape: int) -> Tensor:
    """Normal numbers of a seed."""
    import torch

    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def drawn_lora(module: str, seed: int = 0, **options: Any) -> dict[str, Tensor]:
    """`lora` in torch's tensors: down drawn of this seed and up of the next one; scalars are what they are."""
    import torch

    tensors = {}
    for key, (dtype, shape, number) in lora(module, **options).items():
        own = drawn(seed, *shape) if shape else torch.tensor(number)
        tensors[key] = own.to(getattr(torch, {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[dtype]))
        seed += bool(shape)
    return tensors


def change(tensors: Mapping[str, Tensor], module: str, root: bool = False) -> Tensor:
    """alpha/rank · up @ down of a layer in kohya's names, or alpha/sqrt(rank) of it, in float64.

    An alpha that is missing is the rank.
    """
    down, up = (tensors[module + suffix].double() for suffix in (KOHYA.down, KOHYA.up))
    rank = len(down)
    return float(tensors.get(f"{module}.alpha", rank)) / (rank**0.5 if root else rank) * up @ down


class Factors(NamedTuple):
    """LoRA of one layer, of DoRA where it has a magnitude."""

    down: Tensor
    up: Tensor
    alpha: float
    magnitude: Tensor | None = None

    def folded(self, weight: Tensor, multiplier: float, interpolate: bool) -> tuple[Tensor, Tensor]:
        """(W', a bound of the error of any order of float32 operations), from the formula in float64."""
        shape, weight = weight.shape, weight.double().flatten(1)
        down, up = self.down.double().flatten(1), self.up.double().flatten(1)
        scale = self.alpha / self.down.shape[0]
        terms = self.down.shape[0] + weight.shape[1] + 8
        inner = 1.0 if interpolate and self.magnitude is not None else multiplier
        combined = weight + inner * scale * up @ down
        size = weight.abs() + abs(inner * scale) * up.abs() @ down.abs()
        if self.magnitude is None:
            return combined.reshape(shape), (4 * terms * EPS * size).reshape(shape)
        norm = combined.norm(dim=1, keepdim=True)
        gain = self.magnitude.double().reshape(-1, 1) / norm
        changed = combined * gain
        bound = 4 * terms * EPS * size * gain.abs() * (1 + size.norm(dim=1, keepdim=True) / norm)
        if interpolate:
            changed = weight + multiplier * (changed - weight)
            bound = bound * abs(multiplier) + 4 * terms * EPS * size * (1 + abs(multiplier))
        return changed.reshape(shape), bound.reshape(shape)


def factors(base: Mapping[str, Tensor], paths: Iterable[str], dora: bool = False, seed: int = 7) -> dict[str, Factors]:
    """Factors of the layers of `base` at the paths, each of another rank and alpha."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    found = {}
    for number, path in enumerate(paths):
        weight = base[f"{path}.weight"]
        shapes = shapes_of_factors(weight.shape, 1 + number % 3)
        down, up = (torch.randn(shape, generator=generator) for shape in shapes)
        magnitude = weight.flatten(1).norm(dim=1) * (1 + torch.rand(len(weight), generator=generator)) if dora else None
        found[path] = Factors(down, up, 0.5 + number % 4, magnitude)
    return found


def expected(
    base: Mapping[str, Tensor], layers: Mapping[str, Factors], multiplier: float, interpolate: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(float64 tensors, bounds) of the base that the adapter was made for."""
    values = {name: value.double() for name, value in base.items()}
    bounds = {name: value.new_zeros(value.shape) for name, value in values.items()}
    for path, own in layers.items():
        name = f"{path}.weight"
        values[name], bounds[name] = own.folded(base[name], multiplier, interpolate)
    return values, bounds


def assert_within(found: Mapping[str, Tensor], values: Mapping[str, Tensor], bounds: Mapping[str, Tensor]) -> None:
    assert found.keys() == values.keys()
    changed = 0
    for name, value in found.items():
        error = (value.double() - values[name]).abs()
        assert bool((error <= bounds[name]).all()), (name, float((error - bounds[name]).max()))
        changed += bool(bounds[name].any())
    assert changed


# Kinds of adapters, each with what its trainer means.

RANK, ALPHA = 4, 3.0


class Weight(NamedTuple):
    """One parameter of a model in float64: as the base has it, and as the trainer means it to be.

    `plain` is what it would be without the magnitude of DoRA, None for what has none.
    """

    base: Tensor
    meant: Tensor
    plain: Tensor | None = None


class Layer(NamedTuple):
    """The layer that a kind makes tensors for: a weight in float64, a source of numbers, and how its factors are to be.

    `size` is that of the numbers of up, None for the size of the weight.
    """

    weight: Tensor
    numbers: torch.Generator
    spelling: Spelling = KOHYA
    rank: int = RANK
    alpha: float | None = ALPHA
    size: float | None = None

    def drawn(self, *shape: int) -> Tensor:
        import torch

        return torch.randn(shape, generator=self.numbers)

    def scale(self, power: float = 1.0) -> float:
        """alpha/rank^power; files without an alpha mean 1."""
        return 1.0 if self.alpha is None else self.alpha / self.rank**power

    def over_outputs(self, numbers: Tensor) -> Tensor:
        """A number for each output in the shape of the weight."""
        return numbers.reshape(-1, *(1 for _ in self.weight.shape[1:]))


class Made(NamedTuple):
    """Tensors of a layer by the ends of their names; what its weight becomes, None where it stays.

    `plain` is that weight without a magnitude, and `bias` what is added to the bias.
    """

    tensors: Mapping[str, Any]
    weight: Tensor | None
    plain: Tensor | None = None
    bias: Tensor | None = None


Make = Callable[[Layer], Made]


class Kind(NamedTuple):
    """A kind of adapter: what it makes of a layer, and the tensors that its files have beside those of layers.

    `spelling` is that of its factors where nobody asks for another. `has_alpha` says whether an alpha may stand beside
    the factors; a `config` has it instead. Layers that are `uneven` have ranks and alphas of their own.
    """

    make: Make
    beside: Mapping[str, Any] = MappingProxyType({})
    spelling: Spelling = KOHYA
    has_alpha: bool = True
    config: Mapping[str, Any] | None = None
    uneven: bool = False
    of_norms: bool = False


def _of_lora(power: float = 1.0) -> Make:
    """W + alpha/rank^power · up @ down: of RS-LoRA with a power of 1/2, of which something beside has to speak."""

    def make(layer: Layer) -> Made:
        down, up = (layer.drawn(*shape) for shape in shapes_of_factors(layer.weight.shape, layer.rank))
        up *= float(layer.weight.std()) if layer.size is None else layer.size
        delta = layer.scale(power) * up.double().flatten(1) @ down.double().flatten(1)
        tensors = {layer.spelling.down: down, layer.spelling.up: up}
        return Made(tensors, layer.weight + delta.reshape(layer.weight.shape))

    return make


def _of_dora(suffix: str, axis: int = 0, is_vector: bool = False, power: float = 1.0) -> Make:
    """DoRA over outputs (axis 0) or inputs (axis 1): m · V / ‖V‖ with V = W + delta."""

    def make(layer: Layer) -> Made:
        import torch

        tensors, plain, *_ = _of_lora(power)(layer)
        others = [dim for dim in range(plain.dim()) if dim != axis]
        norm, of_base = (one.square().sum(others, keepdim=True).sqrt() for one in (plain, layer.weight))
        gain = 0.5 + torch.rand(norm.shape, generator=layer.numbers)
        # Where up has a size of its own, the magnitude keeps the weight near its size.
        magnitude = (norm * gain if layer.size is None else of_base * (0.5 + gain)).float()
        own = magnitude.flatten() if is_vector else magnitude
        return Made({**tensors, suffix: own}, magnitude.double() * plain / norm, plain)

    return make


def _of_loha(layer: Layer) -> Made:
    """W + scale · (w1_a @ w1_b) * (w2_a @ w2_b)."""
    out, inputs = layer.weight.flatten(1).shape
    tensors, delta = {}, layer.scale()
    for number in (1, 2):
        a, b = 0.3 * layer.drawn(out, layer.rank), layer.drawn(layer.rank, inputs)
        tensors |= {f".hada_w{number}_a": a, f".hada_w{number}_b": b}
        delta = delta * (a.double() @ b.double())
    return Made(tensors, layer.weight + delta.reshape(layer.weight.shape))


def _of_lokr(is_whole: bool) -> Make:
    """W + w1 ⊗ w2, or W + scale · w1 ⊗ (w2_a @ w2_b); alpha is no scale of two whole factors."""

    def make(layer: Layer) -> Made:
        out, inputs, *kernel = layer.weight.shape
        rows, columns = 2 - out % 2, 2 - inputs % 2
        first = layer.drawn(rows, columns)
        if is_whole:
            second = 0.1 * layer.drawn(out // rows, inputs // columns, *kernel)
            tensors, scale = {".lokr_w2": second}, 1.0
        else:
            assert not kernel, "the factors of a kernel have a core"
            a, b = 0.1 * layer.drawn(out // rows, layer.rank), layer.drawn(layer.rank, inputs // columns)
            tensors, scale, second = {".lokr_w2_a": a, ".lokr_w2_b": b}, layer.scale(), a.double() @ b.double()
        delta = scale * first.double().reshape(rows, columns, *(1 for _ in kernel)).kron(second.double())
        return Made({".lokr_w1": first, **tensors}, layer.weight + delta)

    return make


def _of_oft(size: Callable[[int], int], limit: float = 0.0) -> Make:
    """Rᵀ W of blocks of `size` of the rows, R = (I + Q)(I - Q)^-1 and Q = X - Xᵀ; an alpha of 0 sets no limit."""

    def make(layer: Layer) -> Made:
        rows = size(len(layer.weight))
        blocks = 0.3 * layer.drawn(len(layer.weight) // rows, rows, rows)
        skew = (blocks - blocks.mT).double()
        one = skew.new_ones(rows).diag()
        rotation = (one + skew) @ (one - skew).inverse()
        turned = rotation.mT @ layer.weight.reshape(len(blocks), rows, -1)
        alpha = {} if layer.alpha is None else {".alpha": limit}
        return Made({".oft_blocks": blocks, **alpha}, turned.reshape(layer.weight.shape))

    return make


def _of_ia3(layer: Layer) -> Made:
    """LyCORIS's: W · (1 + w) per output."""
    gain = layer.drawn(len(layer.weight))
    return Made({".weight": gain, ".on_input": 0}, layer.weight * layer.over_outputs(1 + gain.double()))


def _of_differences(weight: str = "", bias: str = "", size: float = 0.1) -> Make:
    """W + w and b + b', under these ends where they are named."""

    def make(layer: Layer) -> Made:
        tensors = {weight: size * layer.drawn(*layer.weight.shape)} if weight else {}
        meant = layer.weight + tensors[weight].double() if weight else None
        if bias:
            tensors[bias] = size * layer.drawn(len(layer.weight))
        return Made(tensors, meant, bias=tensors[bias].double() if bias else None)

    return make


def _of_lora_with_bias(layer: Layer) -> Made:
    """LoRA of the weight, and b + diff_b."""
    plain, beside = _of_lora()(layer), _of_differences(bias=".diff_b")(layer)
    return plain._replace(tensors={**plain.tensors, **beside.tensors}, bias=beside.bias)


def _of_lora_with_bias_of_up(layer: Layer) -> Made:
    """LoRA whose up layer has a bias, which its scale multiplies."""
    suffix = layer.spelling.up.removesuffix("weight") + "bias"
    plain, beside = _of_lora()(layer), _of_differences(bias=suffix)(layer)
    return plain._replace(tensors={**plain.tensors, **beside.tensors}, bias=layer.scale() * beside.bias)


_CONFIG = {"r": RANK, "lora_alpha": ALPHA, "use_rslora": False}
KINDS = {
    "lora": Kind(_of_lora()),
    "lora A/B": Kind(_of_lora(), spelling=PEFT),
    "rslora flag": Kind(_of_lora(0.5), {"use_rslora_flag": True}),
    "dora_scale of outputs": Kind(_of_dora(".dora_scale")),
    "dora_scale of inputs": Kind(_of_dora(".dora_scale", axis=1)),
    "dora_layer": Kind(_of_dora(".dora_layer.weight", is_vector=True)),
    "magnitude vector": Kind(_of_dora(".lora_magnitude_vector", is_vector=True), spelling=PEFT),
    "loha": Kind(_of_loha),
    "lokr whole": Kind(_of_lokr(True)),
    "lokr low-rank": Kind(_of_lokr(False)),
    "oft small blocks": Kind(_of_oft(lambda rows: 2)),
    "oft large blocks": Kind(_of_oft(lambda rows: rows // 2)),
    "ia3": Kind(_of_ia3, has_alpha=False),
    "full": Kind(_of_differences(".diff"), has_alpha=False),
    "full and bias": Kind(_of_differences(".diff", ".diff_b"), has_alpha=False),
    "bias beside lora": Kind(_of_lora_with_bias),
    "bias alone": Kind(_of_differences(bias=".diff_b"), has_alpha=False),
    "bias of the up layer": Kind(_of_lora_with_bias_of_up),
    "norm": Kind(_of_differences(".w_norm", ".b_norm", size=0.3), has_alpha=False, of_norms=True),
}
# Kinds that only programs tell apart which read configs, or keys of no layer.
KINDS_OF_FILES = {
    "uneven": Kind(_of_lora(), uneven=True),
    "rslora config": Kind(_of_lora(0.5), config={**_CONFIG, "use_rslora": True}),
    "alpha config": Kind(_of_lora(), config=_CONFIG),
    "dora config": Kind(_of_dora(".lora_magnitude_vector", is_vector=True), config={**_CONFIG, "use_dora": True}),
    "rslora dora config": Kind(
        _of_dora(".lora_magnitude_vector", is_vector=True, power=0.5),
        config={**_CONFIG, "use_rslora": True, "use_dora": True},
    ),
    "magnitude.weight": Kind(_of_dora(".lora_magnitude_vector.weight", is_vector=True)),
    "oft": Kind(_of_oft(lambda rows: rows if rows % 2 else rows // 2, limit=ALPHA)),
    "stranger": Kind(_of_lora(), {"extra": (1.0, 1.0)}),
    "dotted stranger": Kind(_of_lora(), {"extra.weight": (1.0, 1.0)}),
}


def adapter(
    kind: Kind,
    layers: Mapping[str, Mapping[str, Tensor]],
    spell: Callable[[str], str],
    has_alpha: bool,
    seed: int = 5,
    spelling: Spelling | None = None,
    size: float | None = None,
) -> tuple[dict[str, Tensor], dict[str, Weight]]:
    """(tensors of a file, what it means) of a kind of adapter of the `layers`: their weight and bias by path.

    `spell` gives a layer's name in the keys. The meaning goes by "path.weight" and "path.bias".
    """
    import torch

    numbers = torch.Generator().manual_seed(seed)
    tensors, meant = dict(kind.beside), {}
    for at, (path, own) in enumerate(layers.items()):
        weight, bias = own["weight"].double(), own["bias"].double() if "bias" in own else None
        rank, alpha = (RANK - at % 3, ALPHA + at % 2) if kind.uneven else (RANK, ALPHA)
        made = kind.make(Layer(weight, numbers, spelling or kind.spelling, rank, alpha if has_alpha else None, size))
        is_stored = has_alpha and kind.has_alpha and kind.config is None
        beside = {".alpha": alpha} if is_stored else {}
        tensors |= {spell(path) + suffix: value for suffix, value in (beside | made.tensors).items()}
        if made.weight is not None:
            meant[f"{path}.weight"] = Weight(weight, made.weight, made.plain)
        if made.bias is not None and bias is not None:
            meant[f"{path}.bias"] = Weight(bias, bias + made.bias)
    return {key: torch.as_tensor(value).contiguous() for key, value in tensors.items()}, meant
