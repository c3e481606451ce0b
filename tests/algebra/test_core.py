"""The core of a change against dense float64 decompositions: singular values, trims, and factors of bad conditions."""

import numpy
import pytest

from lora_inspect.algebra.linear.core import Core, SharedFactors, decomposed, root, shared_cores, shared_factors
from lora_inspect.algebra.linear.factors import Factors, inner, joined


def conditioned(rng, size, rank, condition):
    """A factor (size, rank) whose singular values fall from 1 to 1/condition."""
    left, _ = numpy.linalg.qr(rng.standard_normal((size, rank)))
    right, _ = numpy.linalg.qr(rng.standard_normal((rank, rank)))
    return left[:, :rank] * numpy.geomspace(1, 1 / condition, min(size, rank))[None, :] @ right[:rank]


def change(rows=96, columns=80, rank=12, condition=10.0, seed=0):
    rng = numpy.random.default_rng(seed)
    up, down = (conditioned(rng, size, rank, condition) for size in (rows, columns))
    return Factors.of(up, down.T, (rows, columns))


def matrix(factors):
    return factors.up * factors.weights @ factors.down


@pytest.mark.parametrize("condition", [1.0, 1e3, 1e7, 1e9])
@pytest.mark.parametrize("rank", [1, 3, 8])
def test_a_trim_is_the_best_of_its_rank(condition, rank):
    whole = change(condition=condition)
    values = numpy.linalg.svd(matrix(whole), compute_uv=False)
    best = numpy.sqrt(numpy.square(values[rank:]).sum())
    trimmed = Core(whole).trim(rank).of(whole)
    assert trimmed.rank == rank
    assert numpy.linalg.norm(matrix(whole) - matrix(trimmed)) == pytest.approx(best, rel=1e-10, abs=1e-14)


@pytest.mark.parametrize("condition", [1.0, 1e3, 1e7])
def test_singular_values_are_those_of_the_matrix(condition):
    whole = change(condition=condition)
    values = numpy.linalg.svd(matrix(whole), compute_uv=False)[:12]
    assert Core(whole).values == pytest.approx(values, rel=1e-6, abs=1e-15)


@pytest.mark.parametrize(("rows", "columns", "rank"), [(6, 80, 12), (80, 6, 12), (5, 5, 20), (1, 9, 3), (9, 1, 1)])
def test_a_rank_above_the_size_of_the_weight_is_that_of_the_weight(rows, columns, rank):
    rng = numpy.random.default_rng(1)
    whole = Factors.of(rng.standard_normal((rows, rank)), rng.standard_normal((rank, columns)), (rows, columns))
    core = Core(whole)
    assert core.rounding_rank == min(rows, columns, rank)
    trimmed = core.trim(core.rounding_rank).of(whole)
    assert matrix(trimmed) == pytest.approx(matrix(whole), rel=1e-12, abs=1e-12)


def test_both_factors_of_a_trim_have_the_roots_of_the_singular_values():
    whole = change()
    core = Core(whole)
    trimmed = core.trim(5).of(whole)
    assert numpy.linalg.norm(trimmed.up, axis=0) ** 2 == pytest.approx(core.values[:5], rel=1e-12)
    assert numpy.linalg.norm(trimmed.down, axis=1) ** 2 == pytest.approx(core.values[:5], rel=1e-12)


def test_directions_that_repeat_add_no_rank():
    once = change(rank=4)
    twice = joined([once, once.scaled(0.5)])
    core = Core(twice)
    assert (twice.rank, core.rounding_rank) == (8, 4)
    assert matrix(core.trim(4).of(twice)) == pytest.approx(1.5 * matrix(once), rel=1e-12, abs=1e-14)


def test_what_cancels_out_has_no_rank():
    once = change(rank=4)
    core = Core(joined([once, once.scaled(-1.0)]))
    assert core.values[0] < 1e-14 * numpy.linalg.norm(matrix(once))
    assert core.rounding_rank == 0


def test_a_small_rest_of_changes_that_nearly_cancel_out_is_kept():
    once, rest = change(rank=4), change(rank=2, seed=9).scaled(1e-9)
    core = Core(joined([once, once.scaled(-1.0), rest]))
    assert core.rounding_rank == 2
    assert core.values[:2] == pytest.approx(numpy.linalg.svd(matrix(rest), compute_uv=False)[:2], rel=1e-4)


def test_factors_of_opposite_sizes_hide_no_other_change():
    one, other = change(rank=4, seed=1), change(rank=4, seed=2)
    uneven = Factors(other.up * 2.0**90, other.weights, other.down * 2.0**-90, other.shape)
    core = Core(joined([one, uneven]))
    expected = numpy.linalg.svd(matrix(one) + matrix(other), compute_uv=False)[:8]
    assert core.rounding_rank == 8
    numpy.testing.assert_allclose(core.values[:8], expected, rtol=1e-9)
    assert Core(joined([uneven, uneven.scaled(-1.0)])).rounding_rank == 0


@pytest.mark.parametrize("zero", ["up", "down"])
def test_no_change_has_rank_0(zero):
    rng = numpy.random.default_rng(2)
    up, down = rng.standard_normal((9, 3)), rng.standard_normal((3, 7))
    whole = Factors.of(up * (zero != "up"), down * (zero != "down"), (9, 7))
    assert Core(whole).rounding_rank == 0


@pytest.mark.parametrize("condition", [1.0, 1e6, 1e12])
def test_a_root_has_the_gram_matrix(condition):
    tall = conditioned(numpy.random.default_rng(3), 50, 7, condition)
    found = root(tall)
    assert found.T @ found == pytest.approx(tall.T @ tall, rel=1e-12, abs=1e-15)


