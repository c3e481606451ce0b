"""The dropouts of an adapter, beside torch's own on single activations."""

import torch
from torch import Tensor


def draws_skip(probability: float) -> bool:
    """Whether this call leaves the whole adapter out. torch's generator, so that checkpointing draws it again."""
    return probability > 0 and bool(torch.rand(()) < probability)


def drop_ranks(hidden: Tensor, probability: float, rank_axis: int) -> Tensor:
    """`hidden` with each rank of each sample zeroed with `probability`, the rest scaled by 1/(1 - probability).

    `rank_axis` is negative: -1 after a Linear, in front of the positions after a convolution. The mask is shared
    over all positions. The first axis holds the samples, unless it is the rank axis itself.
    """
    shape = [1] * hidden.dim()
    shape[0] = hidden.shape[0]
    shape[rank_axis] = hidden.shape[rank_axis]
    kept = torch.rand(shape, device=hidden.device) >= probability
    return hidden * (kept.to(hidden.dtype) / (1.0 - probability))
