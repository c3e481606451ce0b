"""The flattened factors against convolutions and sums written out, in float64."""

import pytest
import torch
from torch.nn import functional

from lora_inspect.algorithms import lora

pytestmark = pytest.mark.numeric


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


@pytest.mark.parametrize("kernel", [(), (1,), (3,), (1, 1), (3, 2), (1, 2, 2)])
def test_a_convolution_of_the_delta_is_up_after_down(kernel):
    down, up = random(3, 4, *kernel), random(5, 3, *[1] * len(kernel))
    flat_up, flat_down = lora.matrices({"down": down, "up": up})
    delta = (flat_up @ flat_down).reshape(5, 4, *kernel)
    x = random(2, 4, *[6] * len(kernel))
    convolve = [functional.linear, functional.conv1d, functional.conv2d, functional.conv3d][len(kernel)]
    torch.testing.assert_close(convolve(x, delta), convolve(convolve(x, down), up))


def test_a_tucker_core_is_the_sum_over_both_ranks():
    up, mid, down = random(5, 3, 1, 1), random(3, 2, 3, 3), random(2, 4, 1, 1)
    flat_up, flat_down = lora.matrices({"up": up, "mid": mid, "down": down})
    expected = torch.zeros(5, 4, 3, 3, dtype=torch.float64)
    for p in range(3):
        for q in range(2):
            expected += torch.einsum("o,xy,i->oixy", up[:, p, 0, 0], mid[p, q], down[q, :, 0, 0])
    torch.testing.assert_close((flat_up @ flat_down).reshape(expected.shape), expected)


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ({"down": (2, 4), "up": (5, 2)}, (5, 4)),
        ({"down": (2, 4, 3, 3), "up": (5, 2, 1, 1)}, (5, 4, 3, 3)),
        ({"down": (2, 4, 1, 1), "up": (5, 2, 1, 1), "mid": (2, 2, 3, 3)}, (5, 4, 3, 3)),
    ],
)
def test_shapes_give_the_weight_and_the_rank(shapes, expected):
    assert lora.check(shapes) is None
    assert lora.weight_shape(shapes) == expected
    assert lora.rank(shapes) == 2


@pytest.mark.parametrize(
    ("shapes", "says"),
    [
        ({"down": (2, 4), "up": (5, 3)}, "rank 2 and up"),
        ({"down": (4,), "up": (5, 2)}, "two dimensions"),
        ({"down": (2, 4), "up": (5, 2, 3, 3)}, "has a kernel"),
        ({"down": (0, 4), "up": (5, 0)}, "empty"),
        ({"down": (2, 4, 1, 1), "up": (5, 2, 1, 1), "mid": (3, 2, 3, 3)}, "does not match"),
        ({"down": (2, 4, 3, 3), "up": (5, 2, 1, 1), "mid": (2, 2, 3, 3)}, "has one too"),
    ],
)
def test_wrong_shapes_are_named(shapes, says):
    assert says in lora.check(shapes)
