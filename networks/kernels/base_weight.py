"""The numeric weight of a base layer, in any storage.

Sums over it are computed block by block: a half-precision or fp8 weight never exists in float32 as a whole.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lora_inspect.codecs.record import multiply
from lora_inspect.codecs.scale_weight import blocks_of

from .coded_weight import PLAIN_CLASSES, decoder_of, decodes, stored_weight
from .half_precision import rows_at_once

# From some rows of W, the number of the first and their sums of squares to the sums of squares of the changed rows.
CombinedSquares = Callable[[Tensor, int, Tensor], Tensor]

PLAIN_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

_PIECE = 256  # squares that are added up one after another, before their sums are added in pairs


class UnknownValues(ValueError):
    """The values of a base weight are unknown: nothing tells how to decode it."""


def is_plain(tensor: Tensor) -> bool:
    """Return True if the stored numbers are the values, in a dtype for computation."""
    return tensor.dtype in PLAIN_DTYPES and type(tensor) in PLAIN_CLASSES


def storage_of(tensor: Tensor) -> str:
    """Return a description of the storage of a tensor that is not plain."""
    return str(tensor.dtype) if type(tensor) in PLAIN_CLASSES else f"{type(tensor).__name__} of {tensor.dtype}"


def is_sharded(tensor: Tensor) -> bool:
    """Return True if this process holds only a part of the tensor (a DTensor of FSDP2 or tensor parallelism)."""
    # Torch 2.4 cannot trace a question after an attribute of a tensor.
    return hasattr(type(tensor), "full_tensor")


def true_weight(base: nn.Module, dtype: torch.dtype) -> Tensor:
    """Return the detached weight (out, in, *kernel) in `dtype`.

    The layer's `scale_weight` multiplies an fp8 weight; without one, its values are plain casts. The scale has the
    shape [1], [out, 1] or, for blocks along the input, [out, blocks, 1]. Raises UnknownValues for other storage, and
    ValueError for another shape of the scale. A sharded weight is gathered over the network, so every process has to
    call this.
    """
    weight, scale = _stored(base)
    return _values(weight, scale, dtype)


def squares_and_products(base: nn.Module, matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums of squares (out,) of the rows of W (out, in·kernel), and W @ matrixᵀ (out, rank).

    Both are in the dtype of `matrix` (rank, in·kernel), from one pass over W. Errors are those of `true_weight`.
    """
    results = [(row_squares(rows), rows @ matrix.t()) for rows in _blocks(base, matrix.dtype)]
    return torch.cat([squares for squares, _ in results]), torch.cat([products for _, products in results])


def squares_with_change(
    base: nn.Module, combined_squares: CombinedSquares, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return the sums of squares (out,) of the rows of W, with and without a change.

    Both are in `dtype`, from one pass over W. Errors are those of `true_weight`.
    """
    found: list[tuple[Tensor, Tensor]] = []
    first = 0
    for rows in _blocks(base, dtype):
        squares = row_squares(rows)
        found.append((squares, combined_squares(rows, first, squares)))
        first += rows.shape[0]
    return torch.cat([squares for squares, _ in found]), torch.cat([squares for _, squares in found])


def _blocks(base: nn.Module, dtype: torch.dtype) -> Iterator[Tensor]:
    if torch.compiler.is_compiling():  # a graph plans its own passes
        return iter([true_weight(base, dtype).flatten(1)])
    return _row_blocks(base, dtype)


def row_squares(rows: Tensor) -> Tensor:
    """Return the sums of squares (out,) of the rows (out, columns), without a copy of them.

    They are summed in pieces, since CPUs add one number after another.
    """
    whole = rows.shape[1] - rows.shape[1] % _PIECE
    pieces = rows[:, :whole].view(rows.shape[0], whole // _PIECE, _PIECE)
    norms, rest = torch.linalg.vector_norm(pieces, dim=2), torch.linalg.vector_norm(rows[:, whole:], dim=1)
    squares: Tensor = norms.square().sum(1) + rest.square()
    return squares


def _whole(tensor: Any) -> Any:
    return (tensor.full_tensor() if is_sharded(tensor) else tensor).detach()


def _stored(base: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Return the stored weight and its scale, both whole; for codes, the decoded values."""
    decoder = decoder_of(base)
    if decoder is not None:
        return decoder.values(base, stored_weight(base)).detach(), None
    weight = _whole(base.weight)
    if not weight.is_floating_point():
        raise UnknownValues(f"a base weight is stored as {weight.dtype}, but the values of its codes are unknown")
    if decodes(weight):
        weight = weight.dequantize()
    elif type(weight).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        raise UnknownValues(f"a base weight is stored as {storage_of(weight)}, but its values are unknown")
    scale = getattr(base, "scale_weight", None)
    return weight, None if scale is None else _whole(scale)


def _row_blocks(base: nn.Module, dtype: torch.dtype) -> Iterator[Tensor]:
    """Yield the weight as (rows, in·kernel) in `dtype`, a few rows at a time."""
    weight, scale = _stored(base)
    step = rows_at_once(weight[0].numel(), weight.device)
    per_row = scale if scale is not None and scale.dim() > 1 and scale.shape[0] == weight.shape[0] else None
    for first in range(0, weight.shape[0], step):
        rows = slice(first, first + step)
        yield _values(weight[rows], scale if per_row is None else per_row[rows], dtype).flatten(1)


def _values(weight: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    values = weight.to(dtype)
    if weight.dtype in PLAIN_DTYPES or scale is None:
        return values
    blocks = blocks_of(tuple(weight.shape), tuple(scale.shape))
    if blocks is None:
        raise ValueError(
            f"a scale_weight of shape {list(scale.shape)} does not match a weight of shape {list(weight.shape)}"
        )
    rows = values.reshape(values.shape[0], -1)
    multiply(rows, scale.to(values).reshape(blocks.grid(*rows.shape)), blocks, 0)
    return rows.view(weight.shape)
