"""BD-LoRA of PEFT: LoRA of which one factor is block-diagonal."""

from collections.abc import Iterator

import peft
import torch
from libraries import of_peft
from library_case import Case
from peft.tuners.lora.config import BdLoraConfig
from torch import Tensor, nn

SIDES = {"A": "target_modules_bd_a", "B": "target_modules_bd_b"}


def of(side: str, count: int, scale: float):
    def oracle(tensors: dict[str, Tensor], layer: nn.Module, multiplier: float) -> dict[str, Tensor]:
        weight = layer.weight.detach()
        factors = {name: tensors[f"layer.lora_{name}.weight"] for name in SIDES}
        if side in SIDES:
            rows, columns = factors[side].shape
            whole = torch.zeros(rows, columns * count, dtype=torch.float64)
            for row in range(rows):
                block = row * count // rows
                whole[row, block * columns : (block + 1) * columns] = factors[side][row]
            factors[side] = whole
        changed = {"layer.weight": weight + multiplier * scale * factors["B"] @ factors["A"]}
        if (bias := tensors.get("layer.lora_B.bias")) is not None:
            changed["layer.bias"] = layer.bias.detach() + multiplier * scale * bias
        return changed

    return oracle


def cases() -> Iterator[Case]:
    for kind in ("linear", "square"):
        for side, field in SIDES.items():
            for count, r in ((2, 4), (4, 4), (4, 8)):
                blocks = BdLoraConfig(nblocks=count, **{field: ["lay"]})
                config = peft.LoraConfig(r=r, lora_alpha=3, target_modules=["layer"], use_bdlora=blocks)
                yield of_peft(f"BD-LoRA, {count} blocks of {side} of r {r},", config, kind, of(side, count, 3 / r))
    blocks = BdLoraConfig(nblocks=2, target_modules_bd_b=["layer"])
    config = peft.LoraConfig(r=4, lora_alpha=3, target_modules=["layer"], use_bdlora=blocks, use_rslora=True)
    yield of_peft("BD-LoRA, RS-LoRA,", config, "linear", of("B", 2, 3 / 2))
    # PEFT leaves the bias of a B that has blocks out.
    blocks = BdLoraConfig(nblocks=2, target_modules_bd_a=["layer"])
    config = peft.LoraConfig(r=4, lora_alpha=3, target_modules=["layer"], use_bdlora=blocks, lora_bias=True)
    yield of_peft("BD-LoRA with a bias,", config, "linear", of("A", 2, 3 / 4))
    # Modules without blocks, one block, and pieces of names of others.
    for count, field, pieces in ((2, SIDES["A"], ["other"]), (1, SIDES["B"], ["layer"])):
        blocks = BdLoraConfig(nblocks=count, match_strict=False, **{field: pieces})
        config = peft.LoraConfig(r=4, lora_alpha=3, target_modules=["layer"], use_bdlora=blocks)
        yield of_peft(f"BD-LoRA without blocks, {pieces[0]},", config, "linear", of("", 1, 3 / 4))
