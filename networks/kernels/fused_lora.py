"""A Linear with low-rank changes and DoRA's gain, in one rounding and few passes over the output.

The outputs are the largest tensors of a training step, so the passes over them and the number of kept ones count.
The backward pass is written by hand. Compared with that of autograd for the same forward,

- the input's gradient is summed inside the matrix product of `down`, and not from two tensors;
- the gain multiplies the outputs in place, and its gradient reads them back: an output is (total · gain + bias), so no
  total is kept. The output itself is alive anyway, since the next operation reads it;
- a half-precision input is kept in its own dtype, and its float32 copy is made again.

In float32 the change is added inside the matrix product of its last factor, so no second output exists.

A half-precision Linear rounds its own output. Adding a float32 change to it and rounding again makes the mean error
1.37 times that of the Linear. So the product stays in float32 until everything is added, or one product accumulates
everything. `unrounded` and `prolonged_linear` do this, each on the devices that support it.

In bfloat16 the sum of two products is one product of prolonged matrices,

    input @ weightᵀ + hidden @ upᵀ = [input | hidden] @ [weight | up]ᵀ,

which the processor rounds once. The float32 factors are split into bfloat16 numbers, x = x₁ + x₂ + δ with |δ| ≤ 2⁻¹⁶
|x|. The parts [x₁ x₁ x₂] and [y₁ y₂ y₁] give x · y except for 3 · 2⁻¹⁶ |x · y|. The rounding of the output, up to 2⁻⁸
of it, hides that: errors of both kinds add up in squares.

The backward pass reads an output, but other layers may still write over it: an activation may work in place. If the
Function kept the output among its own tensors, autograd would then refuse the whole backward pass.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import half_precision
from .half_precision import HALF, column_products, rounded, split, without_autocast

_MULTIPLE = 32  # of columns: rows that begin at a cache line
# Below, a second product costs less than a copy of the weight.
FEWEST_TOKENS = 64


def prolonged_linear(
    input: Tensor, weight: Tensor, bias: Tensor | None, products: Sequence[tuple[Tensor, Tensor]]
) -> Tensor:
    """Return input @ weightᵀ + bias + change in bfloat16.

    That is the dtype of `input` (tokens, in) and `weight` (out, in). Each product is (hidden, up), (tokens, rank) and
    (rows, rank); their rows together are those of `weight`.
    """
    factors = [factor for product in products for factor in product]
    result: Tensor = _Prolonged.apply(input, weight, bias, *factors)  # type: ignore[no-untyped-call]
    return result


class _Prolonged(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, *factors: Tensor) -> Tensor:
        ctx.save_for_backward(input, weight, *factors)
        ctx.bias_dtype = None if bias is None else bias.dtype
        hiddens, ups = factors[::2], factors[1::2]
        left, right = [input], [weight]
        first = 0
        for hidden, up in zip(hiddens, ups, strict=True):
            high, low = split(hidden)
            left += [high, high, low]
            high, low = split(up)
            rows = torch.cat([high, low, high], dim=1)
            right.append(_between_zeros(rows, first, weight.shape[0]))
            first += up.shape[0]
        if bias is not None:
            ones = input.new_ones(input.shape[0], 1)
            left += [ones, ones]
            right += [part[:, None] for part in split(bias)]
        rest = -sum(part.shape[1] for part in left) % _MULTIPLE
        left.append(input.new_zeros(input.shape[0], rest))
        right.append(input.new_zeros(weight.shape[0], rest))
        return torch.cat(left, dim=1) @ torch.cat(right, dim=1).t()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, *factors = ctx.saved_tensors
        needs_input, needs_weight, needs_bias, *needs = ctx.needs_input_grad
        found: list[Tensor | None] = [
            rounded(gradient, weight, weight.dtype) if needs_input else None,
            rounded(gradient.t(), input, weight.dtype) if needs_weight else None,
            gradient.sum(0).to(ctx.bias_dtype) if needs_bias else None,
        ]
        wide = gradient.float()
        first = 0
        for number in range(0, len(factors), 2):
            hidden, up = factors[number : number + 2]
            columns = wide[:, first : first + up.shape[0]]
            found.append((columns @ up.float()).to(hidden.dtype) if needs[number] else None)
            found.append((columns.t() @ hidden.float()).to(up.dtype) if needs[number + 1] else None)
            first += up.shape[0]
        return tuple(found)


def _between_zeros(rows: Tensor, first: int, height: int) -> Tensor:
    """Return a matrix of zeros with `rows` in it, starting at row `first`."""
    if rows.shape[0] == height:
        return rows
    return torch.nn.functional.pad(rows, (0, 0, first, height - first - rows.shape[0]))


class FusedProduct(NamedTuple):
    """One change: `up` (out, rank) maps `hidden` (tokens, rank), scale included, to the output."""

    hidden: Tensor
    up: Tensor


def lora_linear(input: Tensor, weight: Tensor, bias: Tensor | None, products: list[FusedProduct]) -> Tensor:
    """Return input @ weightᵀ + bias + change, rounded to the weight's dtype.

    `input` is (tokens, in), `weight` (out, in), both of one dtype. Several products fill the output side by side.
    """
    if weight.dtype not in HALF:
        return _add(F.linear(input, weight, bias), products)
    if half_precision.accumulates_fast(input) and input.shape[0] >= FEWEST_TOKENS:
        return prolonged_linear(input, weight, bias, products)
    if not half_precision.keeps_float32(input):
        # What is rounded here is small beside the product, which is accumulated upon it and rounded last.
        change = _sum_with_bias(products, bias).to(weight.dtype)
        return torch.addmm(change, input, weight.t())
    result = unrounded(input, weight, products)
    if bias is not None:
        result = result + bias
    return result.to(weight.dtype)


def dora_linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    products: list[FusedProduct],
    gain: Tensor,
    differentiable: bool = True,
) -> Tensor:
    """Return gain · (input @ weightᵀ + change) + bias, rounded to the weight's dtype.

    `gain` is (out,). It multiplies in place unless the result is `differentiable` by autograd.
    """
    total = unrounded(input, weight, products)
    return rescale(total, gain, bias, None if differentiable else total).to(weight.dtype)


def scaled_sum(output: Tensor, change: Tensor, gain: Tensor, bias: Tensor | None) -> Tensor:
    """Return gain · (output - bias + change) + bias, rounded to the dtype of `output`.

    The sum is in the dtype of `gain`.
    """
    return rescale(unbiased_sum(output, change, gain, bias), gain, bias).to(output.dtype)


def unbiased_sum(output: Tensor, change: Tensor, gain: Tensor, bias: Tensor | None) -> Tensor:
    """Return output - bias + change, in the dtype of `gain`."""
    total = output + change.to(gain.dtype)
    return total if bias is None else total - bias.to(gain.dtype)


def rescale(total: Tensor, gain: Tensor, bias: Tensor | None, out: Tensor | None = None) -> Tensor:
    """Return gain · total + bias, in the dtype of `total`."""
    gain = gain.to(total.dtype)
    if bias is None:
        return torch.mul(total, gain, out=out)
    return torch.addcmul(bias.to(total.dtype), total, gain, out=out)


def unrounded(input: Tensor, weight: Tensor, products: list[FusedProduct]) -> Tensor:
    """Return input @ weightᵀ + change in float32, or in float64 for float64 operands."""
    if weight.dtype not in HALF:
        return _add(F.linear(input, weight), products)
    return _add(half_precision.unrounded(input, weight), products)


def _add(total: Tensor, products: list[FusedProduct]) -> Tensor:
    """Add the products to `total` (tokens, out) in place, and return it."""
    if len(products) == 1:
        hidden, up = products[0]
        return total.addmm_(hidden.to(total.dtype), up.t().to(total.dtype))
    return total.add_(torch.cat([hidden @ up.t() for hidden, up in products], dim=1))


def _sum_with_bias(products: list[FusedProduct], bias: Tensor | None) -> Tensor:
    total = torch.cat([hidden @ up.t() for hidden, up in products], dim=1)
    return total if bias is None else total + bias


def keep_output(output: Tensor) -> Tensor:
    """Return the output of a Function, and give it back to that Function in the backward pass.

    The Function finds it as `ctx.output`, which its forward has to set to None. An output that was written over is not
    given back.
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
    """Return gain · (input @ weightᵀ + scale · input @ downᵀ @ upᵀ) + bias, rounded to the weight's dtype.

    `input` is (tokens, in), `weight` (out, in), both of one plain dtype. `down` is (rank, in), `up` (out, rank), `gain`
    (out,) or None for 1. Differentiable once, in all of them. Another layer may write over the output.
    """
    output: Tensor = _FusedLinear.apply(input, weight, bias, down, up, gain, scale)  # type: ignore[no-untyped-call]
    if gain is not None and output.requires_grad:
        output = keep_output(output)
    return output


