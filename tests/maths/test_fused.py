"""Slices as one pair of factors: each row of the product is that of its own slice."""

import pytest
import torch

from lora_inspect.maths import fused as fusing

SIZES = (3, 1, 5)


def pairs(ranks=(2, 2, 2)):
    torch.manual_seed(0)
    return [(torch.randn(size, rank), torch.randn(rank, 6)) for size, rank in zip(SIZES, ranks, strict=True)]


@pytest.mark.parametrize("ranks", [(2, 2, 2), (1, 3, 2)])
def test_a_slice_reaches_the_rows_of_another(ranks):
    parts = pairs(ranks)
    up, down = fusing.fuse(parts)
    assert up.shape == (sum(SIZES), sum(ranks))
    assert torch.allclose(up @ down, torch.cat([up @ down for up, down in parts]), atol=1e-6)


def test_slices_of_one_down_repeat_it():
    ups, (down, other) = [up for up, _ in pairs()], [down for _, down in pairs()[:2]]
    columns = [0, 2, 0]
    shape = fusing.shape_of(ups, columns)
    up = fusing.place(torch.zeros(shape), ups, columns)
    assert shape == (sum(SIZES), 4)
    wanted = torch.cat([ups[0] @ down, ups[1] @ other, ups[2] @ down])
    assert torch.allclose(up @ torch.cat([down, other]), wanted, atol=1e-6)


def test_slices_do_not_come_back():
    parts = pairs()
    again = fusing.part(*fusing.fuse(parts), SIZES)
    for (up, down), (found_up, found_down) in zip(parts, again, strict=True):
        assert torch.equal(up, found_up)
        assert torch.equal(down, found_down)


def test_a_whole_layer_is_taken_for_slices():
    fused, whole = fusing.fuse(pairs())[0], torch.randn(9, 6)
    assert fusing.has_blocks(fused)
    assert fusing.has_blocks(fused.half())
    assert not fusing.has_blocks(whole)
    assert not fusing.has_blocks(torch.zeros(9, 6))
    whole[0, 1:] = 0
    assert not fusing.has_blocks(whole)
