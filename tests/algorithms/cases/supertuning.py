"""Super-Tuning of PEFT: values at entries that are counted through the weight, and a LoRA in its form Supra."""

from collections.abc import Iterator

import peft
from libraries import of_peft
from library_case import Case
from torch import Tensor, nn


def formula(scale: float):
    def oracle(tensors: dict[str, Tensor], layer: nn.Module, multiplier: float) -> dict[str, Tensor]:
        assert multiplier == 1.0
        own = {key.removeprefix("layer.supertuning_"): tensor for key, tensor in tensors.items()}
        weight = layer.weight.detach().clone()
        columns = weight.shape[1]
        for entry, value in zip(own["indices"].long().tolist(), own["values"], strict=True):
            weight[entry // columns, entry % columns] += value
        if scale:
            weight += scale * own["lora_B.weight"] @ own["lora_A.weight"]
        return {"layer.weight": weight}

    return oracle


def cases() -> Iterator[Case]:
    settings = {
        "": ({}, 0.0),
        ", with LoRA": ({"r": 3}, 2.0),
        ", with LoRA and alpha": ({"r": 3, "lora_alpha": 4}, 4 / 3),
    }
    for kind in ("linear", "square"):
        for top in (True, False):
            for name, (options, scale) in settings.items():
                config = peft.SupertuningConfig(
                    sparsity=0.8, select_top=top, init_weights=False, target_modules=["layer"], **options
                )
                title = f"Super-Tuning of the {'largest' if top else 'smallest'}{name}"
                yield of_peft(title, config, kind, formula(scale), multipliers=(1.0,))
