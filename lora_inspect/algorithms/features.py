"""How many features the weight has that an adapter changes, as far as the shapes of its tensors tell.

Each function takes the shapes of one module's tensors by role and returns (out features, in features·kernel), None
for what they leave open; it never raises, whatever the shapes are. They serve algorithms that are recognised but not
computed, so nothing has checked these shapes before.
"""

from collections.abc import Sequence
from math import prod

from lora_inspect.algorithms.record import Features, Shapes

UNKNOWN: Features = (None, None)


def replaced(shapes: Shapes) -> Features:
    """A tensor in the place of the weight."""
    return _size(shapes, "set_weight", 0), _columns(shapes, "set_weight", 1)


def mlx(shapes: Shapes) -> Features:
    """lora_a (in, r) and lora_b (r, out)."""
    return _size(shapes, "lora_b", 1), _size(shapes, "lora_a", 0)


def _shape(shapes: Shapes, role: str) -> Sequence[int]:
    return shapes.get(role, ())


def _size(shapes: Shapes, role: str, axis: int) -> int | None:
    """A dimension of a matrix or a kernel, None where there is no such tensor."""
    shape = _shape(shapes, role)
    return shape[axis] if len(shape) > 1 else None


def _columns(shapes: Shapes, role: str, first: int) -> int | None:
    """The product of the dimensions from `first` on, None where there is no such tensor."""
    shape = _shape(shapes, role)
    return prod(shape[first:]) if len(shape) > first else None
