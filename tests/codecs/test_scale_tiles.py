"""The order of the scales of blocks, against the offsets that cuBLAS publishes, one scale after the other."""

import pytest
import torch

from lora_inspect.codecs.four_bits import padded, scales_of_rows

SHAPES = [(1, 1), (16, 1), (128, 4), (129, 5), (300, 9), (512, 3)]


def offset(row, column, columns):
    """Where a scale stands: tiles of 512 bytes, four lanes of 32 rows each, four columns."""
    tiles_beside = -(-columns // 4)
    tile = row // 128 * tiles_beside + column // 4
    return tile * 512 + row % 32 * 16 + row % 128 // 32 * 4 + column % 4


def tiles_of(scales):
    """All scales as they are stored, in the padded shape."""
    rows, columns = scales.shape
    stored = torch.full((padded(rows, columns)[0] * padded(rows, columns)[1],), 255, dtype=torch.uint8)
    for row in range(rows):
        for column in range(columns):
            stored[offset(row, column, columns)] = scales[row, column]
    return stored.view(padded(rows, columns))


def drawn(rows, columns):
    return torch.randint(0, 255, (rows, columns), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_every_scale_is_where_it_is_published_to_be(rows, columns):
    scales = drawn(rows, columns)
    assert torch.equal(scales_of_rows(tiles_of(scales), 0, rows, columns), scales)


@pytest.mark.parametrize(("first", "stop"), [(0, 1), (127, 129), (128, 256), (31, 300), (299, 300), (256, 300)])
def test_any_rows_are_found_by_themselves(first, stop):
    scales = drawn(300, 9)
    assert torch.equal(scales_of_rows(tiles_of(scales), first, stop, 9), scales[first:stop])


def test_whole_tiles_have_no_more_room_than_their_scales():
    assert padded(128, 4) == (128, 4)
    assert padded(129, 5) == (256, 8)
