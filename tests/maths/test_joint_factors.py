"""A weight taken apart by a basis: by its inverse, and where it has none by the pseudo-inverse as PEFT cuts it off."""

import numpy as np
import pytest
import torch
from adapters import drawn

from lora_inspect.algorithms.on_demand.frod import Basis

SIZE = 6


def of_singular_values(*values):
    """An orthogonal matrix on both sides, with whole powers of two where the matrix has to be exactly singular."""
    left, right = (torch.linalg.qr(drawn(seed, SIZE, SIZE).double()).Q for seed in (1, 2))
    return left @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ right


@pytest.mark.numeric
def test_by_its_inverse():
    basis, rows = of_singular_values(3, 2, 1, 1, 0.5, 0.25), drawn(3, 4, SIZE).double()
    torch.testing.assert_close(Basis(basis).apart(rows) @ basis.T, rows, rtol=1e-10, atol=1e-10)


# PEFT's `pinv(V, rtol=1e-6)`; a row of zeros has elimination find that there is no inverse.
@pytest.mark.numeric
@pytest.mark.parametrize("least", [1.5e-6, 1.1e-6, 0.9e-6, 1e-9])
def test_without_an_inverse_small_singular_values_are_cut_off_where_peft_does(least):
    basis, rows = torch.diag(torch.tensor([1.0, 0.75, 0.5, 0.25, least, 0.0])).double(), drawn(3, 4, SIZE).double()
    inverse = np.linalg.pinv(basis.numpy(), rcond=1e-6)
    assert (float(np.abs(inverse).max()) > 1e5) == (least > 1e-6)
    np.testing.assert_allclose(Basis(basis).apart(rows).numpy(), rows.numpy() @ inverse.T, rtol=1e-9, atol=1e-12)
