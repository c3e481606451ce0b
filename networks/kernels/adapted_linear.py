"""A Linear with a change that need not be built, and its own backward pass.

A kernel knows one way to compute with the change. The backward pass keeps the input in its own dtype and the factors,
and computes their products again. With a gain, it also keeps one tensor of the output's size and dtype.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from . import fused_lora, half_precision
from .half_precision import HALF, column_products, without_autocast


class Needed(NamedTuple):
    """The requested gradients: of the input, of the base's weight, and of all or no factors."""

    input: bool
    weight: bool
    factors: bool


class Gradients(NamedTuple):
    """The requested gradients."""

    input: Tensor | None
    weight: Tensor | None
    factors: Sequence[Tensor | None]


class Kernel(Protocol):
    """A way to compute with delta (out, in), as a function of its factors, in the kernel's dtype."""

    def output(
        self, input: Tensor, weight: Tensor | None, bias: Tensor | None, factors: Sequence[Tensor], rounds: bool
    ) -> Tensor:
        """Return input @ (weight + delta)ᵀ + bias as a new tensor (tokens, out); None counts as 0.

        It has the kernel's dtype. `rounds` says that it may already be rounded once, to the dtype of `weight`.
        """

    def gradients(
        self, gradient: Tensor, input: Tensor, weight: Tensor | None, factors: Sequence[Tensor], needed: Needed
    ) -> Gradients:
        """Return the gradients for the gradient (tokens, out) of `output`."""

    def composed(self, input: Tensor, factors: Sequence[Tensor]) -> Tensor:
        """Return input @ deltaᵀ in single operations, for recording or transformation."""


def adapted_linear(
    kernel: Kernel,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    gain: Tensor | None,
    factors: Sequence[Tensor],
) -> Tensor:
    """Return gain · (input @ (weight + delta)ᵀ) + bias, rounded once to the weight's dtype.

    `input` is (tokens, in), `weight` (out, in) of the same plain dtype. Without a weight the result is the change only,
    and is not rounded. `gain` is (out,) or None for 1. Differentiable once, in all of them.
    """
    output: Tensor = _AdaptedLinear.apply(kernel, input, weight, bias, gain, *factors)  # type: ignore[no-untyped-call]
    return output


class _AdaptedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        kernel: Kernel,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        gain: Tensor | None,
        *factors: Tensor,
    ) -> Tensor:
        ctx.kernel = kernel
        with without_autocast(input):
            total = kernel.output(input, weight, bias if gain is None else None, factors, rounds=gain is None)
            dtype = total.dtype if weight is None else weight.dtype
            kept = None
            if gain is not None:
                kept = total.to(dtype)
                total = fused_lora.rescale(total, gain, bias, None if kept is total else total)
            ctx.save_for_backward(input, weight, bias, gain, kept, *factors)
            return total.to(dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, bias, gain, kept, *factors = ctx.saved_tensors
        _, needs_input, needs_weight, needs_bias, needs_gain, *needs_factors = ctx.needs_input_grad
        of_bias = of_gain = None
        with without_autocast(gradient):
            gradient = gradient.contiguous()
            if needs_bias:
                of_bias = gradient.sum(0).to(bias.dtype)
            if needs_gain:
                of_gain = column_products(gradient, kept, None, gain.dtype)
            if gain is not None:
                gradient = gradient * gain
            needed = Needed(needs_input, needs_weight, any(needs_factors))
            found = ctx.kernel.gradients(gradient, input, weight, factors, needed)
        operands, gradients = (input, weight, *factors), (found.input, found.weight, *found.factors)
        of_input, of_weight, *of_factors = (
            None if result is None else result.to(operand.dtype)
            for operand, result in zip(operands, gradients, strict=True)
        )
        return None, of_input, of_weight, of_bias, of_gain, *of_factors


def base_upon(change: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None, rounds: bool) -> Tensor:
    """Return change + input @ weightᵀ + bias (tokens, out).

    It is in the memory of `change`, or in the dtype of the weight. If half precision is accumulated fast and `rounds`
    is set, the change is rounded first and the sum afterwards. The loss of the change relative to the output's rounding
    is as small as the change relative to the output.
    """
    if bias is not None:
        change = change.add_(bias)
    if rounds and half_precision.accumulates_fast(input):
        return change.to(weight.dtype).addmm_(input, weight.t())
    if input.dtype in HALF:
        return change.add_(_half_product(input, weight))
    return change.addmm_(input.to(change.dtype), weight.to(change.dtype).t())


def base_gradient_upon(change: Tensor, gradient: Tensor, weight: Tensor) -> Tensor:
    """Return change + gradient @ weight (tokens, in), stored or rounded as by `base_upon`."""
    if weight.dtype in HALF and half_precision.is_served(weight.device, weight.dtype):
        gradient = gradient.to(weight.dtype)
        if half_precision.accumulates_fast(gradient):
            return change.to(weight.dtype).addmm_(gradient, weight)
        return change.add_(_half_product(gradient, weight.t()))
    return change.addmm_(gradient.to(change.dtype), weight.to(change.dtype))


def weight_gradient(gradient: Tensor, input: Tensor, dtype: torch.dtype) -> Tensor:
    """Return gradientᵀ @ input (out, in) in `dtype`."""
    return gradient.to(dtype).t() @ input.to(dtype)


def _half_product(left: Tensor, right: Tensor) -> Tensor:
    """Return left @ rightᵀ, unrounded if the device supports it."""
    return half_precision.unrounded(left, right) if half_precision.keeps_float32(left) else left @ right.t()
