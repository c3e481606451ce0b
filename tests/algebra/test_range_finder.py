"""find_range: its certificate, and its error against Eckart-Young's least one by a dense decomposition in float64."""

import itertools
import math
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lora_inspect.algebra.linear.range_finder import BOUND, Blocks, Found, find_range

pytestmark = pytest.mark.numeric

Array = NDArray[numpy.float64]
WIDTH, RANK = 384, 64


def normal(rows: int, columns: int, seed: int) -> Array:
    return numpy.random.default_rng(seed).standard_normal((rows, columns))


def with_values(values: Array, rows: int, columns: int, seed: int) -> Array:
    left = numpy.linalg.qr(normal(rows, len(values), seed))[0]
    right = numpy.linalg.qr(normal(columns, len(values), seed + 1000))[0]
    return (left * values) @ right.T


def rounded(numbers: Array, digits: int) -> Array:
    """The nearest numbers with so many binary digits."""
    fractions, exponents = numpy.frexp(numbers)
    return numpy.ldexp(numpy.rint(numpy.ldexp(fractions, digits)), exponents - digits)


def stored(change: Array, seed: int, digits: int) -> Array:
    """What is left of a change, ten times smaller than the weight, if the sum is stored in so many binary digits."""
    weight = normal(len(change), change.shape[1], seed + 2000) * numpy.linalg.norm(change) / change.size**0.5 * 10
    return rounded(weight + change, digits) - weight


def in_blocks(matrix: NDArray[numpy.floating], height: int = 100) -> Blocks:
    def blocks() -> Iterator[tuple[int, NDArray[numpy.floating]]]:
        for first in range(0, len(matrix), height):
            yield first, matrix[first : first + height]

    return blocks


def find(matrix: NDArray[numpy.floating], rank: int | None = None, seed: int = 0, **rule: Any) -> Found:
    return find_range(in_blocks(matrix), matrix.shape, rank, seed, **rule)


COUNT = numpy.arange(1.0, WIDTH + 1.0)
SPECTRA: dict[str, Array | None] = {
    "all equal": numpy.ones(WIDTH),
    "steep": 0.9**COUNT,
    "less steep": 0.97**COUNT,
    "falling slowly": COUNT**-0.5,
    "of noise": None,
}
DIGITS = {"float64": None, "bfloat16": 8, "float8": 4}
CASES = list(itertools.product(SPECTRA, DIGITS))
# Those that are tried with a hundred seeds.
MANY = list(itertools.product(("all equal", "steep", "falling slowly"), DIGITS))


def drawn(spectrum: str, digits: str, seed: int) -> NDArray[numpy.floating]:
    values = SPECTRA[spectrum]
    change = normal(WIDTH, WIDTH, seed) if values is None else with_values(values, WIDTH, WIDTH, seed)
    binary = DIGITS[digits]
    # The differences of models in few digits come in float32, and are multiplied so.
    return change if binary is None else stored(change, seed, binary).astype(numpy.float32)


def verify(matrix: NDArray[numpy.floating], found: Found, pessimism: float = 1e-6) -> None:
    """All that `Found` promises, of a matrix that is not zero; the numbers are brought near 1 first."""
    wide = matrix.astype(numpy.float64)
    scale = float(numpy.abs(wide).max())
    wide /= scale
    values = numpy.linalg.svd(wide, compute_uv=False)
    norm = math.sqrt(float(numpy.square(wide.astype(numpy.longdouble)).sum()))
    best = math.sqrt(float(numpy.square(values[found.rank :][::-1]).sum())) / norm
    product = (found.up / scale**0.5) @ (found.down / scale**0.5)
    true = float(numpy.linalg.norm(wide - product)) / norm
    assert found.squared_norm == pytest.approx((norm * scale) ** 2, rel=1e-14, abs=0)
    assert true * (1 - 1e-9) <= found.relative_error <= true * (1 + pessimism) + 1e-12
    assert true <= BOUND * best + 1e-13
    assert found.least_error <= best * (1 + 1e-9)
    assert not found.proved or found.relative_error <= max(BOUND * best, 1e-7)
    assert found.proved or found.relative_error > BOUND * found.least_error
    shown = found.values / scale
    assert (shown <= values[: len(shown)] + 1e-13 * norm).all()
    balanced = numpy.sqrt(found.values[: found.rank])
    assert numpy.linalg.norm(found.up, axis=0) == pytest.approx(balanced, rel=1e-6, abs=0)
    assert numpy.linalg.norm(found.down, axis=1) == pytest.approx(balanced, rel=1e-6, abs=0)


