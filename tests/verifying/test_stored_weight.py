"""Rows as they are stored: the noise that is stated for them is the variance of real rounding."""

import pytest
import torch

from lora_inspect.maths.tensors import STORED_DTYPES
from lora_inspect.verifying.shares import StoredRows

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("scale", [None, 0.013])
@pytest.mark.parametrize("dtype", ["F16", "BF16", "F8_E4M3", "F8_E5M2"])
def test_the_noise_is_the_variance_of_rounding(dtype, scale):
    """Rounding of numbers of any size in the middle of the type, whose variance 40,000 of them tell to 2%."""
    exact = torch.randn(200, 200, generator=torch.Generator().manual_seed(0)) * 3
    scales = None if scale is None else torch.full_like(exact, scale)
    codes = exact if scales is None else exact / scales * 0.1
    values = codes.to(STORED_DTYPES[dtype]).float()
    wanted, stored = (codes, values) if scales is None else (codes * scales, values * scales)
    rows = StoredRows(0, stored, dtype, scales)
    # A number in the middle of two may go the other way, once it was divided by its scale.
    assert (rows.rounded(wanted) == stored).float().mean() >= (0.999 if scale else 1)
    variance = float((stored - wanted).square().mean())
    # What was rounded up to a power of two is taken for a number of the wider distance: an eighth of those of E5M2.
    assert float(rows.noise().mean()) == pytest.approx(variance, rel=0.2 if dtype == "F8_E5M2" else 0.1)


def test_every_row_is_there_with_its_scale():
    values, scale = torch.arange(20.0).reshape(10, 2), torch.arange(10.0)[:, None].expand(10, 2)
    rows = StoredRows(0, values, "F8_E4M3", scale).every(3)
    assert rows.values[:, 0].tolist() == [0, 6, 12, 18]
    assert rows.scale[:, 0].tolist() == [0, 3, 6, 9]


def test_float32_has_the_noise_of_arithmetic_in_float32_as_well():
    values = torch.full((2, 2), 1.5)
    assert StoredRows(0, values, "F32").noise()[0, 0] == pytest.approx(5 * 2.0**-46 / 12)
    assert StoredRows(0, values, "BF16").noise()[0, 0] == pytest.approx(2.0**-14 / 12, rel=1e-6)
