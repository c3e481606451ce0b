"""What convolutions of any number of dimensions have in common."""

import torch.nn.functional as F
from torch import Tensor

_OPERATIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def convolve_pointwise(input: Tensor, matrix: Tensor) -> Tensor:
    """`matrix` (out, in) at every position of `input` (samples, in, *positions)."""
    positions = input.dim() - 2
    return _OPERATIONS[positions](input, matrix.view(*matrix.shape, *[1] * positions))
