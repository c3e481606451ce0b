"""AdaLoRA of PEFT: W + m · alpha / (init_r + 1e-5) · B @ (E ⊙ A), also with the ranks that training left."""

import json
from collections.abc import Iterator
from typing import Any

import peft
import torch
from libraries import Net
from library_case import Case, fill, make
from torch import Tensor

INIT_RANK, ALPHA = 4, 3.0


def case(name: str, kind: str, alpha: float = ALPHA, kept: list[bool] | None = None) -> Case:
    layer, input = make(kind)
    original = {name: parameter.detach().clone() for name, parameter in layer.named_parameters()}
    config = peft.AdaLoraConfig(init_r=INIT_RANK, lora_alpha=alpha, total_step=10, target_modules=["layer"])
    model = peft.get_peft_model(Net(layer), config).double().eval()
    own = model.base_model.model.layer
    for parameters in (own.lora_A, own.lora_B, own.lora_E):
        fill(parameters, torch.Generator().manual_seed(len(parameters["default"])))
    if kept:
        # What PEFT does when it loads a file whose config says which ranks were kept.
        pattern = {"layer.lora_E": kept}
        model.base_model.resize_modules_by_rank_pattern(pattern, "default")
        model.peft_config["default"].rank_pattern = pattern
        model.double()
    parameters = {key: getattr(own, key)["default"].detach().clone() for key in ("lora_A", "lora_B", "lora_E")}
    saved = peft.get_peft_model_state_dict(model, model.state_dict())
    scaling = own.scaling["default"]

    def library(multiplier: float) -> Tensor:
        own.scaling["default"] = multiplier * scaling
        with torch.no_grad():
            return model(input)

    def oracle(multiplier: float) -> dict[str, Tensor]:
        a, b, e = parameters["lora_A"], parameters["lora_B"], parameters["lora_E"]
        weight = original["weight"].clone()
        divided = (alpha if alpha > 0 else len(a)) / (INIT_RANK + 1e-5)
        for rank in range(len(a)):
            change = torch.outer(b[:, rank], e[rank, 0] * a[rank]).view_as(weight)
            weight += multiplier * divided * change
        return {"layer.weight": weight, "layer.bias": original["bias"]}

    base, _ = make(kind)
    return Case(
        id=f"peft AdaLoRA {name} {kind}",
        layer=base,
        tensors={key: tensor.contiguous() for key, tensor in saved.items()},
        library=library,
        oracle=oracle,
        input=input,
        config=json_of(model.peft_config["default"]),
    )


def json_of(config: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(config.to_dict(), default=lambda value: sorted(value)))
    return found


def cases() -> Iterator[Case]:
    for kind in ("linear", "square", "conv 1x1", "conv 3x3"):
        yield case("of every rank", kind)
        yield case("of some ranks", kind, kept=[True, False, True, True])
    yield case("without an alpha", "linear", alpha=0.0)
    yield case("of some ranks without an alpha", "linear", alpha=0.0, kept=[False, True, True, False])
