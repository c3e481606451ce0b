"""Iso-C: the sum with equal singular values."""

from collections.abc import Sequence

import numpy

from lora_inspect.algebra.linear.factors import Array
from lora_inspect.algebra.methods.record import Method, MethodSettings, total, truncated_svd


def merge(cores: Sequence[Array], settings: MethodSettings, name: str) -> Array:
    """Return U · mean(S) · Vᵀ of the sum's SVD, over the values that are more than rounding."""
    left, values, right = truncated_svd(total(cores), settings.rounding)
    if not values.size:
        return numpy.zeros_like(cores[0])
    found: Array = (left * values.mean()) @ right
    return found


METHOD = Method(
    name="iso-c",
    title="Iso-C",
    paper="Marczak et al. 2025, arXiv 2502.04959",
    formula="U mean(S) Vᵀ with U S Vᵀ = Σ D_i",
    merge=merge,
    has_directions=False,
    conventions=(
        "The mean is over the numerical rank of the sum. The paper's is over all singular values of a weight, most of "
        "which are 0 for a LoRA, so that its λ means another strength."
    ),
)
