"""Entries that a seed draws are those of PEFT, whatever type of number they are drawn in."""

import pytest
import torch

from lora_inspect.algorithms.drawn_entries import first_drawn


@pytest.mark.parametrize("seed", [0, 777, -1, 2**63 + 1, 2**64 - 1, -(2**63)])
@pytest.mark.parametrize(("count", "entries"), [(1, 1), (3, 7), (1000, 300_007)])
def test_it_is_the_order_of_torch(count, entries, seed):
    order = torch.randperm(entries, generator=torch.Generator().manual_seed(seed))[:count]
    assert torch.equal(first_drawn(count, entries, seed), order)