@pytest.mark.parametrize(("spectrum", "digits"), CASES)
def test_the_error_is_near_the_least_and_never_more_than_stated(spectrum: str, digits: str) -> None:
    matrix = drawn(spectrum, digits, 3)
    found = find(matrix, RANK, seed=4)
    assert found.rank == RANK
    assert found.reached
    verify(matrix, found)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100))
@pytest.mark.parametrize(("spectrum", "digits"), MANY)
def test_the_error_is_near_the_least_for_every_seed(spectrum: str, digits: str, seed: int) -> None:
    matrix = drawn(spectrum, digits, seed)
    verify(matrix, find(matrix, RANK, seed=seed + 100))


SIDES = {"tall": (900, 200), "wide": (200, 900), "square": (250, 250)}
ODD: dict[str, Callable[[int, int], Array]] = {
    "lower rank": lambda rows, columns: normal(rows, 5, 0) @ normal(5, columns, 1),
    "one entry": lambda rows, columns: numpy.eye(rows, 1, -7) @ numpy.eye(1, columns, 9),
    "nearly all energy": lambda rows, columns: with_values(0.3 ** numpy.arange(200.0), rows, columns, 0),
    # The squared error is the 16th digit of the squared norm.
    "much energy and a flat rest": lambda rows, columns: (
        1e6 * with_values(numpy.ones(4), rows, columns, 0) + with_values(numpy.full(200, 0.01), rows, columns, 1)
    ),
    "equal rows": lambda rows, columns: numpy.ones((rows, 1)) @ normal(1, columns, 0),
    "diagonal": lambda rows, columns: numpy.eye(rows, columns),
    "mostly zero": lambda rows, columns: normal(rows, columns, 0) * (numpy.arange(columns) % 17 == 0),
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("side", SIDES)
def test_an_odd_matrix_has_a_true_certificate(kind: str, side: str) -> None:
    matrix = ODD[kind](*SIDES[side])
    # Below 1e-6 the rounding of 16 digits is itself a part of the error.
    verify(matrix, find(matrix, 16), pessimism=1e-4)


def test_a_flat_rest_behind_a_large_value_takes_a_step_more() -> None:
    # A measured certificate is that of the other side, which is half a step behind.
    matrix = with_values(numpy.array([1e7]), WIDTH, WIDTH, 0) + normal(WIDTH, WIDTH, 1)
    found = find(matrix, RANK)
    assert found.passes == 4
    verify(matrix, found)


@pytest.mark.parametrize("size", [1e-30, 1e30])
@pytest.mark.parametrize("dtype", [numpy.float32, numpy.float64])
def test_tiny_and_huge_entries(size: float, dtype: type[numpy.floating]) -> None:
    matrix = (with_values(COUNT**-0.5, WIDTH, WIDTH, 0) * size).astype(dtype)
    verify(matrix, find(matrix, 32))


# The smallest number of float32 is 1.4e-45, the largest 3.4e38; a row of the second is 1e38 times nearly equal numbers.
BEYOND = {"small": (0.0, 4e-43), "large": (1.0, 1e38)}


@pytest.mark.parametrize("kind", BEYOND)
def test_products_beyond_the_range_of_float32(kind: str) -> None:
    offset, size = BEYOND[kind]
    matrix = ((with_values(COUNT**-0.5, WIDTH, WIDTH, 0) + offset) * size).astype(numpy.float32)
    verify(matrix, find(matrix, 32))


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (40, 300), (300, 40)])
def test_a_rank_of_the_smaller_side_leaves_nothing(shape: tuple[int, int]) -> None:
    matrix = normal(*shape, 0)
    found = find(matrix, 64)
    assert found.rank == min(shape)
    assert found.relative_error < 1e-13
    verify(matrix, found, pessimism=1e3)


@pytest.mark.parametrize("rule", [{"rank": 4}, {"rank": 64}, {"max_error": 0.1}])
@pytest.mark.parametrize("shape", [(5, 200), (200, 5), (300, 300)])
def test_a_zero_matrix_has_rank_0(rule: dict[str, Any], shape: tuple[int, int]) -> None:
    found = find(numpy.zeros(shape), **rule)
    assert (found.up.shape, found.down.shape) == ((shape[0], 0), (0, shape[1]))
    assert (found.relative_error, found.squared_norm, found.proved, found.reached, found.passes) == (
        0,
        0,
        True,
        True,
        1,
    )


