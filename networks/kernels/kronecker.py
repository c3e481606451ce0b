"""w1 ⊗ w2 on a Linear, by two or three small products.

No side of a product is larger than the input or the output. (w1 ⊗ w2) x is w1 X w2ᵀ, where X (i1, i2) is the input x,
one row for each column of w1. If w2 is a product w2_a @ w2_b of a low rank, w2_b comes first and w2_a last: x → w2_b →
w1 → w2_a. A whole w2 comes first or last.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .adapted_linear import Gradients, Needed, base_gradient_upon, base_upon, weight_gradient


class Chain(NamedTuple):
    """scale · w1 X (last @ first)ᵀ: a Kernel with factors w1 (o1, i1), first (p, i2) and last (o2, p).

    `leads` and `closes` say whether first and last exist; a missing one is the identity.
    """

    dtype: torch.dtype
    scale: float
    leads: bool
    closes: bool

    def output(
        self, input: Tensor, weight: Tensor | None, bias: Tensor | None, factors: Sequence[Tensor], rounds: bool
    ) -> Tensor:
        """Return the output as in Kernel; the base is added to the last product."""
        change = self.composed(input, factors)
        return change if weight is None else base_upon(change, input, weight, bias, rounds)

    def composed(self, input: Tensor, factors: Sequence[Tensor]) -> Tensor:
        """Return the change as in Kernel."""
        w1, first, last = self._operands(factors)
        middle = w1 @ _hidden(input.to(self.dtype), w1, first)
        change = middle if last is None else middle @ last.t()
        return change.reshape(input.shape[0], change.shape[1] * change.shape[2])

    def gradients(
        self, gradient: Tensor, input: Tensor, weight: Tensor | None, factors: Sequence[Tensor], needed: Needed
    ) -> Gradients:
        """Return the gradients as in Kernel; both products of the forward are computed again."""
        w1, first, last = self._operands(factors)
        of_factors: list[Tensor | None] = [None] * len(factors)
        of_rows = gradient.to(self.dtype).view(len(gradient), w1.shape[0], gradient.shape[1] // w1.shape[0])
        of_middle = of_rows if last is None else of_rows @ last
        of_hidden = w1.t() @ of_middle
        if needed.factors:
            tokens = input.to(self.dtype)
            hidden = _hidden(tokens, w1, first)
            found = [torch.tensordot(of_middle, hidden, ([0, 2], [0, 2])).mul_(self.scale)]
            if first is not None:
                found.append(_matrix(of_hidden).t() @ tokens.reshape(-1, first.shape[1]))
            if last is not None:
                found.append(_matrix(of_rows).t() @ _matrix(w1 @ hidden))
            of_factors = [*found]
        return Gradients(
            _of_input(gradient, weight, of_hidden, first) if needed.input else None,
            weight_gradient(gradient, input, self.dtype) if needed.weight else None,
            of_factors,
        )

    def _operands(self, factors: Sequence[Tensor]) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return w1 with the scale, first and last."""
        w1, *others = (factor.to(self.dtype) for factor in factors)
        return w1 * self.scale, others[0] if self.leads else None, others[-1] if self.closes else None


def chain(
    tokens: int, w1: Tensor, w2: Sequence[Tensor], scale: float, dtype: torch.dtype
) -> tuple[Chain, list[Tensor]]:
    """Return the kernel with the fewest multiplications, and its factors.

    `w2` is (w2,) or the pair (w2_a, w2_b).
    """
    (o1, i1), o2, i2 = w1.shape, w2[0].shape[0], w2[-1].shape[1]
    rank = w2[-1].shape[0]
    w2_first, w2_last = i1 * o2 * (i2 + o1), o1 * i2 * (i1 + o2)
    whole = min(w2_first, w2_last) * tokens
    if len(w2) == 2:
        if rank * (i1 * i2 + o1 * i1 + o1 * o2) * tokens <= whole + o2 * rank * i2:
            return Chain(dtype, scale, leads=True, closes=True), [w1, w2[1], w2[0]]
        w2 = [w2[0] @ w2[1]]
    return Chain(dtype, scale, leads=w2_first <= w2_last, closes=w2_first > w2_last), [w1, *w2]


def combined_squares(w1: Tensor, w2: Tensor, rows: Tensor, first: int, squares: Tensor) -> Tensor:
    """Return the sums of squares (n,) of the rows of W + w1 ⊗ w2, starting at `first`.

    The rows of W are `rows`, and their sums of squares `squares`. A sum is ‖W_i‖² + 2⟨W_i, delta_i⟩ + ‖w1_a‖²‖w2_c‖²,
    where row i is row c of group a.
    """
    return _combined(w1, w2, w2.square().sum(1), rows, first, squares)


def thin_squares(w1: Tensor, w2_a: Tensor, w2_b: Tensor, squares: Tensor, products: Tensor) -> Tensor:
    """Return `combined_squares` (out,) of all rows for w2 = w2_a @ w2_b, without W.

    `products` (out, i1·rank) are those of W with the rows of I ⊗ w2_b, since w1 ⊗ w2 is (w1 ⊗ w2_a) @ (I ⊗ w2_b).
    """
    return _combined(w1, w2_a, (w2_a @ w2_b).square().sum(1), products, 0, squares)


def _combined(w1: Tensor, w2: Tensor, own: Tensor, rows: Tensor, first: int, squares: Tensor) -> Tensor:
    """Return ‖W_i‖² + 2⟨rows_i, w1_a ⊗ w2_c⟩ + ‖w1_a‖² own_c."""
    number = torch.arange(first, first + rows.shape[0], dtype=torch.long, device=rows.device)
    group, row = number // w2.shape[0], number % w2.shape[0]
    left = w1[group]
    products = left.unsqueeze(1) @ rows.reshape(-1, w1.shape[1], w2.shape[1])
    crossed = (products.squeeze(1) * w2[row]).sum(1)
    return (squares + 2.0 * crossed + left.square().sum(1) * own[row]).clamp(min=0.0)


def _hidden(input: Tensor, w1: Tensor, first: Tensor | None) -> Tensor:
    """Return X firstᵀ (tokens, i1, p)."""
    i1 = w1.shape[1]
    if first is None:
        return input.reshape(input.shape[0], i1, input.shape[1] // i1)
    return (input.reshape(-1, first.shape[1]) @ first.t()).view(input.shape[0], i1, first.shape[0])


def _matrix(rows: Tensor) -> Tensor:
    """Return (tokens, groups, width) as (tokens · groups, width)."""
    return rows.reshape(-1, rows.shape[2])


def _of_input(gradient: Tensor, weight: Tensor | None, of_hidden: Tensor, first: Tensor | None) -> Tensor:
    """Return gradient @ weight + of_hidden @ first, (tokens, in)."""
    hidden = _matrix(of_hidden)
    change = hidden if first is None else hidden @ first
    change = change.view(len(gradient), of_hidden.shape[1] * change.shape[1])
    return change if weight is None else base_gradient_upon(change, gradient, weight)
