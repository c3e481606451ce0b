"""The share of a change in what was written, against a dense computation in float64 by torch's own solver."""

from itertools import pairwise

import pytest
import torch
from adapters import drawn

from lora_inspect.maths.share import ALIKE, NO_CHANGE, ROUNDED_AWAY, Estimate, RowObserver, both, estimate_of
from lora_inspect.maths.tensors import STORED_DTYPES
from lora_inspect.merging.retention import looked_rows

pytestmark = pytest.mark.numeric
GRIDS = ["F16", "BF16", "F8_E4M3", "F8_E5M2"]


def rounded(values, dtype):
    return values.to(STORED_DTYPES[dtype]).to(values.dtype)


def looked(base, changes, written, block=7, spans=None):
    """The sums over a weight whose rows come in blocks, as an engine hands them over."""
    sums = None
    for first in range(0, len(base), block):
        own = [(first, min(first + block, len(base)))] if spans is None else spans(len(base), first, block)
        if not own:
            continue
        rows = base[first : first + block].clone()
        look = RowObserver(own, rows, first, len(changes))
        for change in changes:
            rows += change[first : first + block]
            look.see(rows)
        look.see(written[first : first + block])
        sums = both(sums, look.sums())
    return estimate_of(sums, base.numel(), "F64" if base.dtype == torch.float64 else "F32")


def pooled(parts, changes):
    """Several weights together, of which each has the changes of its numbers."""
    whole = Estimate.nothing(changes)
    for own, numbers in parts:
        whole.add(own, numbers)
    return whole


def dense(base, changes, written):
    """The coefficients of least squares, and the noise, over all entries in float64."""
    x = (written.double() - base.double()).flatten()
    matrix = torch.stack([change.double().flatten() for change in changes], 1)
    values = torch.linalg.lstsq(matrix, x[:, None]).solution.flatten()
    left = (x - matrix.sum(1)).norm()
    return values.tolist(), (left / matrix.norm(dim=0)).tolist()


@pytest.mark.parametrize("size", [0.01, 1.0])
def test_the_sums_are_products_of_all_steps(size):
    base, changes = size * drawn(1, 9, 7), [0.1 * size * drawn(number, 9, 7) for number in (2, 3)]
    steps = [base, base + changes[0], base + changes[0] + changes[1], size * drawn(4, 9, 7)]
    look = RowObserver([(2, 5), (7, 8)], base, 0, len(changes))
    for rows in steps[1:]:
        look.see(rows)
    found = look.sums()
    own = [torch.cat([rows[2:5], rows[7:8]]).double().flatten() for rows in steps]
    differences = torch.stack([after - before for before, after in pairwise(own)])
    assert found.looked_at == 4 * 7
    assert found.base == pytest.approx(float(own[0].square().sum()), rel=1e-5)
    torch.testing.assert_close(found.products, differences @ differences.T, rtol=1e-4, atol=1e-6 * size**2)


@pytest.mark.parametrize("dtype", GRIDS)
@pytest.mark.parametrize("size", [0.1, 0.01, 0.003])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_shares_and_the_noise_are_those_of_a_dense_computation(dtype, size, count):
    base = rounded(drawn(1, 90, 70), dtype)
    changes = [size * number * drawn(10 + number, 90, 70) for number in range(1, count + 1)]
    changes[-1] = changes[-1] + 0.5 * changes[0]
    written = rounded(base + sum(changes), dtype)
    values, noise = dense(base, changes, written)
    found = looked(base, changes, written).shares()
    assert [share.reported for share in found] == pytest.approx(values, abs=2e-4)
    assert [share.noise for share in found] == pytest.approx(noise, rel=1e-3)
    assert all(not share.why for share in found)


def test_a_base_in_float64_is_weighed_in_float64():
    base, change = drawn(1, 40, 40).double(), 1e-9 * drawn(2, 40, 40).double()
    assert looked(base, [change], base + 0.25 * change).shares()[0].reported == pytest.approx(0.25, rel=1e-6)


