"""GLoRA of PEFT: W + W ⊙ A + B and b + b ⊙ D + E + W C, with each path in each of its forms."""

import copy
from collections.abc import Iterator
from itertools import product

import peft
import torch
from libraries import of_peft
from library_case import Case, make
from torch import Tensor, nn


def oracle(tensors: dict[str, Tensor], layer: nn.Module, multiplier: float) -> dict[str, Tensor]:
    assert multiplier == 1.0
    rows, columns = layer.weight.shape
    sizes = {"A": (rows, columns), "B": (rows, columns), "C": (columns, 1), "D": (rows,), "E": (rows,)}
    paths = {}
    for path, size in sizes.items():
        own = {key.rpartition(".")[2]: tensor for key, tensor in tensors.items() if f".glora_{path}." in key}
        made = own["Xd"] @ own["Xu"] if "Xd" in own else own.get("X", own.get("zeros"))
        paths[path] = made.expand(size)
    weight = layer.weight.detach()
    expected = {"layer.weight": weight + weight * paths["A"] + paths["B"]}
    if layer.bias is not None:
        bias = layer.bias.detach()
        mixed = torch.einsum("oi,i->o", weight, paths["C"][:, 0])
        expected["layer.bias"] = bias + bias * paths["D"] + paths["E"] + mixed
    return expected


def without_bias(kind: str) -> tuple[nn.Module, Tensor]:
    layer, input = make(kind)
    layer = copy.deepcopy(layer)
    layer.bias = None
    return layer, input


def cases() -> Iterator[Case]:
    forms = list(
        product(("lora", "vector", "constant", "none"), ("lora", "vector", "none"), ("vector", "constant", "none"))
    )
    for weight, mixed, bias in forms:
        if weight == mixed == bias == "none":
            continue
        config = peft.GloraConfig(r=3, config_A_B=weight, config_C=mixed, config_D_E=bias, target_modules=["layer"])
        yield of_peft(f"GLoRA, {weight} {mixed} {bias},", config, "linear", oracle, multipliers=(1.0,))
    for weight in ("lora", "vector", "constant"):
        config = peft.GloraConfig(r=3, config_A_B=weight, target_modules=["layer"])
        yield of_peft(f"GLoRA, {weight},", config, "square", oracle, multipliers=(1.0,))
        layer, input = without_bias("linear")
        yield of_peft(f"GLoRA, {weight}, no bias,", config, layer, oracle, input=input, multipliers=(1.0,))
