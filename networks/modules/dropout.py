"""The dropouts of an adapter, beside torch's own on single activations."""

import sys
from types import FrameType

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx


def is_training_step() -> bool:
    """Whether the gradient of what is computed here is wanted, now or in a second forward.

    Trainers sample without gradients while the adapter is in training mode. Reentrant checkpointing runs the first of
    its two forwards without gradients as well, and has to draw there what it will draw in the second.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return torch.is_grad_enabled()
    # Beside an autograd.Function, only inference_mode switches forward-mode gradients off too.
    if torch._C._is_fwd_grad_enabled() or torch.is_inference_mode_enabled():
        return False
    return _is_inside_differentiated_function(sys._getframe(1))


def _is_inside_differentiated_function(frame: FrameType | None) -> bool:
    """Whether `frame` was called by the forward of an autograd.Function with an input that needs a gradient."""
    while frame is not None:
        if frame.f_code.co_varnames[:1] == ("ctx",):
            context = frame.f_locals.get("ctx")
            if isinstance(context, FunctionCtx) and any(context.needs_input_grad):  # type: ignore[attr-defined]
                return True
        frame = frame.f_back
    return False


def draws_skip(probability: float) -> bool:
    """Whether this call leaves the whole adapter out. torch's generator, so that checkpointing draws it again."""
    return bool(torch.rand((), dtype=torch.float32, device="cpu") < probability)


def drop_ranks(hidden: Tensor, probability: float, rank_axis: int) -> Tensor:
    """`hidden` with each rank of each sample zeroed with `probability`, the rest scaled by 1/(1 - probability).

    `rank_axis` is negative: -1 after a Linear, in front of the positions after a convolution. The mask is shared
    over all positions. The first axis holds the samples, unless it is the rank axis itself.
    """
    shape = [1] * hidden.dim()
    shape[0] = hidden.shape[0]
    shape[rank_axis] = hidden.shape[rank_axis]
    kept = torch.rand(shape, dtype=torch.float32, device=hidden.device) >= probability
    return hidden * (kept.to(hidden.dtype) / (1.0 - probability))
