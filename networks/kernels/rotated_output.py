"""Block-diagonal rotations of a layer's output channels.

Each block becomes y = z + z @ M, where z is y without a bias. M is R - I, so a rotation by nothing returns the output
bit for bit. Everything is computed in M's dtype, a few samples at a time, and rounded once: no tensor of the output's
size exists in it.

The backward pass keeps only the output of the base at that size. For a rotated plain Linear it does not keep even that:
an output is z R + b, so Rᵀ recovers z from it. The output itself is alive anyway, since the next operation reads it.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lora_inspect.maths import rotation

from . import half_precision
from .fused_lora import keep_output
from .half_precision import is_traced, rows_at_once, without_autocast


def turned(output: Tensor, turn: Tensor, bias: Tensor | None, axis: int) -> Tensor:
    """Return output + (output - bias) @ turn, in the output's dtype, as single operations of torch.

    `turn` is (count, size, size), for the count · size channels of the output at the negative `axis`. `bias` is
    (channels,).
    """
    blocks = _in_blocks(output, turn, axis)
    result = blocks + _change(blocks, turn, _in_blocks_of_one(bias, turn))
    return result.to(output.dtype).view(output.shape)


def fused_turn(output: Tensor, turn: Tensor, bias: Tensor | None, axis: int) -> Tensor:
    """Return `turned` with its own backward pass.

    Differentiable once, in all tensors.
    """
    result: Tensor = _Turned.apply(output, turn, bias, axis)  # type: ignore[no-untyped-call]
    return result


def rotated_linear(input: Tensor, weight: Tensor, bias: Tensor | None, skew: Tensor) -> Tensor:
    """Return `fused_turn` of a Linear's output (…, out) by the `cayley_turn` of `skew`.

    `input` is (…, in), `weight` (out, in), both of one plain dtype. Differentiable once, in `input` and `skew`.
    Another layer may write over the output.
    """
    output: Tensor = _RotatedLinear.apply(input, weight, bias, skew)  # type: ignore[no-untyped-call]
    return keep_output(output) if output.requires_grad else output


def cayley_turn(skew: Tensor) -> Tensor:
    """Return R - I, `rotation.turn` of skew-symmetric matrices (count, size, size).

    No matrix is checked, since a device would wait for that. Differentiable once.
    """
    if is_traced():
        return _turn_of(skew)
    result: Tensor = _CayleyTurn.apply(skew)  # type: ignore[no-untyped-call]
    return result


def _turn_of(skew: Tensor) -> Tensor:
    turn: Tensor = rotation.turn(skew, lambda matrices, right: torch.linalg.solve_ex(matrices, right)[0])
    return turn


def _skew_gradient(turn: Tensor, gradient: Tensor) -> Tensor:
    """Return the gradient for Q from that for T = `turn`.

    The derivative of T = (I - Q)^-1 2Q is dT = (I - Q)^-1 dQ (T + 2I). It solves nothing, as (I - Q)^-1 is I + T / 2.
    """
    left = gradient.baddbmm(turn.mT, gradient, alpha=0.5)
    return left.baddbmm(left, turn.mT, beta=2)


class _CayleyTurn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, skew: Tensor) -> Tensor:
        turn = _turn_of(skew)
        ctx.save_for_backward(turn)
        return turn

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (turn,) = ctx.saved_tensors
        with without_autocast(gradient):
            return _skew_gradient(turn, gradient)


class _RotatedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, skew: Tensor) -> Tensor:
        turn = _turn_of(skew)
        ctx.save_for_backward(input, weight, bias, turn)
        ctx.output = None  # keep_output puts it here, on the way back
        # No view, as `F.linear` has of an input with more axes: layers behind this one may write over it.
        output = torch.empty(*input.shape[:-1], weight.shape[0], dtype=weight.dtype, device=weight.device)
        tokens, offset, added = _tokens(output), _in_blocks_of_one(bias, turn), None
        _linear(_tokens(input), weight, bias, out=tokens)
        # u + (u - b) M of the base's outputs u, as u + (u M - b M): a product adds to a row without a pass of its own.
        if offset is not None:
            added = torch.bmm(offset.mT, turn).neg_()
        for rows in _parts(tokens):
            wide = rows.to(turn.dtype)
            blocks = _by_block(wide, turn)
            blocks += torch.bmm(blocks, turn) if added is None else torch.baddbmm(added, blocks, turn)
            if wide is not rows:
                rows.copy_(wide)
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the input, gradient Rᵀ W, and of Q by that of R - I, Σ zᵀ gradient over the tokens.

        z is (u - b) Rᵀ, of the outputs u and the bias b. If u is lost, z + b is computed again. Sums are freed of b and
        turned, and not the tokens: Σ ((u - b) Rᵀ)ᵀ gradient = R (Σ uᵀ gradient - bᵀ Σ gradient).
        """
        input, weight, bias, turn = ctx.saved_tensors
        output, ctx.output = ctx.output, None
        needs_input, _, _, needs_skew = ctx.needs_input_grad
        of_input = of_skew = products = columns = None
        with without_autocast(gradient):
            if needs_skew:
                outputs = _parts(_tokens(F.linear(input, weight, bias) if output is None else output))
            if needs_input:
                turned_back = torch.empty(gradient.shape, dtype=gradient.dtype, device=gradient.device)
                results = _parts(_tokens(turned_back))
            for number, rows in enumerate(_parts(_tokens(gradient))):
                wide = rows.to(turn.dtype)
                blocks = _by_block(wide, turn)
                if needs_skew:
                    own = _by_block(outputs[number].to(turn.dtype), turn)
                    products = _plus(products, torch.bmm(own.mT, blocks))
                    columns = None if bias is None else _plus(columns, wide.sum(0))
                if needs_input:
                    change = torch.bmm(blocks, turn.mT)
                    if wide is rows:
                        torch.add(blocks, change, out=_by_block(results[number], turn))
                    else:  # rounding reads whole rows
                        blocks += change
                        results[number].copy_(wide)
            if needs_input:
                of_input = half_precision.rounded(turned_back, weight, weight.dtype)
            if products is not None:
                offset = _in_blocks_of_one(bias, turn)
                if offset is not None and columns is not None:
                    products.addcmul_(offset, columns.view(turn.shape[0], 1, -1), value=-1)
                of_skew = _skew_gradient(turn, products if output is None else products.baddbmm(turn, products))
        return of_input, None, None, of_skew


