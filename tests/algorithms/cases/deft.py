"""DEFT of PEFT: what the weight has along a few directions is taken out and put in anew, in PEFT in float32."""

from collections.abc import Iterator
from typing import Any

import peft
import torch
from libraries import of_peft
from library_case import Case
from torch import Tensor, nn


def householder(matrix: Tensor) -> Tensor:
    """The orthonormal factor of a QR decomposition with LAPACK's signs: each reflection turns the sign of a column."""
    rest, whole = matrix.clone(), torch.eye(len(matrix), dtype=matrix.dtype)
    for at in range(min(matrix.shape[1], len(matrix) - 1)):
        column = rest[at:, at].clone()
        column[0] += torch.sign(column[0]) * column.norm()
        reflection = torch.eye(len(matrix), dtype=matrix.dtype)
        reflection[at:, at:] -= 2 * torch.outer(column, column) / column.square().sum()
        rest, whole = reflection @ rest, whole @ reflection
    return whole[:, : matrix.shape[1]]


def of(options: dict[str, Any]):
    def oracle(tensors: dict[str, Tensor], layer: nn.Module, multiplier: float) -> dict[str, Tensor]:
        assert multiplier == 1.0
        weight, directions = layer.weight.detach(), tensors["layer.deft_P"]
        left, taken = directions, torch.relu(directions)
        if options.get("decomposition_method") == "qr":
            left = taken = householder(directions)
        changed = weight.clone()
        for index in range(directions.shape[1]):
            put = torch.zeros(weight.shape[1], dtype=weight.dtype)
            if not options.get("para"):
                put = tensors["layer.deft_R"][index] * (options.get("alpha") or directions.shape[1])
            part = put / directions.shape[1] - taken[:, index] @ weight
            changed += torch.outer(left[:, index], part)
        return {"layer.weight": changed}

    return oracle


OPTIONS: dict[str, dict[str, Any]] = {
    "relu": {"r": 4},
    "relu, alpha": {"r": 4, "alpha": 6},
    "relu, alpha 0": {"r": 4, "alpha": 0},
    "relu, para": {"r": 4, "para": True},
    "qr": {"r": 4, "decomposition_method": "qr"},
    "qr, alpha": {"r": 3, "decomposition_method": "qr", "alpha": 2},
    "qr, para": {"r": 4, "decomposition_method": "qr", "para": True, "alpha": 9},
    "of r 1": {"r": 1, "decomposition_method": "qr"},
    # PEFT takes as many directions as there are outputs.
    "of a large r": {"r": 100, "decomposition_method": "qr"},
}


def cases() -> Iterator[Case]:
    for kind in ("linear", "square"):
        for name, options in OPTIONS.items():
            config = peft.DeftConfig(target_modules=["layer"], **options)
            yield of_peft(f"DEFT, {name},", config, kind, of(options), dtype=torch.float32, multipliers=(1.0,))
