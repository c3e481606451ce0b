"""WaveFT of PEFT: few numbers of a wavelet transform, at places that a seed draws."""

from collections.abc import Iterator
from typing import Any

import peft
import torch
from drawn import drawn
from libraries import of_peft
from library_case import Case
from torch import Tensor, nn

TAPS = {
    "db1": [1, 1],
    "db2": [1 + 3**0.5, 3 + 3**0.5, 3 - 3**0.5, 1 - 3**0.5],
}


def filters(family: str) -> tuple[Tensor, Tensor]:
    low = torch.tensor(TAPS[family], dtype=torch.float64)
    low = low / low.norm()
    return low, low.flip(0) * torch.tensor([(-1.0) ** tap for tap in range(len(low))], dtype=torch.float64)


def inverse(dense: Tensor, family: str) -> Tensor:
    """The transform as two-dimensional convolutions of the four quarters, each with zeros between its numbers."""
    low, high = filters(family)
    rows, columns = dense.shape[0] // 2, dense.shape[1] // 2
    # PEFT's high pass of the rows is for the quarter on the right, and that of the columns for the one below.
    quarters = {
        (low, low): dense[:rows, :columns],
        (high, low): dense[:rows, columns:],
        (low, high): dense[rows:, :columns],
        (high, high): dense[rows:, columns:],
    }
    whole = torch.zeros(2 * rows + len(low) - 2, 2 * columns + len(low) - 2, dtype=torch.float64)
    for (down, across), quarter in quarters.items():
        for row in range(rows):
            for column in range(columns):
                part = whole[2 * row : 2 * row + len(low), 2 * column : 2 * column + len(low)]
                part += quarter[row, column] * torch.outer(down, across)
    cut = len(low) - 2
    return whole[cut : len(whole) - cut, cut : whole.shape[1] - cut]


def of(options: dict[str, Any]):
    def oracle(tensors: dict[str, Tensor], layer: nn.Module, multiplier: float) -> dict[str, Tensor]:
        assert multiplier == 1.0
        weight, values = layer.weight.detach(), tensors["layer.waveft_spectrum"]
        rows, columns = weight.shape
        change = torch.zeros_like(weight)
        for value, entry in zip(
            values, drawn(len(values), rows * columns, options.get("random_loc_seed", 777)), strict=True
        ):
            change[entry // columns, entry % columns] = value
        if options.get("use_idwt", True):
            family = {"sym2": "db2"}.get(options.get("wavelet_family", "db1"), options.get("wavelet_family", "db1"))
            more = [size + len(TAPS[family]) - 2 for size in (rows, columns)]
            dense = torch.zeros([size + size % 2 for size in more], dtype=torch.float64)
            down, across = (dense.shape[axis] - weight.shape[axis] for axis in (0, 1))
            dense[down // 2 : down // 2 + rows, across // 2 : across // 2 + columns] = change
            change = inverse(dense, family)[:rows, :columns]
        return {"layer.weight": weight + options.get("scaling", 25.0) * change}

    return oracle


OPTIONS: dict[str, dict[str, Any]] = {
    "30": {"n_frequency": 30},
    "every frequency": {"scaling": 3.0},
    "another seed": {"n_frequency": 30, "random_loc_seed": 5, "scaling": -2.0},
    "no transform": {"n_frequency": 30, "use_idwt": False},
    "db2": {"n_frequency": 40, "wavelet_family": "db2"},
    "db2, every frequency": {"wavelet_family": "db2", "scaling": 3.0},
    "sym2": {"n_frequency": 30, "wavelet_family": "sym2"},
    # Wavelets that are not computed do not count where there is no transform.
    "no transform by db4": {"n_frequency": 20, "use_idwt": False, "wavelet_family": "db4"},
    "in proportion": {"n_frequency": 20, "proportional_parameters": True},
}


def cases() -> Iterator[Case]:
    for kind, most in (("linear", 240), ("square", 144), ("odd", 63)):
        for name, options in OPTIONS.items():
            config = peft.WaveFTConfig(target_modules=["layer"], **{"n_frequency": most, **options})
            yield of_peft(f"WaveFT, {name},", config, kind, of(options), multipliers=(1.0,))
