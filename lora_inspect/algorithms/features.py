"""How many features the weight has that an adapter changes, as far as the shapes of its tensors tell.

Each function takes the shapes of one module's tensors by role and returns (out features, in features·kernel), None
for what they leave open; it never raises, whatever the shapes are. They serve algorithms that are recognised but not
computed, so nothing has checked these shapes before.
"""

from lora_inspect.algorithms.record import Features, Shapes


def mlx(shapes: Shapes) -> Features:
    """lora_a (in, r) and lora_b (r, out)."""
    return _size(shapes, "lora_b", 1), _size(shapes, "lora_a", 0)


def _size(shapes: Shapes, role: str, axis: int) -> int | None:
    """A dimension of a matrix or a kernel, None where there is no such tensor."""
    shape = shapes.get(role, ())
    return shape[axis] if len(shape) > 1 else None
