"""Factors with a scale in them: the dtype that holds every product."""

import pytest
import torch

from lora_inspect.converting.steps.part import Factor, joined, scaled

TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def factor(values: list[float], dtype: str) -> Factor:
    return Factor(torch.tensor(values, dtype=torch.float64), dtype)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("scale", [2.0, 0.5, -1.0, 0.0])
def test_a_product_that_the_dtype_holds_stays_in_it(dtype, scale):
    found = scaled(factor([1.0, -1.5, 0.25], dtype), scale)
    assert found.dtype == dtype
    assert found.values.tolist() == [scale, -1.5 * scale, 0.25 * scale]


@pytest.mark.parametrize(("dtype", "wide"), [("F64", "F64"), ("F32", "F32"), ("F16", "F32"), ("BF16", "F32")])
def test_any_other_is_rounded_once_to_the_next_that_is_wide_enough(dtype, wide):
    values = [1.0, -1.5, 0.25]
    found = scaled(factor(values, dtype), 1 / 3)
    expected = torch.tensor([value / 3 for value in values], dtype=torch.float64).to(TYPES[wide]).double()
    assert found.dtype == wide
    assert torch.equal(found.values, expected)


def test_codes_of_eight_bits_stay_only_where_nothing_is_multiplied():
    codes = factor([1.0, -1.5], "F8_E4M3")
    assert scaled(codes, 1.0) == codes
    assert scaled(codes, 2.0).dtype == "F32"
    assert scaled(codes, 2.0).values.tolist() == [2.0, -3.0]


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [(["F16"], "F16"), (["BF16", "BF16"], "BF16"), (["F16", "BF16"], "F32"), (["F16", "F64"], "F64")],
)
def test_the_dtype_that_holds_all(dtypes, expected):
    assert joined([factor([1.0], dtype) for dtype in dtypes]) == expected
