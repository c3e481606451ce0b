"""Numbers that are not finite are found, whatever their sum is; blocks hold every row of a weight once."""

import math

import pytest
import torch

from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.maths.tensors import RowBlocks, first_non_finite, first_overflow

INF, NAN = math.inf, math.nan


@pytest.mark.parametrize(
    ("values", "first"),
    [
        ([1.0, -2.0], None),
        ([1.0, INF, 2.0], INF),
        ([1.0, -INF, INF], -INF),
        ([INF, -INF], INF),
        ([0.0, NAN, INF], NAN),
        # Their sum is infinite in their own type, and none of them is.
        ([3e38, 3e38, 3e38], None),
        ([], None),
    ],
)
def test_the_first_number_that_is_not_finite(values, first):
    found = first_non_finite(torch.tensor(values, dtype=torch.float32))
    assert found == first or (first is NAN and math.isnan(found))


def test_a_sum_beyond_float64_is_no_number_beyond_it():
    values = torch.tensor([1e308, 1e308], dtype=torch.float64)
    assert first_non_finite(values) is None
    values = torch.tensor([1e308, 1e308], dtype=torch.float64)
    assert first_overflow(values, values) is None


@pytest.mark.parametrize(
    ("values", "lost"),
    [
        ([1.0, 65504.0], None),
        ([1.0, 7e4, 8e4], 7e4),
        ([1.0, 7e4, -8e4], 7e4),
        ([-8e4, 7e4], -8e4),
        # What is not finite before is not lost by rounding.
        ([INF, 1.0], None),
        ([NAN, -7e4, 7e4], -7e4),
        ([INF, -INF], None),
    ],
)
def test_the_first_number_that_rounding_loses(values, lost):
    values = torch.tensor(values)
    assert first_overflow(values, values.half()) == (None if lost is None else pytest.approx(lost))


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
@pytest.mark.parametrize("shape", [(), (6,), (6, 5), (6, 1, 5), (1, 7)])
@pytest.mark.parametrize("elements", [1, 11, 1 << 20])
def test_blocks_are_the_rows_in_their_order(write_safetensors, dtype, shape, elements):
    """A single number is a row of one column, and a vector as many."""
    types = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    weight = torch.arange(math.prod(shape)).reshape(shape).to(types[dtype])
    data = weight.reshape(-1).view(torch.uint8).numpy().tobytes()
    path = write_safetensors({"weight": (dtype, shape, data)})
    info = open_checkpoint(str(path)).tensors["weight"]
    rows = shape[0] if shape else 1
    for together in (1, 0, *([2, 3] if rows == 6 else [])):
        blocks = [(first, block.clone()) for first, block in RowBlocks(elements).read(info, together)]
        sizes = [len(block) for _, block in blocks]
        assert [first for first, _ in blocks] == [sum(sizes[:number]) for number in range(len(sizes))]
        assert all(size % (together or rows) == 0 for size in sizes)
        assert max(sizes) <= max(together or rows, elements // max(1, math.prod(shape[1:])))
        expected = weight.reshape(rows, -1).to(torch.float64 if dtype == "F64" else torch.float32)
        assert torch.equal(torch.cat([block for _, block in blocks]), expected)


def test_rows_that_are_no_groups_are_refused(write_safetensors):
    info = open_checkpoint(str(write_safetensors({"weight": ("F32", (6, 5), 1.0)}))).tensors["weight"]
    with pytest.raises(ValueError, match="6 rows, which are not groups of 4"):
        next(RowBlocks(1).read(info, 4))
