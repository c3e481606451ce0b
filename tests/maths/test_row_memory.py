"""What blocks of rows keep of their memory, and which changes hold a whole weight."""

import pytest
import torch

from lora_inspect.algorithms.kasa import truncated
from lora_inspect.files.safetensors.header import read_header
from lora_inspect.maths.change import Both, LowRank, OnBlock, OnRows, Replaced, Transposed
from lora_inspect.maths.dora_fold import DecomposedColumns, DecomposedRows, MagnitudeValues
from lora_inspect.maths.residual import Residual
from lora_inspect.maths.tensors import RowBlocks, cut


@pytest.fixture
def weight(write_safetensors):
    path = write_safetensors({"a": ("F32", (64, 8), 1.0)})
    return read_header(str(path))[0]["a"]


def test_a_block_of_usual_size_is_read_into_the_same_memory(weight):
    blocks = RowBlocks(32)
    first = {rows.data_ptr() for _, rows in blocks.read(weight)}
    again = {rows.data_ptr() for _, rows in blocks.read(weight)}
    assert first == again
    assert len(first) == 1


def test_the_memory_of_much_larger_blocks_is_not_kept(weight):
    blocks = RowBlocks(32)
    ((_, whole),) = blocks.read(weight, together=0)
    blocks.rounded(whole, "BF16")
    assert whole.shape == (64, 8)
    assert sum(kept.numel() for kept in blocks._kept.values()) <= 16 * 32
    assert {rows.shape for _, rows in blocks.read(weight)} == {(4, 8)}


@pytest.mark.parametrize("together", [1, 8, 0])
def test_rounded_rows_do_not_lie_where_the_rows_do(weight, together):
    blocks = RowBlocks(32)
    for _, rows in blocks.read(weight, together):
        rounded = blocks.rounded(rows, "F32")
        rounded.zero_()
        assert (rows == 1).all()


def test_blocks_cover_every_row_once(weight):
    blocks = cut(weight, 40, 4)
    spans = [blocks.span(number) for number in range(blocks.number)]
    assert [row for start, stop in spans for row in range(start, stop)] == list(range(64))


LORA = LowRank(torch.ones(4, 1), torch.ones(1, 3), 1.0)
SVD = truncated()(torch.ones(4, 1), torch.ones(1, 3), 1.0)
NORM = MagnitudeValues(torch.ones(4), "inside")


@pytest.mark.parametrize(
    ("change", "holds"),
    [
        (LORA, False),
        (SVD, True),
        (Residual(lambda weight: (weight, weight), 1.0), True),
        (Transposed(LORA), True),
        (Both(LORA, LORA), False),
        (Replaced(torch.ones(4, 3)), False),
        (OnRows(LORA, ((0, 4, 0),)), False),
        (OnRows(SVD, ((0, 4, 0),)), True),
        (OnBlock(SVD, 0, 4), True),
        (DecomposedRows(LORA, NORM), False),
        (DecomposedRows(SVD, NORM), True),
        (DecomposedColumns(LORA, NORM), False),
        (DecomposedColumns(SVD, NORM), True),
    ],
)
def test_which_changes_hold_the_whole_weight(change, holds):
    assert change.holds_all is holds
