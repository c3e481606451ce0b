"""Kinds of adapters of one layer in the spellings of kohya and LyCORIS, each with what the trainer means in float64.

The formulas are written out here and are none of the program's. Numbers are random, and changes of the weights' size.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from consumer_grid import Weight
from torch import Tensor

RANK, ALPHA = 4, 3.0


class Made(NamedTuple):
    """Tensors of one layer by their suffix, and what becomes of its weight, and of its bias where it changes that."""

    tensors: Mapping[str, Tensor]
    weight: Tensor | None
    plain: Tensor | None = None
    bias: Tensor | None = None


# The base's weight and bias in float64, whether an alpha stands in the file, and a source of random numbers.
Make = Callable[[Tensor, Tensor | None, bool, torch.Generator], Made]


class Kind(NamedTuple):
    """A kind of adapter: what it makes of a layer, and the tensors that its files have beside those of layers.

    `needs_bias` and `of_norms` say which layers have it.
    """

    make: Make
    beside: Mapping[str, Tensor] = MappingProxyType({})
    needs_bias: bool = False
    of_norms: bool = False


def _random(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator)


def _alpha(has_alpha: bool) -> dict[str, Tensor]:
    return {".alpha": torch.tensor(ALPHA)} if has_alpha else {}


def _lora(
    weight: Tensor, has_alpha: bool, generator: torch.Generator, suffixes: tuple[str, str], power: float = 1.0
) -> tuple[dict[str, Tensor], Tensor]:
    """LoRA's factors under these suffixes of down and up, and alpha/rank^power · up @ down."""
    out, inputs, *kernel = weight.shape
    down = _random(generator, RANK, inputs, *kernel)
    up = _random(generator, out, RANK, *(1 for _ in kernel)) * float(weight.std())
    scale = ALPHA / RANK**power if has_alpha else 1.0
    delta = scale * up.double().flatten(1) @ down.double().flatten(1)
    return {suffixes[0]: down, suffixes[1]: up, **_alpha(has_alpha)}, delta.reshape(weight.shape)


KOHYA, PEFT = (".lora_down.weight", ".lora_up.weight"), (".lora_A.weight", ".lora_B.weight")


def lora(suffixes: tuple[str, str] = KOHYA, power: float = 1.0) -> Make:
    """Plain LoRA, or with a power of 1/2 RS-LoRA, of which a flag beside the layers has to speak."""

    def make(weight: Tensor, bias: Tensor | None, has_alpha: bool, generator: torch.Generator) -> Made:
        tensors, delta = _lora(weight, has_alpha, generator, suffixes, power)
        return Made(tensors, weight + delta)

    return make


def dora(suffix: str, axis: int = 0, is_vector: bool = False, suffixes: tuple[str, str] = KOHYA) -> Make:
    """DoRA over outputs (axis 0) or inputs (axis 1): m · V / ‖V‖ with V = W + delta."""

    def make(weight: Tensor, bias: Tensor | None, has_alpha: bool, generator: torch.Generator) -> Made:
        tensors, delta = _lora(weight, has_alpha, generator, suffixes)
        plain = weight + delta
        norm = plain.square().sum([dim for dim in range(plain.dim()) if dim != axis], keepdim=True).sqrt()
        magnitude = (norm * (0.5 + torch.rand(norm.shape, generator=generator))).float()
        tensors[suffix] = magnitude.flatten() if is_vector else magnitude
        return Made(tensors, magnitude.double() * plain / norm, plain)

    return make


def loha(weight: Tensor, bias: Tensor | None, has_alpha: bool, generator: torch.Generator) -> Made:
    """scale · (w1_a @ w1_b) * (w2_a @ w2_b)."""
    out, inputs = weight.flatten(1).shape
    tensors = {}
    products = []
    for number in (1, 2):
        a, b = _random(generator, out, RANK) * 0.3, _random(generator, RANK, inputs)
        tensors |= {f".hada_w{number}_a": a, f".hada_w{number}_b": b}
        products.append(a.double() @ b.double())
    scale = ALPHA / RANK if has_alpha else 1.0
    delta = scale * products[0] * products[1]
    return Made(tensors | _alpha(has_alpha), weight + delta.reshape(weight.shape))