@settings(max_examples=60)
@given(
    rows=st.integers(1, 80),
    columns=st.integers(1, 80),
    inner=st.integers(1, 6),
    rest=st.sampled_from([0.0, 1e-9, 1e-4, 1.0]),
    size=st.sampled_from([1e-30, 1.0, 1e30]),
    rank=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_certificates_of_drawn_matrices(
    rows: int, columns: int, inner: int, rest: float, size: float, rank: int, seed: int
) -> None:
    matrix = normal(rows, inner, seed) @ normal(inner, columns, seed + 1) + rest * normal(rows, columns, seed + 2)
    verify(matrix * size, find(matrix * size, rank, seed), pessimism=1e4 if rank >= min(inner, rows, columns) else 1e-4)


def test_values_below_the_rounding_of_float32_take_no_rank() -> None:
    matrix = with_values(0.5 ** numpy.arange(100.0), 300, 300, 0)
    # 0.5^23 is 1.2e-7, and 0.5^24 is 6e-8.
    assert find(matrix, 40).rank == 24


@pytest.mark.parametrize("seed", range(4))
def test_a_small_error_of_rows_in_float32_has_all_its_digits(seed: int) -> None:
    # Whole numbers, exact in float32: a product of rank 24 and a rest of 1e-5 of it.
    whole = numpy.random.default_rng(seed)
    product = whole.integers(-99, 100, (WIDTH, 24)) @ whole.integers(-99, 100, (24, WIDTH))
    matrix = (product + whole.integers(-1, 2, (WIDTH, WIDTH))).astype(numpy.float32)
    found = find(matrix, 24, seed)
    assert found.relative_error < 1e-4
    verify(matrix, found)


PASSES = {
    "steep": (0.9**COUNT, 32, 2),
    # The Ritz values behind the kept ones are too few to prove the bound.
    "falling slowly": (COUNT**-0.5, 32, 3),
    # The squared error is of the size of the rounding of the squared norm.
    "nearly all energy": (0.5**COUNT, 20, 3),
}


@pytest.mark.parametrize("kind", PASSES)
def test_a_further_pass_is_for_a_proof_or_for_digits(kind: str) -> None:
    values, rank, passes = PASSES[kind]
    found = find(with_values(values, WIDTH, WIDTH, 0), rank)
    assert (found.passes, found.proved) == (passes, kind != "falling slowly")


def least_rank(matrix: NDArray[numpy.floating], max_error: float) -> int:
    squares = numpy.square(numpy.linalg.svd(matrix, compute_uv=False))
    return next(
        rank for rank in range(len(squares) + 1) if squares[rank:].sum() <= max_error**2 * squares.sum() * (1 + 1e-9)
    )


# Few directions, more than the first block finds, and so many that all of the matrix is decomposed.
ERRORS = [("steep", 0.1), ("steep", 1e-5), ("less steep", 0.3), ("less steep", 0.05), ("falling slowly", 0.5)]


@pytest.mark.parametrize(("spectrum", "max_error"), ERRORS)
def test_the_least_rank_for_an_error(spectrum: str, max_error: float) -> None:
    matrix = drawn(spectrum, "float64", 0)
    found = find(matrix, max_error=max_error)
    assert found.reached
    assert found.relative_error <= max_error * (1 + 1e-12)
    # The error of a rank may be `BOUND` times the least one.
    assert least_rank(matrix, max_error) <= found.rank <= least_rank(matrix, max_error / BOUND)
    assert not found.proved or found.rank == least_rank(matrix, max_error)
    verify(matrix, found)


def test_the_first_block_grows_until_the_error_is_reached() -> None:
    matrix = with_values(numpy.append(numpy.ones(66), numpy.full(534, 0.01)), 600, 600, 0)
    found = find(matrix, max_error=0.1)
    assert (found.rank, found.reached) == (least_rank(matrix, 0.1), True)
    # The first block has room for 64 directions; two steps of a larger one follow, and one for a proof.
    assert found.passes == 5
    verify(matrix, found)


def test_energy_is_one_less_the_squared_error() -> None:
    matrix = drawn("less steep", "float64", 0)
    found = find(matrix, energy=0.9)
    assert found.rank == least_rank(matrix, math.sqrt(0.1))
    assert numpy.array_equal(found.up, find(matrix, max_error=math.sqrt(1 - 0.9)).up)


@pytest.mark.parametrize("rule", [{"max_error": 0.0}, {"energy": 1.0}])
def test_all_energy_is_reached_only_to_the_digits_of_float64(rule: dict[str, Any]) -> None:
    matrix = with_values(numpy.linspace(2.0, 1.0, 12), 300, 300, 0)
    found = find(matrix, **rule)
    assert (found.rank, found.reached) == (12, "energy" in rule)


@pytest.mark.parametrize("max_rank", [5, 80, 300])
def test_a_rank_that_is_too_low_does_not_reach_the_error(max_rank: int) -> None:
    matrix = normal(520, 520, 0)
    found = find(matrix, max_error=0.01, max_rank=max_rank)
    assert (found.rank, found.reached) == (max_rank, False)
    assert found.relative_error > 0.01
    verify(matrix, found)


SIGNAL = with_values(numpy.append(numpy.linspace(200.0, 80.0, 12), 20.0), WIDTH, 300, 0)


@pytest.mark.parametrize("rule", [{"rank": 50}, {"max_error": 0.01}])
def test_directions_of_noise_take_no_rank(rule: dict[str, Any]) -> None:
    matrix = SIGNAL + normal(WIDTH, 300, 5)
    found = find(matrix, noise=1.0, **rule)
    # The 13th singular value of the signal, 20, is below √384 + √300 + 1 = 37.9.
    assert (found.rank, found.reached) == (12, "rank" in rule)
    verify(matrix, found)


def test_noise_alone_has_rank_0() -> None:
    # The norm of this one is a little above √384 + √300.
    matrix = normal(WIDTH, 300, 5)
    found = find(matrix, 50, noise=1.0)
    assert (found.rank, found.relative_error) == (0, 1.0)
    assert found.down.shape == (0, 300)


def test_the_same_blocks_and_seed_give_the_same_bytes() -> None:
    matrix = drawn("falling slowly", "float64", 0)
    one, same, other = (find(matrix, 16, seed=seed) for seed in (1, 1, 2))
    assert (one.up.tobytes(), one.down.tobytes()) == (same.up.tobytes(), same.down.tobytes())
    assert one.up.tobytes() != other.up.tobytes()


def test_blocks_of_float32_in_any_order_and_height_are_the_matrix() -> None:
    matrix = drawn("less steep", "float64", 0).astype(numpy.float32)

    def blocks() -> Iterator[tuple[int, NDArray[numpy.floating]]]:
        yield 300, matrix[300:]
        yield 0, matrix[:1]
        yield 1, matrix[1:1]
        yield 1, matrix[1:300]

    verify(matrix, find_range(blocks, matrix.shape, 16))


def test_the_matrix_is_never_held() -> None:
    matrix = normal(1200, 1200, 0).astype(numpy.float32)
    tracemalloc.start()
    find(matrix, 8)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < matrix.nbytes


RULES: list[tuple[dict[str, Any], str]] = [
    ({}, "exactly one"),
    ({"rank": 3, "energy": 0.9}, "exactly one"),
    ({"rank": 0}, "no range"),
    ({"rank": 3, "max_rank": 0}, "no range"),
    ({"rank": 3, "noise": -1.0}, "no range"),
    ({"rank": 3, "noise": math.nan}, "no range"),
    ({"max_error": -0.1}, "no range"),
    ({"max_error": math.nan}, "no range"),
    ({"energy": 1.1}, "energy"),
    ({"energy": math.nan}, "energy"),
]


@pytest.mark.parametrize(("rule", "message"), RULES, ids=str)
def test_a_rule_that_says_nothing_is_refused(rule: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find(normal(50, 50, 0), **rule)


BLOCKS: dict[str, tuple[list[tuple[int, tuple[int, ...]]], str]] = {
    "rows are missing": ([(0, (30, 50))], "30 rows of 60"),
    "rows come twice": ([(0, (30, 50)), (30, (30, 50)), (0, (30, 50))], "90 rows of 60"),
    "too few columns": ([(0, (60, 49))], "none of a matrix"),
    "behind the last row": ([(31, (30, 50))], "none of a matrix"),
    "before the first row": ([(-1, (30, 50))], "none of a matrix"),
    "no matrix": ([(0, (60,))], "none of a matrix"),
}


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("rank", [1, 40])
def test_blocks_that_are_not_the_rows_are_refused(kind: str, rank: int) -> None:
    parts, message = BLOCKS[kind]
    with pytest.raises(ValueError, match=message):
        find_range(lambda: iter([(first, numpy.ones(shape)) for first, shape in parts]), (60, 50), rank)


@pytest.mark.parametrize("entry", [math.nan, math.inf, 1e200, 1e-200])
@pytest.mark.parametrize("rank", [1, 40])
def test_numbers_without_a_squared_norm_are_refused(entry: float, rank: int) -> None:
    matrix = numpy.zeros((60, 60))
    matrix[3, 4] = entry
    with pytest.raises(ValueError, match="a squared norm of"):
        find(matrix, rank)