def test_the_sums_are_the_same_however_the_rows_are_cut():
    base, change = drawn(1, 64, 48), 0.01 * drawn(2, 64, 48)
    written = rounded(base + change, "BF16")
    one, other = (looked(base, [change], written, block) for block in (64, 5))
    for field, own in zip((*one[:2], *one.rounding), (*other[:2], *other.rounding), strict=True):
        assert field.flatten().tolist() == pytest.approx(own.flatten().tolist(), rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_a_sixteenth_of_the_rows_gives_the_share_of_all(seed):
    """Of 256 rows 16 are looked at: 24,576 entries, whose rounding leaves the share open by about 0.004."""

    def spans(rows, first, count):
        return looked_rows(rows, first, min(count, rows - first))

    base = rounded(drawn(seed, 256, 1536), "BF16")
    change = 0.003 * drawn(seed + 100, 256, 1536)
    written = rounded(base + change, "BF16")
    (some,) = looked(base, [change], written, 40, spans).shares()
    (whole,) = looked(base, [change], written).shares()
    assert some.reported != whole.reported
    assert some.reported == pytest.approx(whole.reported, abs=0.02)
    assert some.noise == pytest.approx(whole.noise, rel=0.02)


def sampled(rows, first, count):
    return looked_rows(rows, first, min(count, rows - first))


def test_a_weight_that_is_looked_at_in_part_counts_as_much_as_all_of_it():
    """Beside another one that is looked at whole, with another share."""
    base, coarse = rounded(drawn(1, 256, 512), "BF16"), rounded(drawn(2, 256, 512), "F8_E4M3")
    change = 0.01 * drawn(3, 256, 512)
    written, also = rounded(base + change, "BF16"), rounded(coarse + change, "F8_E4M3")
    whole = looked(coarse, [change], also)
    some = pooled([(looked(base, [change], written, 40, sampled), [0]), (whole, [0])], 1)
    every = pooled([(looked(base, [change], written), [0]), (whole, [0])], 1)
    assert some.shares()[0].reported == pytest.approx(every.shares()[0].reported, abs=0.02)
    assert some.gram.item() == pytest.approx(every.gram.item(), rel=0.05)


def test_a_sample_leaves_a_share_as_open_as_its_few_entries_do():
    base, change = rounded(drawn(1, 256, 64), "BF16"), 0.01 * drawn(2, 256, 64)
    written = rounded(base + change, "BF16")
    some, every = looked(base, [change], written, 40, sampled), looked(base, [change], written)
    assert some.rounding.scatter.item() == pytest.approx(16 * every.rounding.scatter.item(), rel=0.3)


def test_several_weights_together_are_one_long_weight():
    base, other = rounded(drawn(1, 30, 40), "F8_E4M3"), rounded(drawn(2, 50, 20), "F8_E4M3")
    first, second, third = 0.02 * drawn(3, 30, 40), 0.05 * drawn(4, 50, 20), 0.03 * drawn(5, 50, 20)
    written, also = rounded(base + first, "F8_E4M3"), rounded(other + second + third, "F8_E4M3")
    parts = [(looked(base, [first], written), [1]), (looked(other, [second, third], also), [1, 0])]
    found = pooled(parts, 2).shares()
    long = [torch.cat([first.flatten(), second.flatten()]), torch.cat([torch.zeros(1200), third.flatten()])]
    values, _ = dense(
        torch.cat([base.flatten(), other.flatten()]), long, torch.cat([written.flatten(), also.flatten()])
    )
    assert [found[1].reported, found[0].reported] == pytest.approx(values, abs=2e-4)


def test_the_noise_of_an_adapter_is_that_of_the_weights_it_changes():
    """A second adapter in another weight has nothing to do with it."""
    base, change = rounded(drawn(1, 60, 60), "BF16"), 0.01 * drawn(2, 60, 60)
    coarse = rounded(drawn(3, 60, 60), "F8_E4M3")
    parts = [
        (looked(base, [change], rounded(base + change, "BF16")), [0]),
        (looked(coarse, [change], rounded(coarse + change, "F8_E4M3")), [1]),
    ]
    one, other = pooled(parts, 2).shares()
    assert one.noise == pytest.approx(parts[0][0].shares()[0].noise)
    assert other.noise == pytest.approx(parts[1][0].shares()[0].noise)
    assert other.noise > 5 * one.noise


def test_the_same_change_twice_has_no_share_of_its_own():
    base, change = rounded(drawn(1, 50, 50), "BF16"), 0.1 * drawn(2, 50, 50)
    found = looked(base, [change, change], rounded(base + 2 * change, "BF16")).shares()
    assert [(share.reported, share.why) for share in found] == [(None, ALIKE)] * 2


def test_a_change_of_nothing_has_no_share_and_takes_none():
    base, change = rounded(drawn(1, 50, 50), "BF16"), 0.1 * drawn(2, 50, 50)
    none, whole = looked(base, [torch.zeros(50, 50), change], rounded(base + change, "BF16")).shares()
    assert (none.reported, none.noise, none.why) == (None, None, NO_CHANGE)
    assert whole.reported == pytest.approx(1, abs=0.01)


def test_a_change_that_is_lost_whole_has_the_share_0_and_is_told():
    base = rounded(drawn(1, 200, 200), "F8_E4M3")
    change = 1e-4 * base
    (share,) = looked(base, [change], rounded(base + change, "F8_E4M3")).shares()
    assert share.reported == pytest.approx(0, abs=1e-6)
    assert not share.why


@pytest.mark.parametrize(("size", "why"), [(1e-8, ROUNDED_AWAY), (1e-5, "")])
def test_what_float32_cannot_hold_beside_the_weight_is_not_told(size, why):
    base = drawn(1, 200, 200)
    change = size * drawn(2, 200, 200)
    (share,) = looked(base, [change], base + change).shares()
    assert share.why == why
    assert share.reported == (None if why else pytest.approx(1, abs=1e-3))


def test_a_few_entries_whose_rounding_is_as_large_as_the_change_do_not_tell():
    base, change = torch.ones(1, 8), 2.0**-9 * torch.tensor([[1.5, 0.4, -0.3, 0.6, 2.2, -1.2, 0.9, 0.2]])
    (share,) = looked(base, [change], rounded(base + change, "BF16")).shares()
    assert share.why == ROUNDED_AWAY


def test_numbers_whose_squares_float32_cannot_hold_are_weighed_too():
    base, change = 1e25 * drawn(1, 30, 30), 1e23 * drawn(2, 30, 30)
    (share,) = looked(base, [change], base + 0.5 * change).shares()
    assert share.reported == pytest.approx(0.5, rel=1e-3)
