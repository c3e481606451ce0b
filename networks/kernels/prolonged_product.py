"""A bfloat16 Linear whose low-rank change and bias are accumulated in the same product, and rounded with it.

The sum of two products is one product of prolonged matrices,

    input @ weightᵀ + hidden @ upᵀ = [input | hidden] @ [weight | up]ᵀ,

which leaves the processor one rounding to do. The float32 factors are split into bfloat16 numbers, x = x₁ + x₂ + δ
with |δ| ≤ 2⁻¹⁶ |x|, of which [x₁ x₁ x₂] and [y₁ y₂ y₁] give x · y but for 3 · 2⁻¹⁶ |x · y|. The rounding of the
output, up to 2⁻⁸ of it, hides that: errors of both kinds add up in squares.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .half_precision import rounded, split

_MULTIPLE = 32  # of columns: rows that begin at a cache line
# Below, a second product costs less than a copy of the weight.
FEWEST_TOKENS = 64


def prolonged_linear(
    input: Tensor, weight: Tensor, bias: Tensor | None, products: Sequence[tuple[Tensor, Tensor]]
) -> Tensor:
    """input @ weightᵀ + bias + change in bfloat16, the dtype of `input` (tokens, in) and `weight` (out, in).

    Each product is (hidden, up), (tokens, rank) and (rows, rank), and the rows of all of them are those of `weight`.
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
    """`rows` as those from `first` on of a matrix of zeros."""
    if rows.shape[0] == height:
        return rows
    return torch.nn.functional.pad(rows, (0, 0, first, height - first - rows.shape[0]))
