"""PEFT's trainable tokens: rows of an embedding that take the place of the base's own, alone and beside a LoRA."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import peft
import torch
from libraries import of_peft
from library_case import Case, fill
from torch import Tensor, nn

ROWS, COLUMNS = 14, 9


def oracle_of(tokens: list[int]):
    def oracle(tensors: dict[str, Tensor], layer: nn.Module, multiplier: float) -> dict[str, Tensor]:
        assert multiplier == 1.0
        (rows,) = (tensor for key, tensor in tensors.items() if key.endswith("trainable_tokens_delta"))
        weight = layer.weight.detach().clone()
        for token, row in zip(tokens, rows, strict=True):
            weight[token] = row
        return {"layer.weight": weight}

    return oracle


def embedding() -> tuple[nn.Module, Tensor]:
    layer = fill(nn.Embedding(ROWS, COLUMNS).double(), torch.Generator().manual_seed(ROWS))
    return layer, torch.arange(ROWS).reshape(2, -1)


class Net(nn.Module):
    """An embedding and the layer that the factors are for."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.wte = layer
        self.other = nn.Linear(3, 3)

    def get_input_embeddings(self) -> nn.Module:
        return self.wte

    def forward(self, input: Tensor) -> Tensor:
        return self.wte(input)


def beside_lora(name: str, tokens: list[int], said: Any) -> Case:
    """PEFT finds the embedding by any letters at the end of a name, and takes its own `base_layer` for one."""
    layer, input = embedding()
    original = copy.deepcopy(layer)
    config = peft.LoraConfig(r=2, target_modules=["other"], trainable_token_indices=said)
    model = peft.get_peft_model(Net(layer), config).double()
    fill(model.base_model.model.wte.token_adapter.trainable_tokens_delta, torch.Generator().manual_seed(3))
    saved = peft.get_peft_model_state_dict(model, model.state_dict())
    tensors = {key.replace("wte", "layer"): value.clone() for key, value in saved.items() if ".wte." in key}

    def library(multiplier: float) -> Tensor:
        with torch.no_grad():
            return model(input).detach()

    said = json.dumps(model.peft_config["default"].to_dict(), default=lambda value: sorted(value))
    return Case(
        id=f"peft {name}",
        layer=original,
        tensors=tensors,
        library=library,
        oracle=lambda multiplier: oracle_of(tokens)(tensors, original, multiplier),
        input=input,
        config=json.loads(said.replace("wte", "layer")),
        multipliers=(1.0,),
    )


def cases() -> Iterator[Case]:
    for tokens in ([5], [13, 0, 7, 2]):
        layer, input = embedding()
        config = peft.TrainableTokensConfig(token_indices=tokens, target_modules=["layer"])
        name = f"trainable tokens {tokens}"
        yield of_peft(name, config, layer, oracle_of(tokens), input=input, multipliers=(1.0,))
        yield beside_lora(f"{name} beside LoRA", tokens, tokens)
        yield beside_lora(f"{name} beside LoRA, by name", tokens, {"wte": tokens})
