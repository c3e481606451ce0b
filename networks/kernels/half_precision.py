"""Products of half-precision matrices, unrounded or rounded once, by the fastest way of a device.

The products of bfloat16 and float16 numbers are exact in float32. CUDA has a kernel that accumulates as usual without
the rounding. torch offers none on the CPU, where the way depends on the processor, as far as torch reports it:

- with instructions for bfloat16, a product is a few times as fast as in float32, is accumulated in float32 and rounded.
  A second one, accumulated upon the negative of the first, gives the lost remainder: both are within 2⁻¹⁶ of the sum.
  float32 factors are split into bfloat16 numbers, x = x₁ + x₂ + δ with |δ| ≤ 2⁻¹⁶ |x|;
- elsewhere the operands are widened. Without a kernel of oneDNN, torch's loops over half-precision numbers take ten to
  two hundred times as long as a float32 product.

Passes over a matrix that need copies take a few rows at a time.
"""

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

# The instruction sets without bfloat16 that oneDNN's variable may name, for comparisons between processors.
_WITHOUT_HALF = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI")


def is_held_back(environment: Mapping[str, str]) -> bool:
    """Return True if the environment forbids oneDNN the instructions for bfloat16."""
    limit = environment.get("ONEDNN_MAX_CPU_ISA", environment.get("DNNL_MAX_CPU_ISA", ""))
    return limit.upper() in _WITHOUT_HALF


def _answers_yes(module: Any, *questions: str) -> bool:
    """Return True if torch answers one of the questions with yes.

    Some versions of torch lack some of them.
    """
    return any(getattr(module, question)() for question in questions if hasattr(module, question))


_HELD_BACK = is_held_back(os.environ)

# By dtype: whether oneDNN has a kernel. Without, torch multiplies in a plain loop.
SERVES = {
    torch.bfloat16: not _HELD_BACK and _answers_yes(torch.ops.mkldnn, "_is_mkldnn_bf16_supported"),
    torch.float16: not _HELD_BACK and _answers_yes(torch.ops.mkldnn, "_is_mkldnn_fp16_supported"),
}
# AVX512_BF16 or AMX: faster than float32, accumulated in float32, and rounded once.
MULTIPLIES_BFLOAT16 = SERVES[torch.bfloat16] and _answers_yes(
    torch.cpu, "_is_avx512_bf16_supported", "_is_amx_tile_supported"
)


HALF = (torch.bfloat16, torch.float16)
_CUDA_LEAVES_UNROUNDED = hasattr(torch.ops.aten.mm, "dtype") and torch.version.hip is None


def keeps_float32(input: Tensor) -> bool:
    """Return True if `unrounded` works on the device of `input`."""
    return input.device.type == "cpu" or (input.device.type == "cuda" and _CUDA_LEAVES_UNROUNDED)


def accumulates_fast(input: Tensor) -> bool:
    """Return True if the processor multiplies this dtype faster than float32, accumulated in float32."""
    return input.device.type == "cpu" and input.dtype == torch.bfloat16 and MULTIPLIES_BFLOAT16


def is_served(device: torch.device, dtype: torch.dtype) -> bool:
    """Return True if a product of matrices of this dtype is best computed in it."""
    return device.type != "cpu" or SERVES.get(dtype, True)


