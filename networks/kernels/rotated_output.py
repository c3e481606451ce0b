"""Block-diagonal rotations of a layer's output channels.

Each block becomes y = z + z @ M, where z is y without a bias. M is R - I, so a rotation by nothing returns the output
bit for bit. Everything is computed in M's dtype, a few samples at a time, and rounded once: no tensor of the output's
size exists in it.

The backward pass keeps only the output of the base at that size. For a rotated plain Linear it does not keep even that:
an output is z R + b, so Rᵀ recovers z from it. The output itself is alive anyway, since the next operation reads it.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lora_inspect.maths import rotation

from . import half_precision
from .fused_lora import keep_output
from .half_precision import is_traced, rows_at_once


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


def rotated_linear(input: Tensor, weight: Tensor, bias: Tensor | None, turn: Tensor) -> Tensor:
    """Return `fused_turn` of a Linear's output (tokens, out) by the rotation I + `turn`.

    `input` is (tokens, in), `weight` (out, in), both of one plain dtype. Differentiable once, in `input` and `turn`.
    Another layer may write over the output.
    """
    output: Tensor = _RotatedLinear.apply(input, weight, bias, turn)  # type: ignore[no-untyped-call]
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


class _CayleyTurn(torch.autograd.Function):
    """T = (I - Q)^-1 2Q. Its derivative dT = (I - Q)^-1 dQ (T + 2I) solves nothing, as (I - Q)^-1 is I + T / 2."""

    @staticmethod
    def forward(ctx: Any, skew: Tensor) -> Tensor:
        turn = _turn_of(skew)
        ctx.save_for_backward(turn)
        return turn

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (turn,) = ctx.saved_tensors
        # A trainer may run backward inside autocast.
        with torch.autocast(gradient.device.type, enabled=False):
            left = gradient.baddbmm(turn.mT, gradient, alpha=0.5)
            of_skew: Tensor = left.baddbmm(left, turn.mT, beta=2)
        return of_skew


class _RotatedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, turn: Tensor) -> Tensor:
        ctx.save_for_backward(input, weight, bias, turn)
        ctx.output = None  # keep_output puts it here, on the way back
        output = F.linear(input, weight, bias)
        blocks, offset = _by_block(output, turn), _offset(bias, turn)
        for part in _parts(output):
            own = blocks[:, part]
            own += _unbiased(own, turn.dtype, offset) @ turn
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, bias, turn = ctx.saved_tensors
        output, ctx.output = ctx.output, None
        needs_input, _, _, needs_turn = ctx.needs_input_grad
        of_input = None
        # A trainer may run backward inside autocast.
        with torch.autocast(gradient.device.type, enabled=False):
            of_turn = _turn_gradient(gradient, output, input, weight, bias, turn) if needs_turn else None
            if needs_input:
                turned_back = torch.empty(gradient.shape, dtype=gradient.dtype, device=gradient.device)
                blocks, gradients = _by_block(turned_back, turn), _by_block(gradient, turn)
                back = (turn + rotation.identity(turn)).mT
                for part in _parts(gradient):
                    blocks[:, part] = gradients[:, part].to(turn.dtype) @ back
                of_input = half_precision.rounded(turned_back, weight, weight.dtype)
        return of_input, None, None, of_turn


def _turn_gradient(
    gradient: Tensor, output: Tensor | None, input: Tensor, weight: Tensor, bias: Tensor | None, turn: Tensor
) -> Tensor:
    """Return Σ zᵀ gradient over the tokens.

    z is (output - bias) Rᵀ, or computed again if the output is lost. The sum is turned instead of its tokens: Σ (u Rᵀ)ᵀ
    gradient is R Σ uᵀ gradient.
    """
    outputs = F.linear(input, weight, bias) if output is None else output
    blocks, gradients, offset = _by_block(outputs, turn), _by_block(gradient, turn), _offset(bias, turn)
    total = None
    for part in _parts(outputs):
        own = _unbiased(blocks[:, part], turn.dtype, offset).mT @ gradients[:, part].to(turn.dtype)
        total = own if total is None else total + own
    if total is None:
        return torch.zeros_like(turn)
    return total if output is None else total.baddbmm(turn, total)


def _by_block(tokens: Tensor, turn: Tensor) -> Tensor:
    """Return a view (count, tokens, size) of (tokens, out)."""
    return tokens.reshape(-1, *turn.shape[:2]).transpose(0, 1)


def _offset(bias: Tensor | None, turn: Tensor) -> Tensor | None:
    """Return the bias as (count, 1, size), in the dtype of `turn`."""
    return None if bias is None else bias.to(turn.dtype).view(turn.shape[0], 1, -1)


class _Turned(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, turn: Tensor, bias: Tensor | None, axis: int) -> Tensor:
        ctx.save_for_backward(output, turn, bias)
        ctx.axis = axis
        blocks, offset = _in_blocks(output, turn, axis), _in_blocks_of_one(bias, turn)
        # No view: layers behind this one may write over it.
        result = torch.empty(output.shape, dtype=output.dtype, device=output.device)
        results = _in_blocks(result, turn, axis)
        for part in _parts(blocks):
            torch.add(blocks[part], _change(blocks[part], turn, offset), out=results[part])
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        output, turn, bias = ctx.saved_tensors
        needs_output, needs_turn, needs_bias, _ = ctx.needs_input_grad
        blocks, gradients = _in_blocks(output, turn, ctx.axis), _in_blocks(gradient, turn, ctx.axis)
        offset = _in_blocks_of_one(bias, turn)
        of_output = torch.empty_like(blocks) if needs_output else None
        of_turn = torch.zeros_like(turn) if needs_turn else None
        of_bias = turn.new_zeros(turn.shape[:2]) if needs_bias else None
        # A trainer may run backward inside autocast.
        with torch.autocast(gradient.device.type, enabled=False):
            for part in _parts(blocks):
                wide = gradients[part].to(turn.dtype)
                if of_turn is not None:
                    of_turn += _products(_unbiased(blocks[part], turn.dtype, offset), wide)
                if of_output is None and of_bias is None:
                    continue
                change = torch.einsum("nkmp,ksm->nksp", wide, turn)
                if of_bias is not None:
                    of_bias -= change.sum((0, 3))
                if of_output is not None:
                    of_output[part] = wide + change
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


def _parts(samples: Tensor) -> Iterator[slice]:
    step = rows_at_once(samples[0].numel() if len(samples) else 1, samples.device)
    return (slice(first, first + step) for first in range(0, samples.shape[0], step))
