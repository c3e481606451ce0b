"""Which axis of a weight a magnitude belongs to."""

import pytest

from lora_inspect.maths import dora

LINEAR, KERNEL, SQUARE = (5, 7), (5, 7, 3, 3), (6, 6)
SCALE, LAYER, VECTOR = (
    dora.SPELLINGS[name] for name in (".dora_scale", ".dora_layer.weight", ".lora_magnitude_vector")
)


@pytest.mark.parametrize(
    ("spelling", "shape", "changed", "axis"),
    [
        (LAYER, (5,), LINEAR, dora.OUTPUT),
        (VECTOR, (1, 5, 1, 1), KERNEL, dora.OUTPUT),
        (LAYER, (7,), LINEAR, None),
        (VECTOR, (1, 7, 1, 1), KERNEL, None),
        (LAYER, (), (1, 7), dora.OUTPUT),
        (LAYER, (1,), LINEAR, None),
        (SCALE, (5, 1), LINEAR, dora.OUTPUT),
        (SCALE, (5, 1, 1, 1), KERNEL, dora.OUTPUT),
        (SCALE, (1, 7), LINEAR, dora.INPUT),
        (SCALE, (1, 7, 1, 1), KERNEL, dora.INPUT),
        # Of a square weight the shape alone tells the axes apart.
        (SCALE, (6, 1), SQUARE, dora.OUTPUT),
        (SCALE, (1, 6), SQUARE, dora.INPUT),
        (SCALE, (5,), LINEAR, None),
        (SCALE, (7, 1), LINEAR, None),
        (SCALE, (1, 5), LINEAR, None),
        (SCALE, (5, 7), LINEAR, None),
        (SCALE, (5, 1, 3), (5, 7, 3), None),
        (SCALE, (5, 7, 1), (5, 7, 3), None),
        (SCALE, (2, 7), LINEAR, None),
        (SCALE, (1, 7, 3), (5, 7, 3), None),
    ],
)  # fmt: skip
def test_the_axis_of_a_magnitude(spelling, shape, changed, axis):
    assert dora.axis_of(spelling, shape, changed) == axis
