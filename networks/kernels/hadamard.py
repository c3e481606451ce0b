"""(w1_a @ w1_b) ⊙ (w2_a @ w2_b) on a Linear: one product of rank², or blocks of its rows.

The product of rank² costs (in + out) · rank² multiplications for each token. A block of rows costs as many as the rows
of the base and shares their products: the rows of the base and the change are added first.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lora_inspect.algorithms import loha

from . import half_precision
from .adapted_linear import Gradients, Needed, base_gradient_upon, base_upon, weight_gradient
from .base_weight import CombinedSquares, row_squares
from .half_precision import is_traced, rows_at_once, without_autocast

# Six operations pass over each number of a delta, or of its sides, in memory: each takes as long as 16 multiplications
# of a product.
_PASSES = 6 * 16
# Blocks smaller than this make products of which most of the work is to read the tokens.
_LEAST_ROWS = 512


class LowRankKernel(NamedTuple):
    """scale · up @ down with up (out, rank²) and down (rank², in): a Kernel with LoHa's factors in order."""

    dtype: torch.dtype
    scale: float

    def output(
        self, input: Tensor, weight: Tensor | None, bias: Tensor | None, factors: Sequence[Tensor], rounds: bool
    ) -> Tensor:
        """Return the output as in Kernel; the base is added to the product of `up`."""
        if weight is None:
            return self.composed(input, factors)
        up, down = self._pair(factors)
        hidden = half_precision.factor_product(input, down).mul_(self.scale)
        if rounds and _splits(self.dtype, input):
            return base_upon(half_precision.rounded_product(hidden, up, bias), input, weight, None, rounds)
        return base_upon(hidden @ up.t(), input, weight, bias, rounds)

    def composed(self, input: Tensor, factors: Sequence[Tensor]) -> Tensor:
        """Return the change as in Kernel."""
        up, down = self._pair(factors)
        return ((input.to(self.dtype) @ down.t()) * self.scale) @ up.t()

    def gradients(
        self, gradient: Tensor, input: Tensor, weight: Tensor | None, factors: Sequence[Tensor], needed: Needed
    ) -> Gradients:
        """Return the gradients as in Kernel; `up`, `down` and the hidden product are computed again."""
        up, down = self._pair(factors)
        # Cast once for the products that they are in.
        wide = gradient if _splits(self.dtype, gradient) else gradient.to(self.dtype)
        tokens = input if _splits(self.dtype, input) else input.to(self.dtype)
        of_hidden = half_precision.factor_product(wide, up.t()).mul_(self.scale)
        of_input = None
        of_factors: Sequence[Tensor | None] = [None] * len(factors)
        if needed.input and weight is None:
            of_input = of_hidden @ down
        elif needed.input and weight is not None:
            splits = _splits(self.dtype, gradient)
            change = half_precision.rounded_product(of_hidden, down.t()) if splits else of_hidden @ down
            of_input = base_gradient_upon(change, gradient, weight)
        if needed.factors:
            hidden = half_precision.factor_product(tokens, down).mul_(self.scale)
            of_up = half_precision.factor_product(wide.t(), hidden.t())
            of_down = half_precision.factor_product(tokens.t(), of_hidden.t()).t()
            of_factors = _pair_gradients(of_up, of_down, factors)
        of_weight = weight_gradient(gradient, input, self.dtype) if needed.weight else None
        return Gradients(of_input, of_weight, of_factors)

    def _pair(self, factors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        cast = [factor.to(self.dtype) for factor in factors]
        up, down = loha.low_rank(dict(zip(loha.ROLES, cast, strict=True)))
        return up, down


class RowBlocksKernel(NamedTuple):
    """scale · delta in blocks of rows, built for their products and again for their gradients: a Kernel."""

    dtype: torch.dtype
    scale: float

    def output(
        self, input: Tensor, weight: Tensor | None, bias: Tensor | None, factors: Sequence[Tensor], rounds: bool
    ) -> Tensor:
        """Return the output as in Kernel, by one product with the rows of weight + delta."""
        splits = rounds and weight is not None and _splits(self.dtype, input)
        tokens, out_features = input if splits else input.to(self.dtype), factors[0].shape[0]
        total = tokens.new_empty(tokens.shape[0], out_features)
        for rows, left, right, room in self._blocks(factors):
            combined, own_bias = self._combined(left, right, weight, rows, room), None if bias is None else bias[rows]
            if splits:
                total[:, rows] = half_precision.linear_of_parts(tokens, combined, own_bias)
            elif own_bias is None:
                torch.mm(tokens, combined.to(self.dtype).t(), out=total[:, rows])
            else:
                torch.addmm(own_bias.to(self.dtype), tokens, combined.to(self.dtype).t(), out=total[:, rows])
        return total

    def composed(self, input: Tensor, factors: Sequence[Tensor]) -> Tensor:
        """Return the change as in Kernel.

        Delta is built: a recorder of single operations plans itself which tensors to compute again.
        """
        return input.to(self.dtype) @ delta([factor.to(self.dtype) for factor in factors], self.scale).t()

    def gradients(
        self, gradient: Tensor, input: Tensor, weight: Tensor | None, factors: Sequence[Tensor], needed: Needed
    ) -> Gradients:
        """Return the gradients as in Kernel.

        With fast bfloat16 they are those of the rounded sum, and are rounded before they are gathered.
        """
        dtype = input.dtype if weight is not None and _splits(self.dtype, input) else self.dtype
        wide, tokens = gradient.to(dtype), input.to(dtype)
        w1_a, w1_b, w2_a, w2_b = self._wide(factors)
        of_input = torch.zeros_like(tokens, dtype=w1_a.dtype) if needed.input else None
        of_weight = w1_a.new_empty(w1_a.shape[0], w1_b.shape[1]) if needed.weight else None
        of_factors = [torch.zeros_like(factor) for factor in (w1_a, w1_b, w2_a, w2_b)]
        for rows, left, right, room in self._blocks(factors):
            if of_input is not None:
                _accumulate(of_input, wide[:, rows], self._combined(left, right, weight, rows, room).to(dtype))
            if not needed.factors and of_weight is None:
                continue
            of_rows = _product(wide[:, rows].t(), tokens, room)
            if of_weight is not None:
                of_weight[rows] = of_rows
            if needed.factors:
                # Each product's gradient is that of delta, multiplied by the other product.
                of_rows.mul_(self.scale)
                of_left, of_right = right.mul_(of_rows), left.mul_(of_rows)
                of_factors[0][rows], of_factors[2][rows] = of_left @ w1_b.t(), of_right @ w2_b.t()
                of_factors[1].addmm_(w1_a[rows].t(), of_left)
                of_factors[3].addmm_(w2_a[rows].t(), of_right)
        return Gradients(of_input, of_weight, of_factors if needed.factors else [None] * len(factors))

    def _wide(self, factors: Sequence[Tensor]) -> list[Tensor]:
        """Return the factors in float32 or better, unlike autocast's dtype."""
        return [factor.to(torch.promote_types(self.dtype, torch.float32)) for factor in factors]

    def _blocks(self, factors: Sequence[Tensor]) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
        """Yield some rows, both products in them, and room for a third block.

        The next block reuses the same memory, since new memory would cost more than the products in it.
        """
        w1_a, w1_b, w2_a, w2_b = self._wide(factors)
        step = max(_LEAST_ROWS, rows_at_once(w1_b.shape[1], w1_b.device))
        memory = w1_b.new_empty(3, min(step, w1_a.shape[0]), w1_b.shape[1])
        for first in range(0, w1_a.shape[0], step):
            rows = slice(first, first + step)
            left, right, room = memory[:, : w1_a[rows].shape[0]]
            yield rows, torch.mm(w1_a[rows], w1_b, out=left), torch.mm(w2_a[rows], w2_b, out=right), room

    def _combined(self, left: Tensor, right: Tensor, weight: Tensor | None, rows: slice, out: Tensor) -> Tensor:
        """Return weight + scale · left ⊙ right, in `out`."""
        delta = torch.mul(left, right, out=out).mul_(self.scale)
        return delta if weight is None else delta.add_(weight[rows])


def combined_squares(factors: Sequence[Tensor], scale: float) -> CombinedSquares:
    """Return a function for the sums of squares of rows of W + scale · delta.

    It builds delta a block at a time in the same memory.
    """
    w1_a, w1_b, w2_a, w2_b = factors
    memory: list[Tensor] = []

    def of_rows(rows: Tensor, first: int, squares: Tensor) -> Tensor:
        own = slice(first, first + rows.shape[0])
        if is_traced():
            return row_squares(torch.addcmul(rows, w1_a[own] @ w1_b, w2_a[own] @ w2_b, value=scale))
        if not memory:  # no later block is larger than the first
            memory.extend(rows.new_empty(3, *rows.shape))
        left, right, combined = (block[: rows.shape[0]] for block in memory)
        torch.mm(w1_a[own], w1_b, out=left)
        torch.mm(w2_a[own], w2_b, out=right)
        return row_squares(torch.addcmul(rows, left, right, value=scale, out=combined))

    return of_rows


class _Delta(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scale: float, w1_a: Tensor, w1_b: Tensor, w2_a: Tensor, w2_b: Tensor) -> Tensor:
        ctx.save_for_backward(w1_a, w1_b, w2_a, w2_b)
        ctx.scale = scale
        return (w1_a @ w1_b).mul_(w2_a @ w2_b).mul_(scale)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        w1_a, w1_b, w2_a, w2_b = ctx.saved_tensors
        with without_autocast(gradient):
            gradient = gradient.to(w1_a.dtype) * ctx.scale
            of_left, of_right = (w2_a @ w2_b).mul_(gradient), (w1_a @ w1_b).mul_(gradient)
            return None, of_left @ w1_b.t(), w1_a.t() @ of_left, of_right @ w2_b.t(), w2_a.t() @ of_right


def delta(factors: Sequence[Tensor], scale: float) -> Tensor:
    """Return scale · (w1_a @ w1_b) ⊙ (w2_a @ w2_b), (out, in·kernel).

    The backward pass keeps only the factors.
    """
    if is_traced():
        w1_a, w1_b, w2_a, w2_b = factors
        return (w1_a @ w1_b) * (w2_a @ w2_b) * scale
    result: Tensor = _Delta.apply(scale, *factors)  # type: ignore[no-untyped-call]
    return result


def kernel(
    tokens: int, shape: tuple[int, int], rank: int, scale: float, dtype: torch.dtype, shares_base: bool
) -> LowRankKernel | RowBlocksKernel:
    """Return the kernel that needs fewer multiplications in a training step.

    `shape` is that of the weight, (out, in). `shares_base` says that the kernel computes the base's own products too.
    """
    out_features, in_features = shape
    # Three products of each side, and the hidden one again; both sides are made twice, as their gradients are.
    sides = tokens * (4 * in_features + 3 * out_features) + _PASSES * (in_features + out_features)
    by_rank = rank * rank * sides
    # Both products are made twice, and each has two gradients; the base's two products are there anyhow.
    by_rows = in_features * out_features * (tokens * (1 if shares_base else 3) + 8 * rank + _PASSES)
    return LowRankKernel(dtype, scale) if by_rank <= by_rows else RowBlocksKernel(dtype, scale)


def _splits(dtype: torch.dtype, input: Tensor) -> bool:
    """Return True if products in `dtype`, rounded with those of `input`, are best computed in parts."""
    return dtype == torch.float32 and half_precision.accumulates_fast(input)


def _product(left: Tensor, right: Tensor, out: Tensor) -> Tensor:
    """Return left @ right in `out`, which may have a wider dtype."""
    return torch.mm(left, right, out=out) if left.dtype == out.dtype else out.copy_(left @ right)


def _accumulate(total: Tensor, left: Tensor, right: Tensor) -> None:
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total.add_(left @ right)


def _pair_gradients(of_up: Tensor, of_down: Tensor, factors: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradients of the factors from those of both row-wise products."""
    w1_a, w1_b, w2_a, w2_b = (factor.to(of_up.dtype) for factor in factors)
    rank = w1_b.shape[0]
    up, down = of_up.view(-1, rank, rank), of_down.reshape(rank, rank, -1)
    return [
        (up * w2_a[:, None, :]).sum(2),
        (down * w2_b[None, :, :]).sum(1),
        (up * w1_a[:, :, None]).sum(1),
        (down * w1_b[:, None, :]).sum(0),
    ]
