"""Rotations against PEFT's own modules, and against what makes a matrix a rotation."""

import pytest
import torch
from peft.tuners.oft.layer import OFTRotationModule

from lora_inspect.maths.rotation import RotatedColumns, RotatedRows, cayley, from_upper, limited, neumann, turn

pytestmark = pytest.mark.numeric


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def of_peft(entries: torch.Tensor, size: int) -> OFTRotationModule:
    count, numbers = entries.shape
    return OFTRotationModule(count, numbers, size, count * size)


@pytest.mark.parametrize(("count", "size"), [(1, 2), (3, 4), (2, 5)])
def test_the_numbers_stand_above_the_diagonal_row_by_row(count, size):
    entries = noise(count, size * (size - 1) // 2)
    assert torch.equal(from_upper(entries, size), of_peft(entries, size)._pytorch_skew_symmetric(entries, size))


@pytest.mark.parametrize("terms", range(1, 10))
def test_a_series_has_the_terms_that_peft_gives_it(terms):
    entries = 0.3 * noise(3, 6)
    expected = of_peft(entries, 4)._cayley_batch(entries, 4, True, terms)
    torch.testing.assert_close(neumann(from_upper(entries, 4), terms), expected)


def test_a_long_series_is_cayleys_transform():
    skew = 0.1 * from_upper(noise(3, 6), 4)
    torch.testing.assert_close(neumann(skew, 60), cayley(skew))


def test_cayleys_transform_is_a_rotation_and_peft_has_the_opposite_one():
    entries = noise(3, 6)
    found = cayley(from_upper(entries, 4))
    torch.testing.assert_close(found @ found.mT, torch.eye(4).double().expand(3, 4, 4))
    torch.testing.assert_close(torch.linalg.det(found), torch.ones(3).double())
    # PEFT's identity is float32, which it cannot solve together with numbers of float64.
    theirs = of_peft(entries, 4)._cayley_batch(entries.float(), 4, False)
    torch.testing.assert_close(found.mT.float(), theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("most", [0.5, 3.0, 100.0])
def test_a_limit_shrinks_what_is_beyond_it_and_nothing_else(most):
    skew = from_upper(torch.stack([noise(6), 0.01 * noise(6, seed=1)]), 4)
    found = limited(skew, most)
    for one, before in zip(found, skew, strict=True):
        norm = min(float(before.norm()), most)
        assert float(one.norm()) == pytest.approx(norm, rel=1e-12)
        torch.testing.assert_close(one / norm, before / before.norm())


@pytest.mark.parametrize("multiplier", [1.0, 0.5, -1.0, 0.0])
@pytest.mark.parametrize("scaled", [False, True])
def test_rows_are_turned_by_the_block_matrix_whatever_blocks_they_come_in(multiplier, scaled):
    blocks, weight = cayley(from_upper(noise(3, 6), 4)), noise(12, 5, seed=1)
    gain = noise(12, 1, seed=2) if scaled else None
    one = torch.eye(12).double()
    turned = multiplier * (torch.block_diag(*blocks) - one) + one
    expected = turned.T @ weight * (gain if scaled else 1.0)
    change = RotatedRows(blocks, gain)
    assert change.together == 4
    for first, last in [(0, 12), (0, 4), (4, 12), (8, 12)]:
        rows = weight[first:last].clone()
        change.fold(rows, first, multiplier)
        torch.testing.assert_close(rows, expected[first:last])


@pytest.mark.parametrize("multiplier", [1.0, 0.5, -1.0, 0.0])
@pytest.mark.parametrize("count", [1, 3])
def test_columns_are_turned_by_the_block_matrix_of_as_many_blocks(multiplier, count):
    """One block serves all."""
    blocks, weight = cayley(from_upper(noise(count, 6), 4)), noise(5, 12, seed=1)
    one = torch.eye(12).double()
    turned = multiplier * (torch.block_diag(*blocks.expand(3, 4, 4)) - one) + one
    rows = weight[1:4].clone()
    RotatedColumns(blocks).fold(rows, 1, multiplier)
    torch.testing.assert_close(rows, (weight @ turned.T)[1:4])
    turned_round = weight.T.clone()
    RotatedColumns(blocks).transposed().fold(turned_round, 0, multiplier)
    torch.testing.assert_close(turned_round, (weight @ turned.T).T)


def test_a_small_turn_keeps_its_digits():
    skew = 1e-12 * from_upper(noise(3, 6), 4)
    torch.testing.assert_close(turn(skew), 2 * skew + 2 * skew @ skew, rtol=1e-12, atol=1e-26)
    assert not turn(0 * skew).any()
