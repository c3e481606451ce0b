"""Tensors that PEFT saves whole: the biases of adapted layers, and the layers of `modules_to_save`."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import peft
import torch
from library_case import Case, fill, make
from torch import Tensor, nn

RANK, ALPHA = 4, 3.0


class Net(nn.Module):
    """The layer, and one beside it that the factors are for."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.other = nn.Linear(3, 3)

    def forward(self, input: Tensor) -> Tensor:
        return self.layer(input)


def of_config(name: str, kind: str, target: str, scale: float | None, **options: Any) -> Case:
    layer, input = make(kind)
    original = copy.deepcopy(layer)
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=[target], **options)
    model = peft.get_peft_model(Net(layer), config)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.requires_grad:
                fill(_Holder(parameter), torch.Generator().manual_seed(len(key)))
    model.double().eval()
    saved = {key: value.clone() for key, value in peft.get_peft_model_state_dict(model, model.state_dict()).items()}
    # What has no place in a base of one layer.
    tensors = {key: value.contiguous() for key, value in saved.items() if ".other." not in key}
    said = json.loads(json.dumps(model.peft_config["default"].to_dict(), default=lambda value: sorted(value)))

    def library(multiplier: float) -> Tensor:
        with torch.no_grad():
            return model(input)

    def oracle(multiplier: float) -> dict[str, Tensor]:
        path = "base_model.model.layer."
        expected = {"layer.weight": original.weight.detach(), "layer.bias": original.bias.detach()}
        if scale is None:
            return expected | {
                f"layer.{key}": tensors[path + key] for key in ("weight", "bias") if path + key in tensors
            }
        up, down = tensors[f"{path}lora_B.weight"], tensors[f"{path}lora_A.weight"]
        expected["layer.weight"] = expected["layer.weight"] + scale * (up @ down)
        added = scale * tensors[f"{path}lora_B.bias"] if f"{path}lora_B.bias" in tensors else 0.0
        expected["layer.bias"] = tensors[f"{path}base_layer.bias"] + added
        return expected

    return Case(
        id=f"peft {name} {kind}",
        layer=original,
        tensors=tensors,
        library=library,
        oracle=oracle,
        input=input,
        config=said,
        multipliers=(1.0,),
    )


class _Holder(nn.Module):
    def __init__(self, parameter: nn.Parameter) -> None:
        super().__init__()
        self.parameter = parameter


def cases() -> Iterator[Case]:
    yield of_config("the bias of an adapted layer", "linear", "layer", ALPHA / RANK, bias="lora_only")
    yield of_config("the bias under a bias", "square", "layer", ALPHA / RANK, bias="lora_only", lora_bias=True)
    yield of_config("every bias", "linear", "layer", ALPHA / RANK, bias="all")
    yield of_config("every bias beside a target", "conv 3x3", "other", None, bias="all")
    for kind in ("linear", "square", "conv1d", "conv 3x3", "layer norm", "group norm"):
        yield of_config("a module", kind, "other", None, modules_to_save=["layer"])
    yield of_config("a module and every bias", "linear", "other", None, modules_to_save=["layer"], bias="all")
