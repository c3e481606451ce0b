"""Norms and distances of products, against float64 matrices that are built."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_inspect.maths.low_rank import GRAM, SCALED_GRAM, TRIANGLES, Product, distance, product_norm, relative

pytestmark = pytest.mark.numeric

EPS = 2.0**-52


def product(out, rank, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    up = torch.randn(out, rank, generator=generator, dtype=torch.float64)
    return Product(up, torch.randn(rank, columns, generator=generator, dtype=torch.float64))


def built(products):
    return sum(one.up @ one.down for one in products)


ACCURACIES = [GRAM, SCALED_GRAM, TRIANGLES]
OF_ANY_SIZE = [SCALED_GRAM, TRIANGLES]


@pytest.mark.parametrize("accuracy", ACCURACIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_norm_of_a_product(accuracy, dtype):
    one = product(7, 3, 5, 0)
    found = product_norm(one.up.to(dtype), one.down.to(dtype), accuracy)
    assert found.dtype == dtype
    assert float(found) == pytest.approx(float((one.up @ one.down).norm()), rel=8 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("accuracy", OF_ANY_SIZE)
@pytest.mark.parametrize("sizes", [(1.0, 1.0), (1e200, 1e-200), (1e200, 1e50), (1e-200, 1e-50)])
def test_the_norm_of_a_product_of_any_size(sizes, accuracy):
    one = product(7, 3, 5, 0)
    expected = float((one.up @ one.down).norm()) * sizes[0] * sizes[1]
    found = product_norm(one.up * sizes[0], one.down * sizes[1], accuracy)
    assert float(found) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("accuracy", OF_ANY_SIZE)
def test_the_norm_of_nothing_and_of_what_is_beyond_all(accuracy):
    some = torch.ones(2, 2, dtype=torch.float64)
    for nothing in ((some, 0 * some), (0 * some, some), (some[:, :0], some[:0]), (math.inf * some, 0 * some)):
        assert float(product_norm(*nothing, accuracy)) == 0.0
    assert float(product_norm(math.inf * some, some, accuracy)) == math.inf


def test_triangles_keep_the_digits_that_gram_matrices_lose():
    """Two columns that are nearly the same, of which one is taken away: 1e-10 of them is left."""
    up, down = torch.ones(4, 2, dtype=torch.float64), torch.ones(2, 3, dtype=torch.float64)
    up[:, 1] = -(1 + 1e-10)
    expected = float((up @ down).norm())
    assert float(product_norm(up, down, TRIANGLES)) == pytest.approx(expected, rel=1e-5)
    assert float(product_norm(up, down, SCALED_GRAM)) != pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize(
    ("lost", "norm", "share"),
    [(1.0, 4.0, 0.25), (0.0, 4.0, 0.0), (0.0, 0.0, 0.0), (1e-9, 0.0, 1.0), (math.nan, 0.0, 1.0)],
)
def test_the_share_of_a_change_that_is_lost(lost, norm, share):
    assert relative(lost, norm) == share


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
    assert distance([zero], [one]).share == 1.0
    assert distance([one], [zero]).share == pytest.approx(1.0, rel=1e-12)
    assert math.isnan(distance([one], [Product(one.up * math.inf, one.down)]).share)
