"""Scaled OFT of OneTrainer: the input is turned before the layer, with R = I + 2Q + 2Q² + 2Q³ + Q⁴.

OneTrainer is no library: its forward is written out here, as its own module of the revision that brought the mark
computes it.
"""

from collections.abc import Iterator

import torch
from library_case import Case, make
from torch import Tensor

NAME = "lora_transformer_layer.oft_R"


def case(kind: str, size: int, count: int) -> Case:
    layer, input = make(kind)
    numbers = torch.randn(
        count, size * (size - 1) // 2, generator=torch.Generator().manual_seed(8), dtype=torch.float64
    )
    blocks = layer.in_features // size

    def rotations() -> list[Tensor]:
        found = []
        for row in numbers:
            skew = torch.zeros(size, size, dtype=torch.float64)
            skew[tuple(torch.triu_indices(size, size, 1))] = row / (2 * (size - 1) ** 0.5)
            skew = skew - skew.T
            power = torch.linalg.matrix_power
            found.append(torch.eye(size) + 2 * skew + 2 * power(skew, 2) + 2 * power(skew, 3) + power(skew, 4))
        return found * (blocks // count)

    def library(multiplier: float) -> Tensor:
        turned = [part @ own for part, own in zip(input.split(size, dim=-1), rotations(), strict=True)]
        with torch.no_grad():
            return layer(torch.cat(turned, dim=-1))

    def oracle(multiplier: float) -> dict[str, Tensor]:
        return {"layer.weight": layer.weight.detach() @ torch.block_diag(*rotations()).T}

    return Case(
        id=f"OneTrainer, {count} blocks of {size}, {kind}",
        layer=layer,
        tensors={
            "lora_transformer_layer.oft_R.weight": numbers,
            "lora_transformer_layer.oft_R.scaled_oft": torch.tensor(True),
        },
        library=library,
        oracle=oracle,
        input=input,
        multipliers=(1.0,),
        metadata={"ot_branch": "master", "ot_revision": "c063836"},
    )


def cases() -> Iterator[Case]:
    yield case("linear", 4, 3)
    yield case("linear", 3, 1)
    yield case("square", 12, 1)
    yield case("square", 2, 6)
