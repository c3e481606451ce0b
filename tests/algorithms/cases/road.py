"""RoAd of PEFT: pairs of outputs turned and stretched, R W and R b with a matrix R of cosines and sines."""

from collections.abc import Iterator

import peft
import torch
from libraries import of_peft
from library_case import Case
from torch import Tensor, nn


def formula(variant: str, group: int):
    def oracle(tensors: dict[str, Tensor], layer: nn.Module, multiplier: float) -> dict[str, Tensor]:
        assert multiplier == 1.0
        theta, alpha = tensors["layer.road_theta"], tensors["layer.road_alpha"]
        rows, half = layer.weight.shape[0], group // 2
        turn = torch.zeros(rows, rows, dtype=torch.float64)
        for row in range(rows):
            number, at = divmod(row, group)
            is_first = at < half
            if variant == "road_1":
                cosine = sine = number * half + at % half
            elif variant == "road_2":
                cosine = sine = row
            else:
                cosine, sine = 2 * number * group + at, (2 * number + 1) * group + at
            other = row + half if is_first else row - half
            turn[row, row] = alpha[cosine] * theta[cosine].cos()
            turn[row, other] = (-1 if is_first else 1) * alpha[sine] * theta[sine].sin()
        return {"layer.weight": turn @ layer.weight.detach(), "layer.bias": turn @ layer.bias.detach()}

    return oracle


def cases() -> Iterator[Case]:
    for kind, groups in (("linear", (2, 4, 10, 20)), ("square", (2, 6, 12))):
        for group in groups:
            for variant in ("road_1", "road_2", "road_4"):
                config = peft.RoadConfig(variant=variant, group_size=group, target_modules=["layer"])
                name = f"RoAd {variant[-1]} of {group}"
                yield of_peft(name, config, kind, formula(variant, group), multipliers=(1.0,))
