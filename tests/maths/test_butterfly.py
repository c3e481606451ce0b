"""Stages of rotations against the product of their matrices, whatever blocks the rows come in."""

import pytest
import torch

from lora_inspect.maths.entries import COLUMNS, ROWS
from lora_inspect.maths.rotation import Butterfly, alternating, cayley, half_blocks

pytestmark = pytest.mark.numeric
STAGES, COUNT, SIZE = 2, 6, 4
LENGTH = COUNT * SIZE


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def blocks() -> torch.Tensor:
    stored = noise(STAGES, COUNT, SIZE, SIZE)
    return cayley(stored - stored.mT)


def expected(stages: torch.Tensor, order, multiplier: float) -> torch.Tensor:
    """… B₁ B₀, each stage a permutation, the blocks, and the permutation back."""
    whole, one = torch.eye(LENGTH).double(), torch.eye(LENGTH).double()
    for number, stage in enumerate(stages):
        found = one[order(torch.arange(LENGTH), SIZE << number, SIZE)]
        turned = multiplier * (torch.block_diag(*stage) - one) + one
        whole = found.T @ turned @ found @ whole
    return whole


@pytest.mark.parametrize("multiplier", [1.0, 0.5, -1.0, 0.0])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("order", [alternating, half_blocks])
def test_rows_are_turned_in_groups(order, scaled, multiplier):
    weight, gain = noise(LENGTH, 5, seed=1), noise(LENGTH, 1, seed=2) if scaled else None
    change = Butterfly(blocks(), order, ROWS, gain)
    assert change.together == 2 * SIZE
    whole = expected(blocks(), order, multiplier) @ weight * (gain if scaled else 1.0)
    for first, last in [(0, LENGTH), (0, 8), (8, 24), (16, 24)]:
        rows = weight[first:last].clone()
        change.fold(rows, first, multiplier)
        torch.testing.assert_close(rows, whole[first:last])


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("order", [alternating, half_blocks])
def test_columns_are_turned_in_any_rows(order, scaled):
    weight, gain = noise(5, LENGTH, seed=1), noise(5, 1, seed=2) if scaled else None
    change = Butterfly(blocks(), order, COLUMNS, gain)
    assert change.together == 1
    whole = weight @ expected(blocks(), order, 1.0).T * (gain if scaled else 1.0)
    for first, last in [(0, 5), (0, 1), (2, 5)]:
        rows = weight[first:last].clone()
        change.fold(rows, first, 1.0)
        torch.testing.assert_close(rows, whole[first:last])
    turned = weight.T.contiguous()
    change.transposed().fold(turned, 0, 1.0)
    torch.testing.assert_close(turned, whole.T)


def test_orders_of_a_group_of_two_blocks():
    numbers = torch.arange(8)
    assert alternating(numbers, 8, 4).tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    assert half_blocks(numbers, 8, 4).tolist() == [0, 1, 4, 5, 2, 3, 6, 7]
    assert alternating(numbers, 4, 4).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert half_blocks(numbers, 4, 4).tolist() == list(range(8))
