"""(IA)3 of LyCORIS: W' = (1 + m · w) · W along the outputs or the inputs, and the bias as it was."""

from collections.abc import Iterator

from libraries import of_lycoris
from library_case import LAYERS, Case
from lycoris.modules.ia3 import IA3Module
from torch import Tensor, nn


def of_keys(tensors: dict[str, Tensor], layer: nn.Module, multiplier: float) -> dict[str, Tensor]:
    changed = layer.weight.detach().clone()
    for number, gain in enumerate(tensors["weight"].flatten()):
        changed.select(int(tensors["on_input"]), number).mul_(1 + multiplier * gain)
    return {"layer.weight": changed, "layer.bias": layer.bias.detach()}


def cases() -> Iterator[Case]:
    for kind in LAYERS:
        for on_input in (False, True):
            name = f"(IA)3 of {'inputs' if on_input else 'outputs'}"
            yield of_lycoris(name, IA3Module, kind, of_keys, train_on_input=on_input)
