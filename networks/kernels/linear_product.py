"""A Linear with a low-rank change beside it, in one rounding and with as few passes over the output as possible.

In float32 the change is added inside the matrix product of its last factor, so that no second output exists.

A half-precision Linear rounds its own output. To add to that a change computed in float32, and to round again,
makes the mean error 1.37 times that of the Linear alone. So the product is kept in float32 until everything has
been added, or everything is accumulated in one product: `half_product` and `prolonged_product` say on which device.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import half_precision
from .half_precision import HALF
from .prolonged_product import FEWEST_TOKENS, prolonged_linear


class Product(NamedTuple):
    """One change: `hidden` (tokens, rank), with the scale in it, that `up` (out, rank) takes to the output."""

    hidden: Tensor
    up: Tensor


def lora_linear(input: Tensor, weight: Tensor, bias: Tensor | None, products: list[Product]) -> Tensor:
    """input @ weightᵀ + bias + change, rounded to the weight's dtype.

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
    products: list[Product],
    gain: Tensor,
    differentiable: bool = True,
) -> Tensor:
    """gain · (input @ weightᵀ + change) + bias, rounded to the weight's dtype; `gain` is (out,).

    Where autograd is not to follow, the gain is multiplied in place.
    """
    total = unrounded(input, weight, products)
    return rescale(total, gain, bias, None if differentiable else total).to(weight.dtype)


def scaled_sum(output: Tensor, change: Tensor, gain: Tensor, bias: Tensor | None) -> Tensor:
    """gain · (output - bias + change) + bias, rounded to the dtype of `output`; summed in that of `gain`."""
    return rescale(unbiased_sum(output, change, gain, bias), gain, bias).to(output.dtype)


def unbiased_sum(output: Tensor, change: Tensor, gain: Tensor, bias: Tensor | None) -> Tensor:
    """output - bias + change, in the dtype of `gain`."""
    total = output + change.to(gain.dtype)
    return total if bias is None else total - bias.to(gain.dtype)


def rescale(total: Tensor, gain: Tensor, bias: Tensor | None, out: Tensor | None = None) -> Tensor:
    """gain · total + bias, in the dtype of `total`."""
    gain = gain.to(total.dtype)
    if bias is None:
        return torch.mul(total, gain, out=out)
    return torch.addcmul(bias.to(total.dtype), total, gain, out=out)


def unrounded(input: Tensor, weight: Tensor, products: list[Product]) -> Tensor:
    """input @ weightᵀ + change in float32, or in float64 where the operands are."""
    if weight.dtype not in HALF:
        return _add(F.linear(input, weight), products)
    return _add(half_precision.unrounded(input, weight), products)


def _add(total: Tensor, products: list[Product]) -> Tensor:
    """The products added to `total` (tokens, out) in place."""
    if len(products) == 1:
        hidden, up = products[0]
        return total.addmm_(hidden.to(total.dtype), up.t().to(total.dtype))
    return total.add_(torch.cat([hidden @ up.t() for hidden, up in products], dim=1))


def _sum_with_bias(products: list[Product], bias: Tensor | None) -> Tensor:
    total = torch.cat([hidden @ up.t() for hidden, up in products], dim=1)
    return total if bias is None else total + bias
