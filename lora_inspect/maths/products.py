"""Products of matrices, and what is known of one without building it. Tensor methods alone."""

from typing import Any


def squared_norm(up: Any, down: Any) -> Any:
    """‖up @ down‖² in the Frobenius norm, from the two (rank, rank) Gram matrices instead of the product."""
    return ((up.transpose(0, 1) @ up) * (down @ down.transpose(0, 1))).sum().clamp(min=0.0)


def row_wise(left: Any, right: Any) -> Any:
    """(n, p·q) with row i the Kronecker product of row i of `left` (n, p) with row i of `right` (n, q)."""
    return (left.unsqueeze(2) * right.unsqueeze(1)).flatten(1)
