"""Adapters as the real libraries make them: PEFT's and LyCORIS's own modules, with random numbers in every factor."""

import copy
import json
from collections.abc import Callable
from typing import Any

import peft
import torch
from library_case import Case, fill, make
from torch import Tensor, nn


class Net(nn.Module):
    """A model of one layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, input: Tensor) -> Tensor:
        return self.layer(input)


def of_lycoris(
    name: str,
    module_class: Any,
    kind: str,
    oracle: Callable[[dict[str, Tensor], nn.Module, float], dict[str, Tensor]],
    dtype: torch.dtype = torch.float64,
    forward: Callable[[nn.Module, dict[str, Tensor], float, Tensor], Tensor] | None = None,
    prefix: str = "lycoris_layer.",
    seed: int = 1,
    adjust: Callable[[Any], None] | None = None,
    fields: dict[str, Any] | None = None,
    **options: Any,
) -> Case:
    """A case of a LyCORIS module; `oracle` gets its tensors in float64 by their keys, the layer and the multiplier."""
    layer, input = make(kind, dtype)
    original = copy.deepcopy(layer)
    module = module_class("layer", layer, multiplier=1.0, **options).to(dtype)
    fill(module, torch.Generator().manual_seed(seed))
    if adjust:
        adjust(module)
    # The base's weight is no parameter of the module, but may be one of its children.
    layer.load_state_dict(original.state_dict())
    module.eval()
    # Before it is applied, a module of full differences does not know them.
    module.apply_to()
    tensors = {key: value.detach().clone() for key, value in module.state_dict().items()}

    def library(multiplier: float) -> Tensor:
        module.multiplier = multiplier
        with torch.no_grad():
            return layer(input)

    doubles = {key: value.double() for key, value in tensors.items()}
    return Case(
        id=f"lycoris {name} {kind}",
        layer=original,
        tensors={prefix + key: value.contiguous() for key, value in tensors.items()},
        library=library,
        oracle=lambda multiplier: oracle(doubles, double(original), multiplier),
        input=input,
        forward=forward and (lambda multiplier: forward(copy.deepcopy(original), tensors, multiplier, input)),
        dtype=dtype,
        bound=1e-9 if dtype == torch.float64 else 1e-4,
        **(fields or {}),
    )


def of_peft(
    name: str,
    config: Any,
    kind: str | nn.Module,
    oracle: Callable[[dict[str, Tensor], nn.Module, float], dict[str, Tensor]],
    input: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
    seed: int = 2,
    adjust: Callable[[Any], None] | None = None,
    **fields: Any,
) -> Case:
    """A case of a PEFT config whose one target is the layer; `oracle` gets the tensors without `base_model.model.`."""
    if isinstance(kind, str):
        layer, input = make(kind, dtype)
        title = kind
    else:
        layer, title = kind, type(kind).__name__
    assert input is not None
    original = copy.deepcopy(layer)
    model = peft.get_peft_model(Net(layer), config)
    wrapper = model.base_model.model.layer
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    model.to(dtype)
    if adjust:
        adjust(wrapper)
    # PEFT takes the bias of an up layer for a broken factor, and warns, unless it is given the tensors.
    saved = peft.get_peft_model_state_dict(model, model.state_dict())
    tensors = {key: value.detach().clone() for key, value in saved.items()}
    model.eval()

    def library(multiplier: float) -> Tensor:
        if hasattr(wrapper, "scaling") and hasattr(wrapper, "set_scale"):  # some methods of PEFT know no strength
            wrapper.set_scale("default", multiplier)
        with torch.no_grad():
            return model(input)

    doubles = {key.removeprefix("base_model.model."): value.double() for key, value in tensors.items()}
    said = json.loads(json.dumps(model.peft_config["default"].to_dict(), default=lambda value: sorted(value)))
    return Case(
        id=f"peft {name} {title}",
        layer=original,
        tensors={key: value.contiguous() for key, value in tensors.items()},
        library=library,
        oracle=lambda multiplier: oracle(doubles, double(original), multiplier),
        input=input,
        config=said,
        dtype=dtype,
        bound=1e-9 if dtype == torch.float64 else 1e-4,
        **fields,
    )


def double(layer: nn.Module) -> nn.Module:
    """The layer in float64."""
    return copy.deepcopy(layer).double()