def lokr(is_whole: bool) -> Make:
    """w1 ⊗ w2, or scale · w1 ⊗ (w2_a @ w2_b); alpha is no scale of two whole factors."""

    def make(weight: Tensor, bias: Tensor | None, has_alpha: bool, generator: torch.Generator) -> Made:
        out, inputs, *kernel = weight.shape
        first = _random(generator, 2, 2)
        tensors = {".lokr_w1": first, **_alpha(has_alpha)}
        if is_whole:
            tensors[".lokr_w2"] = second = 0.1 * _random(generator, out // 2, inputs // 2, *kernel)
            scale = 1.0
        else:
            assert not kernel, "the factors of a kernel have a core"
            a, b = 0.1 * _random(generator, out // 2, RANK), _random(generator, RANK, inputs // 2)
            tensors |= {".lokr_w2_a": a, ".lokr_w2_b": b}
            second = a.double() @ b.double()
            scale = ALPHA / RANK if has_alpha else 1.0
        delta = scale * torch.kron(first.double().reshape(2, 2, *(1 for _ in kernel)), second.double())
        return Made(tensors, weight + delta)

    return make


def oft(size: Callable[[int], int]) -> Make:
    """Blocks of `size` of the rows: Rᵀ W with R = (I + Q)(I - Q)^-1 and Q = X - Xᵀ; an alpha of 0 sets no limit."""

    def make(weight: Tensor, bias: Tensor | None, has_alpha: bool, generator: torch.Generator) -> Made:
        rows = size(len(weight))
        blocks = 0.3 * _random(generator, len(weight) // rows, rows, rows)
        skew = (blocks - blocks.mT).double()
        one = torch.eye(rows, dtype=torch.float64)
        rotation = (one + skew) @ torch.linalg.inv(one - skew)
        turned = rotation.mT @ weight.reshape(len(blocks), rows, -1)
        tensors = {".oft_blocks": blocks} | ({".alpha": torch.tensor(0.0)} if has_alpha else {})
        return Made(tensors, turned.reshape(weight.shape))

    return make


def ia3(weight: Tensor, bias: Tensor | None, has_alpha: bool, generator: torch.Generator) -> Made:
    """LyCORIS's: W · (1 + w) per output."""
    gain = _random(generator, len(weight))
    meant = weight * (1 + gain.double()).reshape(-1, *(1 for _ in weight.shape[1:]))
    return Made({".weight": gain, ".on_input": torch.tensor(0)}, meant)


def full(weight: Tensor, bias: Tensor | None, has_alpha: bool, generator: torch.Generator) -> Made:
    """W + diff."""
    diff = 0.1 * _random(generator, *weight.shape)
    return Made({".diff": diff}, weight + diff.double())


def full_and_bias(weight: Tensor, bias: Tensor | None, has_alpha: bool, generator: torch.Generator) -> Made:
    """W + diff and b + diff_b."""
    assert bias is not None
    made, diff = full(weight, bias, has_alpha, generator), 0.1 * _random(generator, *bias.shape)
    return made._replace(tensors={**made.tensors, ".diff_b": diff}, bias=bias + diff.double())


def bias_beside_lora(weight: Tensor, bias: Tensor | None, has_alpha: bool, generator: torch.Generator) -> Made:
    """LoRA of the weight and b + diff_b."""
    assert bias is not None
    made, diff = lora()(weight, bias, has_alpha, generator), 0.1 * _random(generator, *bias.shape)
    return made._replace(tensors={**made.tensors, ".diff_b": diff}, bias=bias + diff.double())


def bias_alone(weight: Tensor, bias: Tensor | None, has_alpha: bool, generator: torch.Generator) -> Made:
    """b + diff_b of a layer whose weight stays."""
    assert bias is not None
    diff = 0.1 * _random(generator, *bias.shape)
    return Made({".diff_b": diff}, None, bias=bias + diff.double())


def up_bias(weight: Tensor, bias: Tensor | None, has_alpha: bool, generator: torch.Generator) -> Made:
    """LoRA whose up layer has a bias, which its scale multiplies."""
    assert bias is not None
    made, own = lora()(weight, bias, has_alpha, generator), 0.1 * _random(generator, *bias.shape)
    scale = ALPHA / RANK if has_alpha else 1.0
    return made._replace(tensors={**made.tensors, ".lora_up.bias": own}, bias=bias + scale * own.double())


def norm(weight: Tensor, bias: Tensor | None, has_alpha: bool, generator: torch.Generator) -> Made:
    """A norm's w + w_norm and b + b_norm."""
    assert bias is not None
    of_weight, of_bias = 0.3 * _random(generator, *weight.shape), 0.3 * _random(generator, *bias.shape)
    tensors = {".w_norm": of_weight, ".b_norm": of_bias}
    return Made(tensors, weight + of_weight.double(), bias=bias + of_bias.double())


KINDS = {
    "lora": Kind(lora()),
    "lora A/B": Kind(lora(PEFT)),
    "rslora flag": Kind(lora(power=0.5), {"use_rslora_flag": torch.tensor(True)}),
    "dora_scale of outputs": Kind(dora(".dora_scale")),
    "dora_scale of inputs": Kind(dora(".dora_scale", axis=1)),
    "dora_layer": Kind(dora(".dora_layer.weight", is_vector=True)),
    "magnitude vector": Kind(dora(".lora_magnitude_vector", is_vector=True, suffixes=PEFT)),
    "loha": Kind(loha),
    "lokr whole": Kind(lokr(True)),
    "lokr low-rank": Kind(lokr(False)),
    "oft small blocks": Kind(oft(lambda rows: 2)),
    "oft large blocks": Kind(oft(lambda rows: rows // 2)),
    "ia3": Kind(ia3),
    "full": Kind(full),
    "full and bias": Kind(full_and_bias, needs_bias=True),
    "bias beside lora": Kind(bias_beside_lora, needs_bias=True),
    "bias alone": Kind(bias_alone, needs_bias=True),
    "bias of the up layer": Kind(up_bias, needs_bias=True),
    "norm": Kind(norm, of_norms=True, needs_bias=True),
}


def adapter(
    kind: Kind, layers: Mapping[str, Mapping[str, Tensor]], spell: Callable[[str], str], has_alpha: bool, seed: int = 5
) -> tuple[dict[str, Tensor], dict[str, Weight]]:
    """(tensors of a file, what it means) of a kind of adapter of the `layers`: their weight and bias by path.

    `spell` gives a layer's name in the keys. The meaning goes by "path.weight" and "path.bias".
    """
    generator = torch.Generator().manual_seed(seed)
    tensors, meant = dict(kind.beside), {}
    for path, own in layers.items():
        weight, bias = own["weight"].double(), own["bias"].double() if "bias" in own else None
        made = kind.make(weight, bias, has_alpha, generator)
        tensors |= {spell(path) + suffix: tensor.contiguous() for suffix, tensor in made.tensors.items()}
        if made.weight is not None:
            meant[f"{path}.weight"] = Weight(weight, made.weight, made.plain)
        if made.bias is not None and bias is not None:
            meant[f"{path}.bias"] = Weight(bias, made.bias)
    return tensors, meant
