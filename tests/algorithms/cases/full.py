"""Full differences of LyCORIS: W + m · diff and b + m · diff_b; and that of a parameter, which is added as it is."""

import copy
from collections.abc import Iterator

import torch
from libraries import of_lycoris
from library_case import LAYERS, Case, Modulated, fill
from lycoris.modules.full import FullModule
from torch import Tensor, nn


def of_keys(tensors: dict[str, Tensor], layer: nn.Module, multiplier: float) -> dict[str, Tensor]:
    weight, bias = layer.weight.detach(), layer.bias.detach()
    return {
        "layer.weight": weight + multiplier * tensors["diff"],
        "layer.bias": bias + multiplier * tensors["diff_b"],
    }


def of_modulation() -> Case:
    """No library here reads `.diff_m`: the formula is all there is."""
    generator = torch.Generator().manual_seed(5)
    block = fill(Modulated().double(), generator)
    original, difference = (torch.randn(1, 6, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    with torch.no_grad():
        block.modulation.copy_(original)
    input = torch.randn(3, 6, 8, generator=generator, dtype=torch.float64)
    return Case(
        id="of a modulation",
        layer=copy.deepcopy(block),
        tensors={"diffusion_model.layer.diff_m": difference},
        library=lambda multiplier: input + original + multiplier * difference,
        oracle=lambda multiplier: {"layer.modulation": original + multiplier * difference},
        input=input,
    )


def cases() -> Iterator[Case]:
    for kind in LAYERS:
        yield of_lycoris("full", FullModule, kind, of_keys)
    yield of_modulation()
