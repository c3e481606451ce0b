"""Ten steps of LoHa and LoKr against the same steps of PEFT and of lycoris-lora, from the same factors."""

import importlib

import peft
import pytest
import torch
from torch import nn

from networks.loha import LoHaModule
from networks.lokr import LoKrModule

pytestmark = pytest.mark.numeric

STEPS, RANK, ALPHA, WIDTH = 10, 3, 1.5, 48
# Each step adds up products of `WIDTH` numbers, of which float32 rounds each sum at most so far.
TOLERANCE = STEPS * WIDTH * torch.finfo(torch.float32).eps
KINDS = {"loha": LoHaModule, "lokr": LoKrModule}


def model():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(WIDTH, 64), nn.Tanh(), nn.Linear(64, WIDTH, bias=False)).requires_grad_(False)


def layers(adapted):
    return [layer for layer in adapted.modules() if type(layer) is nn.Linear]


def with_ours(kind):
    adapted = model()
    modules = [KINDS[kind]("layer", layer, 1.0, RANK, ALPHA) for layer in layers(adapted)]
    for module in modules:
        module.apply_to()
    return adapted, [module.factors for module in modules]


def with_peft(kind):
    # PEFT has no alpha of 1.5; its r and alpha make the same scale.
    config = {"loha": peft.LoHaConfig, "lokr": peft.LoKrConfig}[kind]
    adapted = peft.get_peft_model(model(), config(r=RANK, alpha=ALPHA, target_modules=["0", "2"]))
    prefix = {"loha": "hada_", "lokr": "lokr_"}[kind]
    found = []
    for name in ("0", "2"):
        layer = adapted.base_model.model[int(name)]
        named = {key: getattr(layer, key) for key in layer.adapter_layer_names}
        found.append({key.removeprefix(prefix): value["default"] for key, value in named.items() if len(value)})
    return adapted, found


def with_lycoris(kind):
    adapted = model()
    name = {"loha": "LohaModule", "lokr": "LokrModule"}[kind]
    chosen = getattr(importlib.import_module(f"lycoris.modules.{kind}"), name)
    found = []
    for layer in layers(adapted):
        module = chosen("layer", layer, 1.0, RANK, ALPHA)
        module.apply_to()
        found.append({key.partition("_")[2]: value for key, value in module.named_parameters()})
    return adapted, found


def trained(adapted, factors, starts):
    """The factors after ten steps from `starts`, and the losses."""
    for own, start in zip(factors, starts, strict=True):
        assert {role: tensor.shape for role, tensor in own.items()} == {role: t.shape for role, t in start.items()}
        for role, tensor in own.items():
            tensor.data.copy_(start[role])
    optimizer = torch.optim.SGD([tensor for own in factors for tensor in own.values()], lr=1.0, momentum=0.9)
    torch.manual_seed(5)
    batches, losses = torch.randn(STEPS, 2, 7, WIDTH), []
    for batch in batches:
        loss = (adapted(batch) - batch.flip(-1)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, [{role: tensor.detach().clone() for role, tensor in own.items()} for own in factors]


@pytest.mark.parametrize("other", [with_peft, with_lycoris], ids=["PEFT", "lycoris-lora"])
@pytest.mark.parametrize("kind", KINDS)
def test_ten_steps_are_those_of_the_other_program(kind, other):
    ours = with_ours(kind)
    torch.manual_seed(11)
    starts = [{role: 0.3 * torch.randn(tensor.shape) for role, tensor in own.items()} for own in ours[1]]
    losses, found = trained(*ours, starts)
    wanted_losses, wanted = trained(*other(kind), starts)
    assert torch.allclose(torch.tensor(losses), torch.tensor(wanted_losses), rtol=TOLERANCE)
    for own, theirs, start in zip(found, wanted, starts, strict=True):
        for role, tensor in own.items():
            assert (tensor - theirs[role]).abs().max() <= TOLERANCE * theirs[role].abs().max(), role
            assert (tensor - start[role]).abs().max() > 100 * TOLERANCE * start[role].abs().max(), role
