"""What is known of a product of two thin matrices without building it. Tensor methods alone."""

from typing import Any


def squared_norm(up: Any, down: Any) -> Any:
    """‖up @ down‖² in the Frobenius norm, from the two (rank, rank) Gram matrices instead of the product."""
    return ((up.transpose(0, 1) @ up) * (down @ down.transpose(0, 1))).sum().clamp(min=0.0)
