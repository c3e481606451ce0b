"""`copied` of diffusers_families: a model that may be changed while the one it is of stays."""

import copy

import pytest
import torch
from diffusers_families import copied, model
from torch import nn


class Tied(nn.Module):
    """A weight and a layer under two names, a buffer, no bias, and a hook."""

    def __init__(self):
        super().__init__()
        self.first = self.same = nn.Linear(3, 3, bias=False)
        self.tied = nn.Linear(3, 3)
        self.tied.weight = self.first.weight
        self.register_buffer("steps", torch.arange(3))
        self.register_buffer("none", None)
        self.first.register_forward_hook(lambda module, inputs, output: output + 1)

    def forward(self, x):
        return self.tied(self.same(x)) + self.steps


@pytest.mark.parametrize("made", [Tied, lambda: model("wan")], ids=["tied", "wan"])
def test_it_has_all_that_a_deep_copy_has(made):
    network = made()
    found, due = copied(network), copy.deepcopy(network)
    assert [(name, type(module)) for name, module in found.named_modules()] == [
        (name, type(module)) for name, module in due.named_modules()
    ]
    assert found.state_dict().keys() == due.state_dict().keys()
    assert all(torch.equal(found.state_dict()[name], value) for name, value in due.state_dict().items())
    own = {one.data_ptr() for one in network.state_dict().values()}
    assert not own & {one.data_ptr() for one in found.state_dict().values()}


def test_what_is_tied_stays_so_and_hooks_are_kept():
    network = Tied()
    found = copied(network)
    assert found.first is found.same
    assert found.first.weight is found.tied.weight
    assert torch.equal(found(torch.ones(3)), network(torch.ones(3)))


def test_the_model_stays_whatever_is_done_to_the_copy():
    network = Tied()
    before = copy.deepcopy(network.state_dict())
    found = copied(network)
    found.first.weight.data.zero_()
    found.first = nn.Identity()
    found.steps += 1
    found.tied.register_forward_hook(lambda module, inputs, output: 0 * output)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert isinstance(network.first, nn.Linear)
    assert network(torch.ones(3)).abs().sum() > 0
