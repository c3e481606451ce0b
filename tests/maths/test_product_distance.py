"""Distances of products, against float64 matrices that are built."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_inspect.maths.low_rank import Product, distance

pytestmark = pytest.mark.numeric

EPS = 2.0**-52


def product(out, rank, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    up = torch.randn(out, rank, generator=generator, dtype=torch.float64)
    return Product(up, torch.randn(rank, columns, generator=generator, dtype=torch.float64))


def built(products):
    return sum(one.up @ one.down for one in products)


@settings(max_examples=60, deadline=None)
@given(
    out=st.integers(1, 9),
    columns=st.integers(1, 9),
    ranks=st.lists(st.integers(1, 6), min_size=2, max_size=5),
    split=st.integers(1, 4),
    seed=st.integers(0, 2**30),
)
def test_it_is_the_distance_of_the_matrices(out, columns, ranks, split, seed):
    found = [product(out, rank, columns, seed + at) for at, rank in enumerate(ranks)]
    at = min(split, len(found) - 1)
    ones, others = found[:at], found[at:]
    size = sum(float(one.up.norm() * one.down.norm()) for one in found)
    bound = 200 * EPS * size
    got = distance(ones, others)
    assert abs(got.apart - float((built(ones) - built(others)).norm())) <= bound
    assert abs(got.norm - float(built(ones).norm())) <= bound


@pytest.mark.parametrize("off", [1e-3, 1e-7, 1e-11, 1e-14])
def test_a_difference_far_below_half_of_the_digits_is_told(off):
    one = product(40, 5, 30, 1)
    # Another basis of the same product, so that no row of down is the same.
    turned = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)).Q
    other = Product(one.up @ turned * (1 + off), turned.t() @ one.down)
    share = distance([one], [other]).share
    assert abs(share - off) <= 1e-14 + 1e-3 * off


def test_rows_in_another_order_or_in_several_products_are_no_difference():
    one = product(7, 6, 5, 3)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    halves = [Product(one.up[:, order[:2]], one.down[order[:2]]), Product(one.up[:, order[2:]], one.down[order[2:]])]
    assert distance([one], halves) == (0.0, 0.0)
    swapped = [halves[0]._replace(down=halves[0].down.flip(0)), halves[1]]
    assert distance([one], swapped).share > 0.01


@pytest.mark.parametrize("size", [1e-150, 1e150])
def test_sizes_far_from_one_are_no_trouble(size):
    one = product(6, 2, 5, 4)
    large = Product(one.up * size, one.down)
    other = Product(one.up * size * 1.5, one.down.clone())
    assert distance([large], [other]).share == pytest.approx(0.5, rel=1e-12)


def test_nothing_and_what_is_not_finite():
    one = product(3, 2, 4, 5)
    zero = Product(torch.zeros(3, 2, dtype=torch.float64), one.down)
    assert distance([zero], [zero]).share == 0.0
    assert distance([zero], [one]).share == math.inf
    assert distance([one], [zero]).share == pytest.approx(1.0, rel=1e-12)
    assert math.isnan(distance([one], [Product(one.up * math.inf, one.down)]).share)
