"""Formulas that numpy computes where torch is not installed: each makes of a case what it makes with torch."""

import numpy
import pytest
import torch
from every_case import CASES, WrittenCase

from lora_inspect.algebra.numpy_tensors import NumpyTensor, read_tensors
from lora_inspect.algorithms import every
from lora_inspect.converting.steps.part import read_operands

pytestmark = pytest.mark.numeric
NAMES = ("loha", "lokr", "lora", "lora_bias", "lora_embedding", "lora_embedding_along_tokens", "mlx")
EVERY = [
    pytest.param(case, id=f"{name}: {case.id}", marks=() if case in (cases[0], cases[-1]) else pytest.mark.slow)
    for name, cases in CASES.items()
    if name in NAMES
    for case in cases
]


def assert_equal(found, meant):
    numpy.testing.assert_allclose(numpy.asarray(found), meant.numpy(), rtol=1e-12, atol=1e-12)


def test_numpy_computes_these():
    assert {name for name, one in every().items() if one.formula and one.formula.thin} == set(NAMES)


@pytest.mark.parametrize("case", EVERY)
def test_numpy_makes_what_torch_makes(case, tmp_path):
    contributions = WrittenCase(case, tmp_path).contributions
    computed = [one for one in contributions if one.formula.thin]
    assert computed
    for one in computed:
        arrays, tensors = read_tensors(one), read_operands(one, torch.float64)
        if one.formula.low_rank and (pair := one.formula.low_rank(arrays)) is not None:
            assert one.formula.thin({role: info.shape for role, info in one.operands.items()}) == pair[1].shape[0]
            assert_equal(pair[0] @ pair[1], torch.matmul(*one.formula.low_rank(tensors)))
        how = one.known_scale, one.alpha
        rows = numpy.random.default_rng(0).normal(size=(one.known_shape[0], int(numpy.prod(one.known_shape[1:]))))
        array, tensor = NumpyTensor.of(rows.copy()), torch.from_numpy(rows)
        one.formula.change(arrays, *how, **one.settings).fold(array, 0, -0.7)
        one.formula.change(tensors, *how, **one.settings).fold(tensor, 0, -0.7)
        assert_equal(array, tensor)
