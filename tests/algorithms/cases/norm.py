"""Differences of LyCORIS on norm layers: w + m · w_norm and b + m · b_norm."""

from collections.abc import Iterator

from libraries import of_lycoris
from library_case import NORMS, Case
from lycoris.modules.norms import NormModule
from torch import Tensor, nn


def of_keys(tensors: dict[str, Tensor], layer: nn.Module, multiplier: float) -> dict[str, Tensor]:
    return {
        "layer.weight": layer.weight.detach() + multiplier * tensors["w_norm"],
        "layer.bias": layer.bias.detach() + multiplier * tensors["b_norm"],
    }


def cases() -> Iterator[Case]:
    for kind in NORMS:
        yield of_lycoris("norm", NormModule, kind, of_keys)