def _linear(tokens: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """Write the tokens' `F.linear` into `out`."""
    if bias is None:
        torch.mm(tokens, weight.t(), out=out)
    else:
        torch.addmm(bias, tokens, weight.t(), out=out)


def _plus(total: Tensor | None, other: Tensor) -> Tensor:
    return other if total is None else total.add_(other)


def _tokens(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1])


def _by_block(tokens: Tensor, turn: Tensor) -> Tensor:
    """Return a view (count, tokens, size) of (tokens, out)."""
    return tokens.reshape(-1, *turn.shape[:2]).transpose(0, 1)


class _Turned(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, turn: Tensor, bias: Tensor | None, axis: int) -> Tensor:
        ctx.save_for_backward(output, turn, bias)
        ctx.axis = axis
        blocks, offset = _in_blocks(output, turn, axis), _in_blocks_of_one(bias, turn)
        # No view: layers behind this one may write over it.
        result = torch.empty(output.shape, dtype=output.dtype, device=output.device)
        results = _in_blocks(result, turn, axis)
        for part, out in zip(_parts(blocks), _parts(results), strict=True):
            torch.add(part, _change(part, turn, offset), out=out)
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        output, turn, bias = ctx.saved_tensors
        needs_output, needs_turn, needs_bias, _ = ctx.needs_input_grad
        blocks, gradients = _in_blocks(output, turn, ctx.axis), _in_blocks(gradient, turn, ctx.axis)
        offset = _in_blocks_of_one(bias, turn)
        of_output = torch.empty_like(blocks) if needs_output else None
        results = None if of_output is None else _parts(of_output)
        of_turn = torch.zeros_like(turn) if needs_turn else None
        of_bias = turn.new_zeros(turn.shape[:2]) if needs_bias else None
        with without_autocast(gradient):
            for number, (part, rows) in enumerate(zip(_parts(blocks), _parts(gradients), strict=True)):
                wide = rows.to(turn.dtype)
                if of_turn is not None:
                    of_turn += _products(_unbiased(part, turn.dtype, offset), wide)
                if results is None and of_bias is None:
                    continue
                change = torch.einsum("nkmp,ksm->nksp", wide, turn)
                if of_bias is not None:
                    of_bias -= change.sum((0, 3))
                if results is not None:
                    results[number].copy_(wide + change)
        return (
            None if of_output is None else of_output.view(output.shape),
            of_turn,
            None if of_bias is None or bias is None else of_bias.reshape(-1).to(bias.dtype),
            None,
        )


def _change(blocks: Tensor, turn: Tensor, offset: Tensor | None) -> Tensor:
    """Return (blocks - offset) @ turn, in the dtype of `turn`."""
    result: Tensor = torch.einsum("nksp,ksm->nkmp", _unbiased(blocks, turn.dtype, offset), turn)
    return result


def _products(left: Tensor, right: Tensor) -> Tensor:
    """Return the sums (count, size, size) over samples and positions."""
    result: Tensor = torch.einsum("nksp,nkmp->ksm", left, right)
    return result


def _unbiased(blocks: Tensor, dtype: torch.dtype, offset: Tensor | None) -> Tensor:
    return blocks.to(dtype) if offset is None else blocks.to(dtype) - offset


def _in_blocks(output: Tensor, turn: Tensor, axis: int) -> Tensor:
    """Return the output as (samples, count, size, positions)."""
    count, size, _ = turn.shape
    positions = output.shape[output.dim() + axis + 1 :].numel()
    return output.reshape(-1, count, size, positions)


def _in_blocks_of_one(bias: Tensor | None, turn: Tensor) -> Tensor | None:
    """Return the bias as (count, size, 1), in the dtype of `turn`."""
    return None if bias is None else bias.to(turn.dtype).view(*turn.shape[:2], 1)


def _parts(samples: Tensor) -> tuple[Tensor, ...]:
    """Return views of a few of the samples each, at least one."""
    most = rows_at_once(samples.shape[1:].numel(), samples.device)
    return (samples,) if samples.shape[0] <= most else torch.split(samples, most)
