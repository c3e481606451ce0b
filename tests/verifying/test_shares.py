"""Least squares from sums by row, against torch's own solver and against many merges whose rounding is drawn."""

import pytest
import torch
from adapters import drawn

from lora_inspect.maths.share import ALIKE, NO_CHANGE, ROUNDED_AWAY
from lora_inspect.verifying.shares import Sums, left_over, pooled, shares_in

pytestmark = pytest.mark.numeric


def sums(x, *changes, noise=0.0, lost=None):
    """The sums as they are defined, for x and changes in float64; `noise` is the variance of an entry."""
    d = torch.stack(changes).double()
    x = x.double()
    lost = torch.zeros_like(x) if lost is None else lost.double()
    rows, columns = x.shape
    return Sums(
        found=x.square().sum(1),
        along=torch.einsum("rc,trc->rt", x, d),
        gram=torch.einsum("trc,src->rts", d, d),
        noise=torch.full((rows,), noise * columns).double(),
        base_noise=torch.zeros(rows).double(),
        lost=torch.einsum("rc,trc->rt", lost, d),
        lost_squares=lost.square().sum(1),
        entries=columns,
    )


@pytest.mark.parametrize("seed", range(5))
def test_shares_are_those_of_the_library(seed):
    x = drawn(seed, 12, 9)
    changes = [drawn(seed + 10 * number, 12, 9) for number in (1, 2, 3)]
    changes[1] = changes[1] + 0.9 * changes[0]
    found = shares_in(sums(x, *changes))
    matrix = torch.stack([change.flatten() for change in changes], 1).double()
    expected = torch.linalg.lstsq(matrix, x.double().flatten()[:, None]).solution.flatten()
    assert found.values == pytest.approx(expected.tolist(), rel=1e-6)
    left = float((x.double().flatten() - matrix @ expected).square().sum())
    assert found.unexplained == pytest.approx(left)
    assert found.expected == pytest.approx(float(sum(changes).square().sum()))
    assert found.residual == pytest.approx((left / found.expected) ** 0.5)


def test_changes_of_very_different_sizes_are_told_apart():
    one, other = drawn(1, 8, 8).double(), 1e-5 * drawn(2, 8, 8).double()
    assert shares_in(sums(0.5 * one + 3 * other, one, other)).values == pytest.approx([0.5, 3], rel=1e-6)


@pytest.mark.parametrize("size", [1e-6, 1e-3, 1e3])
def test_changes_of_any_size_have_the_same_tolerances(size):
    one, other, x, lost = (drawn(number, 20, 20).double() for number in (1, 2, 3, 4))
    found = [
        shares_in(sums(s * (one + other + 0.1 * x), s * one, s * other, noise=0.09 * s**2, lost=0.05 * s * lost))
        for s in (1.0, size)
    ]
    due, own = ((each.tolerance_together, each.tolerance(0), each.tolerance(1)) for each in found)
    assert own == pytest.approx(due, rel=1e-6)
    assert due[0] > 0.02


@pytest.mark.parametrize(("size", "alike"), [(0.044, True), (0.046, False)])
def test_changes_with_a_cosine_above_0_999_are_alike(size, alike):
    one = drawn(1, 40, 40)
    across = drawn(2, 40, 40)
    across = across - one * float((one * across).sum() / one.square().sum())
    other = one + size * across * (one.norm() / across.norm())
    cosine = float(torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), 0))
    assert (cosine > 0.999) == alike
    found = shares_in(sums(one + other, one, other, drawn(3, 40, 40)))
    assert found.why == ([ALIKE, ALIKE, ""] if alike else ["", "", ""])


def test_a_change_that_two_others_make_together_is_alike_too():
    one, other = drawn(1, 20, 20), drawn(2, 20, 20)
    found = shares_in(sums(one, one, other, one + other))
    whole = 2 * one + 2 * other
    assert found.why == [ALIKE] * 3
    assert found.estimate.together == pytest.approx(float((one * whole).sum() / whole.square().sum()))


def test_no_change_has_no_share_and_leaves_the_others_as_they_are():
    one = drawn(1, 6, 6)
    found = shares_in(sums(0.7 * one, torch.zeros(6, 6), one))
    assert found.why == [NO_CHANGE, ""]
    assert found.values[1] == pytest.approx(0.7)


