"""alpha and rank to scale, with numbers worked out by hand."""

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_inspect.maths.scaling import neutral_alpha, scale_of, standard_alpha, to_float32

# alpha, rank, alpha/rank, alpha/sqrt(rank)
BY_HAND = [(8.0, 16, 0.5, 2.0), (16.0, 4, 4.0, 8.0), (1.0, 1, 1.0, 1.0), (-3.0, 9, -1 / 3, -1.0), (0.0, 4, 0.0, 0.0)]


@pytest.mark.parametrize(("alpha", "rank", "standard", "stabilised"), BY_HAND)
def test_the_two_rules(alpha, rank, standard, stabilised):
    assert scale_of(alpha, rank, rslora=False) == standard
    assert scale_of(alpha, rank, rslora=True) == stabilised


@pytest.mark.parametrize(("rank", "standard", "stabilised"), [(16, 16.0, 4.0), (1, 1.0, 1.0), (8, 8.0, math.sqrt(8))])
def test_the_neutral_alpha_makes_the_scale_one(rank, standard, stabilised):
    assert neutral_alpha(rank, rslora=False) == standard
    assert neutral_alpha(rank, rslora=True) == stabilised


@given(st.floats(-1e6, 1e6, width=32).filter(lambda alpha: alpha == 0 or abs(alpha) > 1e-30), st.integers(1, 4096))
def test_the_standard_alpha_of_rslora_has_the_same_scale(alpha, rank):
    converted = standard_alpha(alpha, rank, rslora=True)
    assert converted == to_float32(converted)
    assert scale_of(converted, rank, rslora=False) == pytest.approx(alpha / rank**0.5, rel=2**-23, abs=0)


@given(st.floats(-1e6, 1e6, width=32), st.integers(1, 64))
def test_it_is_exact_where_the_root_is_whole(alpha, root):
    assert standard_alpha(alpha, root * root, rslora=True) == struct.unpack("<f", struct.pack("<f", alpha * root))[0]
    assert standard_alpha(alpha, root * root, rslora=False) == alpha


def test_an_alpha_beyond_float32_raises_instead_of_becoming_infinite():
    with pytest.raises(OverflowError):
        standard_alpha(3e38, 4, rslora=True)
