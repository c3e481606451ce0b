"""GLoRA of LyCORIS: W + m · s · (W · A + B), as 4.1 computes it, and in the order of the factors of before 3."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import torch
from libraries import of_lycoris
from library_case import LAYERS, Case
from lycoris.modules.glora import GLoRAModule
from torch import Tensor, nn

RANK, ALPHA = 2, 3.0


def of_keys(tensors: dict[str, Tensor], layer: nn.Module, multiplier: float) -> dict[str, Tensor]:
    weight = layer.weight.detach()
    a1, a2, b1, b2 = (tensors[f"{name}.weight"].flatten(1) for name in ("a1", "a2", "b1", "b2"))
    change = (b1 @ b2).view_as(weight) if "bm.weight" not in tensors else tucker(tensors, b1, b2)
    mixing = a1 @ a2
    for place in product(*map(range, weight.shape[2:])):
        at = (slice(None), slice(None), *place)
        change[at] += weight[at] @ mixing
    return {"layer.weight": weight + multiplier * ALPHA / RANK * change}


def tucker(tensors: dict[str, Tensor], b1: Tensor, b2: Tensor) -> Tensor:
    return torch.einsum("op,pqxy,qi->oixy", b1, tensors["bm.weight"], b2)


class Tucker(GLoRAModule):
    """The core that LyCORIS computes with, and never makes."""

    def __init__(self, name: str, layer: nn.Conv2d, **options: float) -> None:
        super().__init__(name, layer, **options)
        self.b2 = nn.Conv2d(layer.in_channels, RANK, 1, bias=False)
        self.bm = nn.Conv2d(RANK, RANK, layer.kernel_size, bias=False)
        self.tucker = True


class Old(nn.Module):
    """What GLoRA computed before LyCORIS 3, whose factors each have the other one's name."""

    def __init__(self, layer: nn.Module, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.layer = layer
        self.a1, self.a2, self.b1, self.b2 = (tensors[f"{name}.weight"] for name in ("a2", "a1", "b2", "b1"))

    def output(self, input: Tensor, multiplier: float) -> Tensor:
        apply = torch.nn.functional.linear if isinstance(self.layer, nn.Linear) else torch.nn.functional.conv2d
        scale = multiplier * ALPHA / RANK
        with torch.no_grad():
            mixed = apply(apply(input, self.a1) * scale, self.a2)
            added = apply(apply(input, self.b1) * scale, self.b2)
            return self.layer(input + mixed) + added


def of_old(kind: str) -> Case:
    """The same factors under the names of before: 1.8 cannot be installed beside the one of today."""
    new = of_lycoris("GLoRA of before 3", GLoRAModule, kind, of_keys, lora_dim=RANK, alpha=ALPHA)
    tensors = {key.removeprefix("lycoris_layer."): tensor for key, tensor in new.tensors.items()}
    other = {"a1": "a2", "a2": "a1", "b1": "b2", "b2": "b1"}
    named = {f"lycoris_layer.{other[name]}.weight": tensors[f"{name}.weight"] for name in other}
    old = Old(copy.deepcopy(new.layer), tensors)
    return replace(
        new,
        tensors={**named, "lycoris_layer.alpha": tensors["alpha"]},
        library=lambda multiplier: old.output(new.input, multiplier),
    )


def cases() -> Iterator[Case]:
    for kind in LAYERS:
        yield of_lycoris("GLoRA", GLoRAModule, kind, of_keys, lora_dim=RANK, alpha=ALPHA)
    yield of_lycoris("GLoRA with a core", Tucker, "conv 3x3", of_keys, lora_dim=RANK, alpha=ALPHA)
    for kind in ("linear", "square", "conv 1x1"):
        yield of_old(kind)