@pytest.mark.parametrize(("size", "why"), [(0.99, ROUNDED_AWAY), (1.01, "")])
def test_a_change_is_told_from_the_size_of_the_rounding_on(size, why):
    one = drawn(1, 30, 30)
    one *= size * 0.1 * 30 / one.norm()
    assert shares_in(sums(one, one, noise=0.01)).why == [why]


def test_the_standard_error_is_that_of_drawn_rounding():
    """Over 400 draws of rounding: a fifth of ± is the spread of the share, within what 400 draws tell of a spread."""
    one, other = drawn(1, 16, 16), drawn(2, 16, 16)
    shares, stated = [], []
    for seed in range(400):
        rounding = (torch.rand(16, 16, generator=torch.Generator().manual_seed(seed)) - 0.5) * 0.2
        found = shares_in(sums(one + other + rounding, one, other, noise=0.2**2 / 12))
        shares.append(found.values[0])
        stated.append(found.noise[0] / 5)
    spread = float(torch.tensor(shares).std())
    assert 0.85 < torch.tensor(stated).mean() / spread < 1.35


def test_errors_that_a_whole_row_shares_are_in_the_standard_error():
    """A gain that is off by a row's own amount moves the share as a whole row does."""
    one = drawn(1, 24, 400).abs()
    shares, stated = [], []
    for seed in range(200):
        gains = 0.01 * drawn(seed, 24, 1)
        found = shares_in(sums(one + gains * one, one, noise=1e-4))
        shares.append(found.values[0])
        stated.append(found.noise[0] / 5)
    spread = float(torch.tensor(shares).std())
    assert 0.7 < torch.tensor(stated).mean() / spread < 1.4


def test_what_an_exact_merge_misses_is_stated():
    one = drawn(1, 10, 10)
    lost = -0.3 * one
    found = shares_in(sums(one + lost, one, lost=lost))
    assert found.values == pytest.approx([0.7])
    assert 0.3 < found.noise[0] < 0.33


def test_more_than_eight_roundings_are_not_explained():
    one, rest = drawn(1, 50, 50), drawn(2, 50, 50)
    rest = rest - one * float((one * rest).sum() / one.square().sum())
    for times, explained in ((7.5, True), (8.9, False)):
        x = one + rest * (times * 2500 * 0.01) ** 0.5 / rest.norm()
        assert shares_in(sums(x, one, noise=0.01)).is_explained == explained
    for size, explained in ((0.019, True), (0.021, False)):
        x = one + rest * size * one.norm() / rest.norm()
        assert shares_in(sums(x, one)).is_explained == explained


def test_the_residual_is_what_rounding_does_not_explain():
    one, rest = drawn(1, 50, 50), drawn(2, 50, 50)
    rest = rest - one * float((one * rest).sum() / one.square().sum())
    x = one + rest * (3 * 2500 * 0.01) ** 0.5 / rest.norm()
    found = shares_in(sums(x, one, noise=0.01))
    assert found.residual == pytest.approx((2 * 2500 * 0.01) ** 0.5 / float(one.norm()), rel=1e-4)


def test_rows_have_shares_of_their_own():
    one = drawn(1, 6, 9)
    rows = torch.tensor([1.0, 1, 0, 0, 2, 1])
    own = sums(rows[:, None] * one, one)
    assert left_over(own, rows.double()[:, None]) == pytest.approx(0, abs=1e-9)
    assert left_over(own, torch.ones(6, 1).double()) == pytest.approx(float(one[2:5].square().sum()))


def test_the_share_of_all_weights_is_that_of_them_put_together():
    first, second = drawn(1, 8, 8), 3 * drawn(2, 5, 9)
    other = drawn(3, 8, 8)
    x, y = 0.5 * first + other + 0.1 * drawn(4, 8, 8), 2 * second
    parts = [(shares_in(sums(x, other, first)), [1, 0]), (shares_in(sums(y, second)), [0])]
    found = pooled(parts, 3)
    stacked = torch.zeros(8 * 8 + 5 * 9, 2).double()
    stacked[:64, 0], stacked[64:, 0], stacked[:64, 1] = first.flatten(), second.flatten(), other.flatten()
    wanted = torch.cat([x.flatten(), y.flatten()]).double()
    expected = torch.linalg.lstsq(stacked, wanted[:, None]).solution.flatten()
    assert found.values[:2] == pytest.approx(expected.tolist(), rel=1e-6)
    assert found.why == ["", "", NO_CHANGE]
