"""LN tuning of PEFT: the weight and the bias of a layer are trained whole."""

import warnings
from collections.abc import Iterator

import peft
from libraries import of_peft
from library_case import NORMS, Case
from torch import Tensor, nn


def oracle(tensors: dict[str, Tensor], layer: nn.Module, multiplier: float) -> dict[str, Tensor]:
    assert multiplier == 1.0
    return {f"layer.{name}": tensors[f"layer.ln_tuning_layers.{name}"] for name in ("weight", "bias")}


def cases() -> Iterator[Case]:
    for kind in (*NORMS, "linear", "conv 3x3"):
        config = peft.LNTuningConfig(target_modules=["layer"])
        with warnings.catch_warnings():
            # PEFT does not know how wide a norm is.
            warnings.simplefilter("ignore")
            yield of_peft("LN tuning", config, kind, oracle, multipliers=(1.0,))
