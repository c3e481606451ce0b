"""FourierFT of PEFT: few numbers of a Fourier transform, at places that a seed draws. PEFT computes it in float32."""

from collections.abc import Iterator
from typing import Any

import peft
import torch
from drawn import drawn
from libraries import of_peft
from library_case import Case
from torch import Tensor, nn


def of(scaling: float, seed: int):
    def oracle(tensors: dict[str, Tensor], layer: nn.Module, multiplier: float) -> dict[str, Tensor]:
        assert multiplier == 1.0
        weight, values = layer.weight.detach(), tensors["layer.fourierft_spectrum"]
        rows, columns = weight.shape
        change = torch.zeros_like(weight)
        down, across = torch.arange(rows).double() / rows, torch.arange(columns).double() / columns
        for value, entry in zip(values, drawn(len(values), rows * columns, seed), strict=True):
            turns = (entry // columns) * down.unsqueeze(1) + (entry % columns) * across
            change += value * torch.cos(2 * torch.pi * turns)
        return {"layer.weight": weight + scaling / (rows * columns) * change}

    return oracle


OPTIONS: dict[str, dict[str, Any]] = {
    "10": {"n_frequency": 10},
    "1": {"n_frequency": 1, "random_loc_seed": 3},
    "100, another seed": {"n_frequency": 100, "random_loc_seed": 2**40 + 5, "scaling": 40.0},
    "a negative seed": {"n_frequency": 30, "random_loc_seed": -1, "scaling": -20.0},
    "patterns": {"n_frequency": 30, "n_frequency_pattern": {"layer": 12}},
}


def cases() -> Iterator[Case]:
    for kind, most in (("linear", 240), ("square", 144), ("odd", 9 * 7)):
        all_of_them = {"n_frequency": most, "scaling": 50.0}
        for name, options in (OPTIONS | {"every frequency": all_of_them}).items():
            if options["n_frequency"] > most:
                continue
            config = peft.FourierFTConfig(target_modules=["layer"], **options)
            oracle = of(options.get("scaling", 150.0), options.get("random_loc_seed", 777))
            yield of_peft(f"FourierFT, {name},", config, kind, oracle, dtype=torch.float32, multipliers=(1.0,))
