"""Adapters: in the names of any scheme, of any kind, in two forms of one definition, with what is meant by them.

Tensors that are only read are (dtype, shape, number), as `write_safetensors` takes them, and load no torch:
`lora` of one module, `loras` of those that `base` has, `split` of a layer in parts.

Tensors that are computed with are torch's. `factors` makes LoRA or DoRA of some layers of a base, `kohya` and `dotted`
spell it, `expected` merges it in float64, and `assert_within` holds a merge to that and its bounds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]
# What rounding to float32 changes of a number at most, relative to it.
EPS = 2.0**-24


class Spelling(NamedTuple):
    """The ends of the names of a layer's tensors."""

    down: str
    up: str
    magnitude: str


KOHYA = Spelling(".lora_down.weight", ".lora_up.weight", ".dora_scale")
PEFT = Spelling(".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector")
SPELLINGS = {"kohya": KOHYA, "peft": PEFT}


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


Layers = Mapping[str, Factors]


def factors(base: Mapping[str, Tensor], paths: Iterable[str], dora: bool = False, seed: int = 7) -> dict[str, Factors]:
    """Factors of the layers of `base` at the paths, each of another rank and alpha."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    found = {}
    for number, path in enumerate(paths):
        weight = base[f"{path}.weight"]
        down, up = (
            torch.randn(shape, generator=generator) for shape in shapes_of_factors(weight.shape, 1 + number % 3)
        )
        magnitude = weight.flatten(1).norm(dim=1) * (1 + torch.rand(len(weight), generator=generator)) if dora else None
        found[path] = Factors(down, up, 0.5 + number % 4, magnitude)
    return found


def kohya(prefix: str, layers: Layers) -> dict[str, Tensor]:
    """The underscored names, alpha in a tensor; the magnitude as ComfyUI's users know it."""
    return _spelled(KOHYA, {prefix + path.replace(".", "_"): own for path, own in layers.items()})


def dotted(prefix: str, layers: Layers) -> dict[str, Tensor]:
    """Dotted names with alpha; the magnitude in PEFT's spelling."""
    return _spelled(PEFT, {prefix + path: own for path, own in layers.items()})


def _spelled(spelling: Spelling, layers: Layers) -> dict[str, Tensor]:
    import torch

    tensors = {}
    for name, own in layers.items():
        tensors |= {name + spelling.down: own.down, name + spelling.up: own.up}
        tensors[f"{name}.alpha"] = torch.tensor(own.alpha)
        if own.magnitude is not None:
            kernel = (1,) * (own.down.dim() - 2)
            shape = (-1, 1, *kernel) if spelling is KOHYA else (1, -1, *kernel) if kernel else (-1,)
            tensors[name + spelling.magnitude] = own.magnitude.reshape(shape)
    return tensors


def expected(
    base: Mapping[str, Tensor], layers: Layers, multiplier: float, interpolate: bool
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
