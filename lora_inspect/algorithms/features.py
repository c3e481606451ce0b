"""How many features the weight has that an adapter changes, as far as the shapes of its tensors tell.

Each function takes the shapes of one module's tensors by role and returns (out features, in features·kernel), None
for what they leave open; it never raises, whatever the shapes are. They serve algorithms that are recognised but not
computed, so nothing has checked these shapes before.
"""

from collections.abc import Sequence
from math import prod

from lora_inspect.algorithms.record import Features, Shapes

UNKNOWN: Features = (None, None)


def lokr(shapes: Shapes) -> Features:
    """w1 (o1, i1) ⊗ w2 (o2, i2·kernel), each whole or a product; out = o1·o2, in = i1·i2.

    A Tucker core t2 (r, r, *kernel) leaves w2_a as (r, o2) and w2_b as (r, i2), so that the kernel counts apart.
    """
    if "row_offset" in shapes:  # one of several parts of a fused layer
        return UNKNOWN
    out1, in1 = _whole_or_product(shapes, "lokr_w1")
    if "lokr_t2" in shapes:
        out2, in2 = _size(shapes, "lokr_w2_a", 1), _size(shapes, "lokr_w2_b", 1)
        in2 = _times(in2, _columns(shapes, "lokr_t2", 2))
    else:
        out2, in2 = _whole_or_product(shapes, "lokr_w2")
    return _times(out1, out2), _times(in1, in2)


def glora(shapes: Shapes) -> Features:
    """b1 (out, r) and b2 (r, in·kernel), or in older files b2 (out, r) and b1 (r, in·kernel)."""
    forms = [
        (_size(shapes, up, 0), _columns(shapes, down, 1))
        for up, down in (("b1.weight", "b2.weight"), ("b2.weight", "b1.weight"))
        if _size(shapes, up, 1) == _size(shapes, down, 0)
    ]
    return forms[0] if len(forms) == 1 else UNKNOWN


def oft(shapes: Shapes) -> Features:
    """Blocks (n, b, b) that rotate the rows, or BOFT's stages (m, n, b, b); out = n·b."""
    shape = _shape(shapes, "oft_blocks")
    return (shape[-3] * shape[-2], None) if len(shape) in (3, 4) and shape[-1] == shape[-2] else UNKNOWN


def ia3(shapes: Shapes) -> Features:
    """A factor for each row, as (out, 1), or for each column, as (1, in)."""
    shape = _shape(shapes, "ia3_l")
    if len(shape) != 2 or shape.count(1) != 1:
        return UNKNOWN
    return (shape[0], None) if shape[1] == 1 else (None, shape[1])


def replaced(shapes: Shapes) -> Features:
    """A tensor in the place of the weight."""
    return _size(shapes, "set_weight", 0), _columns(shapes, "set_weight", 1)


def mlx(shapes: Shapes) -> Features:
    """lora_a (in, r) and lora_b (r, out)."""
    return _size(shapes, "lora_b", 1), _size(shapes, "lora_a", 0)


def _whole_or_product(shapes: Shapes, role: str) -> Features:
    left, right = (role, role) if role in shapes else (f"{role}_a", f"{role}_b")
    return _size(shapes, left, 0), _columns(shapes, right, 1)


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


def _times(left: int | None, right: int | None) -> int | None:
    return None if left is None or right is None else left * right
