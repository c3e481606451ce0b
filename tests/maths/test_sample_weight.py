"""The made-up weight: the same one in whatever blocks it is read."""

import pytest
import torch

from lora_inspect.maths.tensors import SampleWeight

pytestmark = pytest.mark.numeric


def whole(weight, together):
    blocks = list(weight.read(together))
    assert [first for first, _ in blocks] == [sum(len(rows) for _, rows in blocks[:at]) for at in range(len(blocks))]
    return torch.cat([rows for _, rows in blocks])


@pytest.mark.parametrize("is_zero", [False, True])
def test_it_is_the_same_in_any_blocks(is_zero):
    weight = SampleWeight(60, 7, is_zero, elements=40)
    values = whole(weight, 1)
    assert values.shape == (60, 7)
    for together in (2, 3, 10, 60, 0):
        assert torch.equal(whole(weight, together), values)
    assert bool(values.any()) != is_zero


def test_blocks_are_multiples_of_the_rows_that_belong_together():
    assert {len(rows) % 12 for _, rows in SampleWeight(60, 7, False, elements=40).read(12)} == {0}


def test_a_block_may_be_written_to():
    weight = SampleWeight(4, 3, False)
    for _, rows in weight.read(1):
        rows.zero_()
    assert whole(weight, 1).any()


def test_no_row_is_another_one():
    values = whole(SampleWeight(500, 16, False), 1)
    assert len({tuple(row) for row in values.tolist()}) == 500
    assert torch.linalg.matrix_rank(values) == 16
