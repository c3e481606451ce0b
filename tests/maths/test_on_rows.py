"""Changes on some rows of another weight, in its own order and in others, in blocks of any size."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_inspect.architectures.rows import INPUTS, Interleaved, Runs, Stacked, Swapped
from lora_inspect.maths import dora
from lora_inspect.maths.change import LowRank, OnBlock, OnRows, folded, settled
from lora_inspect.maths.dora_fold import DecomposedColumns, DecomposedRows, MagnitudeValues

pytestmark = pytest.mark.numeric

INPUTS_OF_ALL = 4
# arrangement, rows of the whole
ARRANGED = {
    "equal shares": (Stacked((1, 1, 1)), 12),
    "other shares": (Stacked((1, 1, 1, 4)), 14),
    "fewer heads of key and value": (Stacked((INPUTS, 1, 1)), 8),
    "rows that take turns": (Interleaved(2), 10),
    "heads that take turns": (Interleaved(3, 2), 12),
    "halves": (Swapped(), 10),
}


def numbers(generator, *shape):
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def in_blocks(change, weight, multiplier, size):
    """The weight with the change folded in, in blocks of `size` rows as far as the change allows it."""

    def read(together):
        step = max(together, size // together * together) if together else len(weight)
        for first in range(0, len(weight), step):
            yield first, weight[first : first + step].clone()

    return torch.cat([block for _, block in folded(settled([(change, multiplier)], read), read)])


def both_ways(change, weight, multiplier, size):
    """The weight with the change folded in, and folded into the weight as it is stored where it is stored turned."""
    yield in_blocks(change, weight, multiplier, size)
    yield in_blocks(change.transposed(), weight.T.contiguous(), multiplier, size).T


def taken(runs):
    """(rows of the one weight, the same rows of the other one)."""
    pairs = [(start + i, source + i) for start, stop, source in runs.each() for i in range(stop - start)]
    return [list(side) for side in zip(*pairs, strict=True)]


def decomposed(weight, magnitude, axis):
    norm = weight.norm(dim=axis, keepdim=True)
    return weight * magnitude.reshape(norm.shape) / norm


@settings(deadline=None)
@given(
    case=st.sampled_from(sorted(ARRANGED)),
    size=st.integers(1, 15),
    multiplier=st.sampled_from([1.0, 0.5, -1.0]),
    kind=st.sampled_from(["lora", "rows", "columns"]),
    of_whole=st.booleans(),
)
def test_a_part_changes_its_rows_and_a_whole_all_of_its_parts(case, size, multiplier, kind, of_whole):
    arrangement, rows = ARRANGED[case]
    generator = torch.Generator().manual_seed(rows)
    whole = numbers(generator, rows, INPUTS_OF_ALL)
    arranged = arrangement.runs(rows, INPUTS_OF_ALL)
    # A norm over columns is one of all rows, which the parts of a whole do not have.
    kind = "rows" if of_whole and kind == "columns" and len(arranged) > 1 else kind

    def change_of(out):
        up, down = numbers(generator, out, 2), numbers(generator, 2, INPUTS_OF_ALL)
        delta, change = 0.75 * multiplier * up @ down, LowRank(up, down, 0.75)
        if kind == "lora":
            return change, lambda weight: weight + delta
        magnitude = numbers(generator, out if kind == "rows" else INPUTS_OF_ALL).abs()
        around, axis = (DecomposedRows, 1) if kind == "rows" else (DecomposedColumns, 0)
        wrapped = around(change, MagnitudeValues(magnitude, dora.INSIDE))
        return wrapped, lambda weight: decomposed(weight + delta, magnitude, axis)

    if of_whole:
        change, formula = change_of(rows)
        meant = formula(whole)
        for runs in arranged:
            own, others = taken(runs.inverted)
            part = torch.empty(len(own), INPUTS_OF_ALL, dtype=torch.float64)
            part[own] = whole[others]
            on_part = OnRows(change, tuple(runs.inverted.each()))
            for found in both_ways(on_part, part, multiplier, size):
                torch.testing.assert_close(found[own], meant[others], rtol=1e-12, atol=1e-12)
        return
    for runs in arranged:
        change, formula = change_of(runs.rows)
        own, others = taken(runs)
        part = torch.empty(runs.rows, INPUTS_OF_ALL, dtype=torch.float64)
        part[others] = whole[own]
        meant = whole.clone()
        meant[own] = formula(part)[others]
        untouched = [row for row in range(rows) if row not in own]
        for found in both_ways(OnRows(change, tuple(runs.each())), whole, multiplier, size):
            torch.testing.assert_close(found, meant, rtol=1e-12, atol=1e-12)
            assert torch.equal(found[untouched], whole[untouched])


@pytest.mark.parametrize(
    ("runs", "own", "together"),
    [
        (Runs(0, 4), 2, 2),
        (Runs(4, 4, 2), 2, 2),
        (Runs(3, 4), 2, 0),
        (Runs(0, 4, 1), 2, 0),
        (Runs(0, 3), 2, 0),
        (Runs(3, 5, 1), 1, 1),
        (Runs(0, 4), 0, 0),
        (Runs(0, 2, 0, 3, 4, 2), 2, 2),
        (Runs(0, 2, 0, 3, 3, 2), 2, 0),
    ],
)
def test_rows_that_belong_together_stay_so(runs, own, together):
    change = LowRank(None, None, 1.0, together=own)
    assert OnRows(change, tuple(runs.each())).together == together


def test_a_product_of_some_rows_takes_few_rows_at_a_time_of_a_weight_that_is_stored_turned():
    change = LowRank(torch.ones(3, 1), torch.ones(1, 4), 1.0)
    assert OnRows(change, ((0, 1, 0), (2, 3, 1), (4, 5, 2))).transposed().together == 1


@pytest.mark.parametrize(("own", "first", "together"), [(1, 3, 1), (2, 4, 2), (2, 3, 6), (4, 4, 6), (0, 3, 6)])
def test_of_a_block_of_rows_as_few_come_at_a_time_as_the_change_takes(own, first, together):
    assert OnBlock(LowRank(None, None, 1.0, together=own), first, 6).together == together


@pytest.mark.parametrize("size", [1, 2, 5, 12])
def test_a_change_of_a_block_of_rows_is_in_these_alone(size):
    generator = torch.Generator().manual_seed(2)
    weight, up, down = numbers(generator, 12, 4), numbers(generator, 5, 2), numbers(generator, 2, 4)
    meant = weight.clone()
    meant[3:8] += 0.5 * up @ down
    found = in_blocks(OnBlock(LowRank(up, down, 1.0), 3, 5), weight, 0.5, size)
    torch.testing.assert_close(found, meant, rtol=1e-12, atol=1e-12)
    assert torch.equal(found[:3], weight[:3])
    assert torch.equal(found[8:], weight[8:])
