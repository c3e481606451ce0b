"""A Linear with one low-rank change and DoRA's gain, whose backward pass autograd does not make up by itself.

The outputs are the largest tensors of a training step, so what counts is how often a pass walks over them and how
many of them are kept. Next to what autograd makes of the same forward,

- the input's gradient is summed inside the matrix product of `down`, and not from two tensors;
- the gain multiplies the outputs in place, and its gradient reads them back: an output is (total · gain + bias), so
  no total is kept beside it. The output itself is alive anyhow, in whatever reads it next;
- a half-precision input is kept as it is, and its float32 copy made again.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import half_precision, linear_product
from .kept_output import keep_output
from .linear_product import Product
from .row_blocks import column_products

# Rows whose gain is smaller are computed again: (output - bias) / gain would magnify the rounding of the output.
_MIN_GAIN = 1 / 16


def fused_linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    down: Tensor,
    up: Tensor,
    scale: float,
    gain: Tensor | None = None,
) -> Tensor:
    """gain · (input @ weightᵀ + scale · input @ downᵀ @ upᵀ) + bias, rounded to the weight's dtype.

    `input` is (tokens, in), `weight` (out, in), both of one plain dtype; `down` (rank, in), `up` (out, rank), `gain`
    (out,) or None for 1. Differentiable once, in all of them. Another layer may write over the output.
    """
    output: Tensor = _FusedLinear.apply(input, weight, bias, down, up, gain, scale)  # type: ignore[no-untyped-call]
    if gain is not None and output.requires_grad:
        output = keep_output(output)
    return output


def fused_gain(output: Tensor, change: Tensor, gain: Tensor, bias: Tensor | None) -> Tensor:
    """`linear_product.scaled_sum` for a base whose forward is its own affair: it cannot be computed again.

    One tensor of the output's size and dtype is kept for the backward pass, and none in float32.
    """
    result: Tensor = _FusedGain.apply(output, change, gain, bias)  # type: ignore[no-untyped-call]
    return result


class _Operands(NamedTuple):
    """What the backward pass needs, whether it works on all of the output's columns or on some."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None
    hidden: Tensor
    down: Tensor
    up: Tensor
    gain: Tensor | None


class _FusedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
        gain: Tensor | None,
        scale: float,
    ) -> Tensor:
        hidden = (input.to(down.dtype) @ down.t()).mul_(scale)
        products = [Product(hidden, up)]
        ctx.save_for_backward(*_Operands(input, weight, bias, hidden, down, up, gain))
        ctx.scale = scale
        ctx.output = None  # keep_output puts it here, on the way back
        if gain is None:
            return linear_product.lora_linear(input, weight, bias, products)
        return linear_product.dora_linear(input, weight, bias, products, gain, differentiable=False)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        operands = _Operands(*ctx.saved_tensors)
        input, weight, _, hidden, down, up, gain = operands
        output, ctx.output = ctx.output, None
        of_input = of_weight = of_bias = of_down = of_up = of_gain = None
        needs_input, needs_weight, needs_bias, needs_down, needs_up, needs_gain, _ = ctx.needs_input_grad
        # A trainer may run backward inside autocast; the forward was computed outside of it.
        with torch.autocast(gradient.device.type, enabled=False):
            if needs_bias:
                of_bias = gradient.sum(0)
            if needs_gain:
                of_gain = _gain_gradient(gradient, output, operands)
            # The gain goes into the smaller operand of every product, and never over the outputs.
            scaled_up = up if gain is None else up * gain.to(up.dtype)[:, None]
            wide = gradient.to(up.dtype)
            if needs_up:
                of_up = wide.t() @ hidden
                of_up = of_up if gain is None else of_up.mul_(gain.to(up.dtype)[:, None])
            of_hidden = (wide @ scaled_up).mul_(ctx.scale)
            if needs_down:
                of_down = of_hidden.t() @ input.to(of_hidden.dtype)
            if needs_input:
                of_input = _input_gradient(gradient, wide, weight, gain, of_hidden, down)
            if needs_weight:
                of_weight = half_precision.rounded(gradient.t(), input, weight.dtype)
                of_weight = of_weight if gain is None else of_weight.mul_(gain.to(weight.dtype)[:, None])
        return of_input, of_weight, of_bias, of_down, of_up, of_gain, None


class _FusedGain(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, change: Tensor, gain: Tensor, bias: Tensor | None) -> Tensor:
        total = linear_product.unbiased_sum(output, change, gain, bias)
        kept = total.to(output.dtype)
        ctx.save_for_backward(kept, gain)
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in (output, change, bias)]
        out = None if kept is total else total
        return linear_product.rescale(total, gain, bias, out).to(output.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        total, gain = ctx.saved_tensors
        of_output, of_change, of_bias = ctx.dtypes
        of_gain = None
        needs_output, needs_change, needs_gain, needs_bias = ctx.needs_input_grad
        if needs_gain and gain.dim() == 1:
            width = gain.shape[0]
            of_gain = column_products(gradient.reshape(-1, width), total.reshape(-1, width), None, gain.dtype)
        elif needs_gain:
            of_gain = (gradient.to(gain.dtype) * total).sum_to_size(gain.shape)
        scaled = gradient * gain
        return (
            scaled.to(of_output) if needs_output else None,
            scaled.to(of_change) if needs_change else None,
            of_gain,
            (gradient - scaled).sum_to_size(gain.shape).to(of_bias) if needs_bias else None,
        )


def _input_gradient(
    gradient: Tensor, wide: Tensor, weight: Tensor, gain: Tensor | None, of_hidden: Tensor, down: Tensor
) -> Tensor:
    """gradient · gain @ weight + of_hidden @ down, (tokens, in), rounded to the weight's dtype."""
    dtype = weight.dtype
    if not half_precision.is_served(weight.device, dtype):
        gradient, weight = wide, weight.to(wide.dtype)
    if gain is not None:
        gain = gain.to(weight.dtype)
        if gradient.shape[0] < weight.shape[1]:
            gradient = gradient * gain
        else:
            weight = weight * gain[:, None]
    if of_hidden.dtype == weight.dtype:
        return (gradient @ weight).addmm_(of_hidden, down).to(dtype)
    # The change is small beside the product, which is accumulated upon it and rounded last.
    return (of_hidden @ down).to(dtype).addmm_(gradient, weight)


def _gain_gradient(gradient: Tensor, output: Tensor | None, operands: _Operands) -> Tensor:
    """Σ gradient · total over the tokens, (out,); total is (output - bias) / gain, or computed again."""
    input, weight, bias, hidden, _, up, gain = operands
    assert gain is not None
    if output is None:
        total = linear_product.unrounded(input, weight, [Product(hidden, up)])
        return column_products(gradient, total, None, gain.dtype)
    result = column_products(gradient, output, bias, gain.dtype) / gain
    small = (gain.abs() < _MIN_GAIN).nonzero().squeeze(1)
    if small.numel():
        total = linear_product.unrounded(input, weight[small], [Product(hidden, up[small])])
        result[small] = column_products(gradient[:, small], total, None, gain.dtype)
    return result