def test_a_negative_multiplier_turns_the_change():
    once = change()
    assert matrix(once.scaled(-0.3)) == pytest.approx(-0.3 * matrix(once), rel=1e-12, abs=1e-15)


def test_an_inner_product_is_that_of_the_matrices():
    one, other = change(seed=4), change(rank=5, seed=5)
    assert inner(one, other) == pytest.approx((matrix(one) * matrix(other)).sum(), rel=1e-12)


def test_changes_of_other_weights_have_no_sum():
    with pytest.raises(ValueError, match="have no sum"):
        joined([change(), change(rows=95)])


def test_factors_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="are no factors"):
        Factors.of(numpy.zeros((3, 2)), numpy.zeros((3, 4)), (3, 4))


def test_small_products_in_single_precision_stay_single():
    whole = change()
    trim = Core(whole).trim(3)
    single = joined([whole], numpy.float32)
    made = trim.of(single)
    assert made.up.dtype == made.down.dtype == numpy.float32
    assert matrix(made) == pytest.approx(matrix(trim.of(whole)), rel=1e-4, abs=1e-6)


def test_cores_in_shared_bases_have_the_sums_and_angles_of_the_changes():
    changes = [change(seed=4), change(rank=5, seed=5), change(rank=12, seed=4).scaled(0.5)]
    cores = shared_cores(changes)
    for one, left in zip(cores, changes, strict=True):
        for other, right in zip(cores, changes, strict=True):
            assert (one * other).sum() == pytest.approx((matrix(left) * matrix(right)).sum(), rel=1e-9)
            meant = numpy.linalg.norm(matrix(left) - matrix(right))
            assert numpy.linalg.norm(one - other) == pytest.approx(meant, rel=1e-9, abs=1e-12)


# Columns of factors that are in the span of those before them: of all, of some, of none, and by halves.
SHARED = {
    "none": lambda first, second, drawn: drawn,
    "the same": lambda first, second, drawn: first,
    "nearly the same": lambda first, second, drawn: first + 1e-9 * drawn,
    "some of them": lambda first, second, drawn: numpy.hstack([first[:, :2], drawn[:, 2:]]),
    "of both": lambda first, second, drawn: numpy.hstack([first[:, :2] + second[:, :2], drawn[:, 2:]]),
    "one twice": lambda first, second, drawn: numpy.hstack([drawn[:, :1], drawn[:, :1], drawn[:, 2:]]),
    "no change": lambda first, second, drawn: 0.0 * drawn,
}


@pytest.mark.parametrize("rows", [6, 9, 40])
@pytest.mark.parametrize("how", SHARED)
def test_shared_factors_have_the_inner_products_of_the_changes(how, rows):
    numbers = numpy.random.default_rng(rows)
    ups = [numbers.standard_normal((rows, 4)) for _ in range(2)]
    ups.append(SHARED[how](*ups, numbers.standard_normal((rows, 4))))
    ups.append(numbers.standard_normal((rows, 4)) + ups[2])
    downs = [numbers.standard_normal((4, 30)) for _ in ups]
    changes = [Factors.of(up, down, (rows, 30)) for up, down in zip(ups, downs, strict=True)]
    shared = shared_factors(joined(changes), [4, 4, 8])
    dense = [ups[0] @ downs[0], ups[1] @ downs[1], ups[2] @ downs[2] + ups[3] @ downs[3]]
    cores = [one.core for one in shared]
    scale = max(numpy.linalg.norm(one) ** 2 for one in dense)
    for core, change in zip(cores, dense, strict=True):
        for other, changed in zip(cores, dense, strict=True):
            assert float((core * other).sum()) == pytest.approx(float((change * changed).sum()), abs=1e-12 * scale)


@pytest.mark.parametrize("off", [1e-3, 1e-6, 1e-9])
def test_a_difference_of_shared_factors_keeps_its_digits(off):
    numbers = numpy.random.default_rng(3)
    up, down = numbers.standard_normal((200, 4)), numbers.standard_normal((4, 30))
    step, other = off * numbers.standard_normal((200, 4)), numbers.standard_normal((200, 4))
    changes = [Factors.of(one, down, (200, 30)) for one in (up, other, up + step)]
    one, _, moved = (one.core for one in shared_factors(joined(changes), [4, 4, 4]))
    assert numpy.linalg.norm(moved - one) == pytest.approx(numpy.linalg.norm(step @ down), rel=1e-6)


def test_directions_are_those_of_the_dense_change():
    numbers = numpy.random.default_rng(4)
    up = numbers.standard_normal((40, 5))
    up[:, 4] = up[:, :4].sum(1)
    for change in (Factors.of(up[:, :4], numbers.standard_normal((4, 30)), (40, 30)),
                   Factors.of(up, numbers.standard_normal((5, 30)), (40, 30))):  # fmt: skip
        dense = change.up @ change.down
        (shared,) = shared_factors(change, [change.rank])
        (left,), (values,), (right,) = decomposed(SharedFactors(shared.up[None], shared.down[None]))
        assert (left.shape[1], right.shape[1]) == (4, 4)
        numpy.testing.assert_allclose(values, numpy.linalg.svd(dense, compute_uv=False)[:4], rtol=1e-9)
        assert numpy.linalg.norm(left.T @ shared.core @ right) == pytest.approx(numpy.linalg.norm(dense), rel=1e-9)
        numpy.testing.assert_allclose(left.T @ left, numpy.eye(4), atol=1e-9)
