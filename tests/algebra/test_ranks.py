"""Ranks by each rule, the errors that they make, and a size that is kept to less than one rank."""

import math

import numpy
import pytest

from lora_inspect.algebra.linear.ranks import RankRule, Spectrum, choose_ranks, trim_error

STEEP = numpy.array([8.0, 4.0, 2.0, 1.0])
FLAT = numpy.array([3.0, 3.0, 3.0])
NONE = numpy.array([0.0, 0.0])


def spectrum(values, rank_bytes=100, rounding=None):
    return Spectrum(values, int(numpy.count_nonzero(values)) if rounding is None else rounding, rank_bytes)


def chosen(rule, *values):
    return choose_ranks([spectrum(own) for own in values], rule, lambda ranks: 100 * sum(ranks))


@pytest.mark.parametrize(
    ("rule", "ranks"),
    [
        (RankRule(), [4, 3, 0]),
        (RankRule(rank=2), [2, 2, 0]),
        (RankRule(rank=9), [4, 3, 0]),
        (RankRule(max_rank=3), [3, 3, 0]),
        # 64/85 and 80/85 of the energy are in the first one and two of the steep one, a third in each of the flat one.
        (RankRule(energy=64 / 85), [1, 3, 0]),
        (RankRule(energy=0.76), [2, 3, 0]),
        (RankRule(energy=1 / 3), [1, 1, 0]),
        (RankRule(energy=1.0), [4, 3, 0]),
        (RankRule(max_error=math.sqrt(5 / 85)), [2, 3, 0]),
        (RankRule(max_error=0.99), [1, 1, 0]),
        (RankRule(energy=0.99, max_rank=1), [1, 1, 0]),
    ],
)
def test_a_rule_gives_each_module_its_rank(rule, ranks):
    assert chosen(rule, STEEP, FLAT, NONE) == ranks


def test_energy_and_the_largest_error_are_one_rule():
    for share in (0.5, 0.9, 0.999):
        assert chosen(RankRule(energy=share), STEEP, FLAT) == chosen(
            RankRule(max_error=math.sqrt(1 - share)), STEEP, FLAT
        )


def test_rounding_takes_no_rank():
    assert choose_ranks([spectrum(STEEP, rounding=2)], RankRule(energy=1.0), sum) == [2]


@pytest.mark.parametrize(
    ("size", "ranks"),
    [(700, [4, 3, 0]), (699, [3, 3, 0]), (500, [2, 3, 0]), (300, [2, 1, 0]), (200, [2, 0, 0]), (99, [0, 0, 0])],
)
def test_a_size_goes_to_the_largest_gains(size, ranks):
    assert chosen(RankRule(size=size), STEEP, FLAT, NONE) == ranks


def test_a_rank_that_takes_more_bytes_has_to_gain_more():
    spectra = [spectrum(numpy.array([3.0, 1.0]), 400), spectrum(numpy.array([2.0, 0.1]), 100)]

    def size(ranks):
        return 400 * ranks[0] + 100 * ranks[1]

    assert choose_ranks(spectra, RankRule(size=100), size) == [0, 1]
    assert choose_ranks(spectra, RankRule(size=500), size) == [1, 1]
    # One rank more of the second would fit, but the next best is of the first: the rest is less than one rank of it.
    assert choose_ranks(spectra, RankRule(size=899), size) == [1, 1]


def test_a_size_below_what_no_rank_takes_is_refused():
    with pytest.raises(ValueError, match="nothing fits in 9 bytes"):
        choose_ranks([spectrum(STEEP)], RankRule(size=9), lambda ranks: 10 + sum(ranks))
    assert choose_ranks([spectrum(STEEP)], RankRule(size=10), lambda ranks: 10 + sum(ranks)) == [0]


@pytest.mark.parametrize("seed", range(5))
def test_a_size_is_missed_by_less_than_one_rank_of_the_largest(seed):
    rng = numpy.random.default_rng(seed)
    spectra = [
        spectrum(numpy.sort(rng.exponential(size=24))[::-1], int(rng.integers(1_000, 50_000))) for _ in range(30)
    ]

    def size(ranks):
        return 5_000 + sum(one.rank_bytes * rank for one, rank in zip(spectra, ranks, strict=True))

    wanted = 4_000_000
    ranks = choose_ranks(spectra, RankRule(size=wanted), size)
    assert wanted - max(one.rank_bytes for one in spectra) < size(ranks) <= wanted


def test_errors_are_the_tails():
    found = trim_error([spectrum(STEEP), spectrum(FLAT), spectrum(NONE)], [2, 1, 0])
    assert found.error == pytest.approx(math.sqrt((5 + 18) / (85 + 27)))
    assert found.energy == pytest.approx(1 - (5 + 18) / (85 + 27))
    assert found.worst == (1, pytest.approx(math.sqrt(18 / 27)))


def test_nothing_is_lost_of_what_keeps_all():
    found = trim_error([spectrum(STEEP)], [4])
    assert (found.error, found.worst) == (0.0, (0, 0.0))


def test_no_change_has_no_error():
    assert trim_error([spectrum(NONE)], [0]) == (0.0, None)
