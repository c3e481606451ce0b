"""TSV-M: the singular vectors of all inputs, made orthogonal to each other."""

from collections.abc import Sequence

import numpy

from lora_inspect.algebra.linear.factors import Array
from lora_inspect.algebra.methods.record import Method, MethodSettings, polar, truncated_svd


def merge(cores: Sequence[Array], settings: MethodSettings, name: str) -> Array:
    """Return polar([U_i]) · diag([S_i]) · polar([V_i])ᵀ; the rows are orthonormal with more vectors than rows."""
    parts = [truncated_svd(core, settings.rounding) for core in cores]
    values = numpy.concatenate([own for _, own, _ in parts])
    if not values.size:
        return numpy.zeros_like(cores[0])
    left, right = numpy.hstack([own for own, _, _ in parts]), numpy.vstack([own for _, _, own in parts])
    found: Array = (polar(left) * values) @ polar(right)
    return found


METHOD = Method(
    name="tsv",
    title="TSV-M",
    paper="Gargiulo et al. 2024, arXiv 2412.00081",
    formula="polar([U_1 … U_T]) diag(S_1 … S_T) polar([V_1 … V_T])ᵀ",
    merge=merge,
    conventions=(
        "Each input keeps all its directions; the paper keeps a T-th of those of the full weight, which for a LoRA are "
        "directions of no length, whose vectors are rounding."
    ),
)
