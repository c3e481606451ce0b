"""The output of a Function that its backward pass reads back, which other layers may write over all the same.

A plain Linear may be followed by what works in place, an activation for one. Autograd would refuse the whole backward
pass then, if the Function kept the output among its own tensors.
"""

from typing import Any

import torch
from torch import Tensor


def keep_output(output: Tensor) -> Tensor:
    """Hands the output of a Function on, and in the backward pass to the Function before, if it is as it was.

    It is there as `ctx.output` then, which the Function has to set to None in its forward.
    """
    result: Tensor = _KeptOutput.apply(output)  # type: ignore[no-untyped-call]
    return result


class _KeptOutput(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor) -> Tensor:
        ctx.mark_dirty(output)
        ctx.save_for_backward(output)
        ctx.version = output._version + 1  # the mark counts as a write
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        before = ctx.next_functions[0][0]
        try:
            (output,) = ctx.saved_tensors
        except RuntimeError:  # written over, or a second backward pass, which the node before refuses as well
            return gradient
        # Where checkpointing or offloading kept the output, it is for us to compare versions.
        if output._version <= ctx.version:
            before.output = output.detach()
        return gradient