def rounded(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """Return left @ right in `dtype`, for operands of that or a wider dtype."""
    if is_served(left.device, dtype):
        return left.to(dtype) @ right.to(dtype)
    return (left.float() @ right.float()).to(dtype)


def split(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the nearest bfloat16 numbers, and those nearest to the remainders."""
    # Rounded in the bits: a compiler that fuses both lines takes a conversion there and back for none at all.
    wide = values.float()
    high = (wide.view(torch.int32) + 0x8000).bitwise_and_(-0x10000).view(torch.float32)
    return high.bfloat16(), (wide - high).bfloat16()


def accumulated(input: Tensor, weight: Tensor) -> Tensor:
    """Return input @ weightᵀ of bfloat16 numbers in float32: the rounded product plus its remainder.

    It is for processors that accumulate it fast.
    """
    product = input @ weight.t()
    left_out = product.neg().addmm_(input, weight.t())
    return product.float().add_(left_out)


def factor_product(input: Tensor, factor: Tensor) -> Tensor:
    """Return input @ factorᵀ in the dtype of `factor` (n, in), which is that of `input` or wider."""
    if not accumulates_fast(input) or factor.dtype != torch.float32:
        return input.to(factor.dtype) @ factor.t()
    both = accumulated(input, torch.cat(split(factor)))
    return both[:, : factor.shape[0]] + both[:, factor.shape[0] :]


def rounded_product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return left @ rightᵀ + bias of float32 matrices, rounded to bfloat16.

    It is for processors that are fast at it. For x · y, the parts [x₁ x₁ x₂] and [y₁ y₂ y₁] leave out 3 · 2⁻¹⁶ |x · y|,
    which the rounding hides.
    """
    (first, second), (high, low) = split(left), split(right)
    lefts, rights = [first, first, second], [high, low, high]
    if bias is not None:
        lefts.append(first.new_ones(first.shape[0], 2))
        rights.append(torch.stack(split(bias), dim=1))
    return torch.cat(lefts, dim=1) @ torch.cat(rights, dim=1).t()


def linear_of_parts(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return input @ weightᵀ + bias of bfloat16 tokens and a float32 weight, rounded to bfloat16.

    It is for the processors of `rounded_product`.
    """
    high, low = split(weight)
    small = input @ low.t() if bias is None else torch.addmm(bias.to(input.dtype), input, low.t())
    return small.addmm_(input, high.t())


def unrounded(input: Tensor, weight: Tensor) -> Tensor:
    """Return input @ weightᵀ of half-precision operands in float32.

    The backward pass keeps the operands unchanged.
    """
    result: Tensor = _Unrounded.apply(input, weight)  # type: ignore[no-untyped-call]
    return result


class _Unrounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(input, weight)
        if input.device.type == "cuda" and _CUDA_LEAVES_UNROUNDED:
            return torch.mm(input, weight.t(), out_dtype=torch.float32)
        if not accumulates_fast(input):
            return input.float() @ weight.float().t()
        return accumulated(input, weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        input, weight = ctx.saved_tensors
        return (
            rounded(gradient, weight, weight.dtype) if ctx.needs_input_grad[0] else None,
            rounded(gradient.t(), input, weight.dtype) if ctx.needs_input_grad[1] else None,
        )


_CACHED = 2**18  # numbers: one float32 megabyte, which stays in a core's cache until it has been reduced
_BUSY = 2**24  # a device with its own memory wants enough work per launch instead


def rows_at_once(columns: int, device: torch.device) -> int:
    """Return the number of rows of `columns` numbers, at least 1."""
    return max(1, (_CACHED if device.type == "cpu" else _BUSY) // max(1, columns))


def column_products(left: Tensor, right: Tensor, offset: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return Σ left · (right - offset) over the rows, in `dtype`, a few rows at a time."""
    result = left.new_zeros(left.shape[1], dtype=dtype)
    step = rows_at_once(left.shape[1], left.device)
    for first in range(0, left.shape[0], step):
        values = right[first : first + step].to(dtype)
        if offset is not None:
            values = values - offset.to(dtype)
        result += (values * left[first : first + step].to(dtype)).sum(0)
    return result


_UNCHANGED: AbstractContextManager[Any] = nullcontext()


def without_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    """Return a context in which autocast casts nothing on the device of `tensor`.

    A trainer may run backward inside autocast, although the forward was computed outside of it. torch's own context
    costs a small layer half a percent of its step, so it is made only where autocast is on.
    """
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else _UNCHANGED


def is_traced() -> bool:
    """Return True if torch records or transforms the operations, which needs single ones."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