def fused_gain(output: Tensor, change: Tensor, gain: Tensor, bias: Tensor | None) -> Tensor:
    """Return `scaled_sum` for a base with a forward of its own, which cannot be computed again.

    The backward pass keeps one tensor of the output's size and dtype, and none in float32.
    """
    result: Tensor = _FusedGain.apply(output, change, gain, bias)  # type: ignore[no-untyped-call]
    return result


class _Operands(NamedTuple):
    """The operands of the backward pass, for all or some of the output's columns."""

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
        products = [FusedProduct(hidden, up)]
        ctx.save_for_backward(*_Operands(input, weight, bias, hidden, down, up, gain))
        ctx.scale = scale
        ctx.output = None  # keep_output puts it here, on the way back
        if gain is None:
            return lora_linear(input, weight, bias, products)
        return dora_linear(input, weight, bias, products, gain, differentiable=False)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        operands = _Operands(*ctx.saved_tensors)
        input, weight, _, hidden, down, up, gain = operands
        output, ctx.output = ctx.output, None
        of_input = of_weight = of_bias = of_down = of_up = of_gain = None
        needs_input, needs_weight, needs_bias, needs_down, needs_up, needs_gain, _ = ctx.needs_input_grad
        with without_autocast(gradient):
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
        total = unbiased_sum(output, change, gain, bias)
        kept = total.to(output.dtype)
        ctx.save_for_backward(kept, gain)
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in (output, change, bias)]
        out = None if kept is total else total
        return rescale(total, gain, bias, out).to(output.dtype)

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
    """Return gradient · gain @ weight + of_hidden @ down, (tokens, in), rounded to the weight's dtype."""
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
    """Return Σ gradient · total over the tokens, (out,).

    The total is (output - bias) / gain, or computed again.
    """
    input, weight, bias, hidden, _, up, gain = operands
    assert gain is not None
    if output is None:
        total = unrounded(input, weight, [FusedProduct(hidden, up)])
        return column_products(gradient, total, None, gain.dtype)
    result = column_products(gradient, output, bias, gain.dtype) / gain
    small = (gain.abs() < _MIN_GAIN).nonzero().squeeze(1)
    if small.numel():
        total = unrounded(input, weight[small], [FusedProduct(hidden, up[small])])
        result[small] = column_products(gradient[:, small], total, None, gain.dtype)
    return result
