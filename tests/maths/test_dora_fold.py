"""DoRA over the norms of V and of W: folded in blocks, and one magnitude from the other, against float64 formulas."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lora_inspect.maths import dora
from lora_inspect.maths.change import added
from lora_inspect.maths.dora_fold import DecomposedRows, MagnitudeValues, decomposed, magnitude_of

pytestmark = pytest.mark.numeric

SIZES = st.integers(1, 7)
MULTIPLIERS = st.sampled_from([1.0, 0.5, -2.0])
# A step of rows, and a seed.
STEPS, SEEDS = st.integers(1, 4), st.integers(0, 2**31)
EPS = 2.0**-23
RULES = dora.MULTIPLIER_RULES


def layer(rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    weight, delta = (torch.randn(rows, columns, dtype=torch.float64, generator=generator) for _ in range(2))
    return weight, delta, generator


def blocks(matrix, step):
    return [(first, matrix[first : first + step]) for first in range(0, len(matrix), step)]


@given(SIZES, SIZES, STEPS, SEEDS, st.sampled_from((dora.OUTPUT, dora.INPUT)), MULTIPLIERS, st.sampled_from(RULES))
def test_over_the_norms_of_the_base(rows, columns, step, seed, axis, multiplier, rule):
    weight, delta, generator = layer(rows, columns, seed)
    length = rows if axis == dora.OUTPUT else columns
    values = torch.rand(length, dtype=torch.float64, generator=generator) + 0.5
    change = decomposed(added(delta, 1.0), MagnitudeValues(values, rule, EPS, dora.OF_BASE), axis, 1)
    found = weight.clone()
    settled = change.settled(lambda: iter((first, own.clone()) for first, own in blocks(weight, step)), multiplier)
    for first, own in blocks(found, step):
        settled.fold(own, first, multiplier)
    over = (1, (rows, 1)) if axis == dora.OUTPUT else (0, (1, columns))
    gain = (values / (weight.square().sum(over[0]).sqrt() + EPS)).reshape(over[1])
    expected = {
        dora.INSIDE: (weight + multiplier * delta) * gain,
        dora.INTERPOLATE: weight + multiplier * ((weight + delta) * gain - weight),
        dora.LYCORIS: (weight + delta) * (multiplier * (gain - 1) + 1),
    }[rule]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@given(SIZES, SIZES, STEPS, SEEDS, st.booleans())
def test_a_magnitude_over_the_other_norms_makes_the_same_weight(rows, columns, step, seed, to_base):
    weight, delta, generator = layer(rows, columns, seed)
    values = torch.rand(rows, dtype=torch.float64, generator=generator) + 0.5
    own, other = dora.SPELLINGS[".dora_layer.weight"], dora.OVER_BASE
    own, other = (own, other) if to_base else (other, own)
    change = DecomposedRows(added(delta, 1.0), magnitude_of(own, values))
    found = torch.cat([change.values_of(magnitude_of(other, None), part, at) for at, part in blocks(weight, step)])
    of_sum, of_base = (weight + delta).square().sum(1).sqrt().clamp(min=1e-6), weight.square().sum(1).sqrt() + EPS
    ratio = of_base / of_sum if to_base else of_sum / of_base
    torch.testing.assert_close(found, values * ratio, rtol=1e-12, atol=0)
    once, again = weight.clone(), weight.clone()
    change.fold(once, 0, 1.0)
    DecomposedRows(added(delta, 1.0), magnitude_of(other, found)).fold(again, 0, 1.0)
    torch.testing.assert_close(once, again, rtol=1e-12, atol=1e-12)


def test_the_transposed_weight_has_the_norms_of_its_columns():
    weight, delta, generator = layer(3, 5, 0)
    values = torch.rand(3, dtype=torch.float64, generator=generator) + 0.5
    change = decomposed(added(delta, 1.0), magnitude_of(dora.OVER_BASE, values), dora.OUTPUT, 1)
    found, turned = weight.clone(), weight.t().contiguous()
    change.fold(found, 0, 1.0)
    stored = change.transposed().settled(lambda: iter([(0, turned.clone())]), 1.0)
    stored.fold(turned, 0, 1.0)
    torch.testing.assert_close(turned.t(), found, rtol=1e-12, atol=1e-12)
