"""Whether a tensor that no adapter changes is the same in both models, but for its element type."""

from math import sqrt

import torch

from lora_inspect.files.hashes import are_same_bytes
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.maths.tensors import RowBlocks
from lora_inspect.reading.base.base_codecs import CodedWeight
from lora_inspect.verifying.models import Model
from lora_inspect.verifying.stored_weight import StoredRows, StoredWeight


def difference(
    base: Model, info: TensorInfo, merged: Model, other: TensorInfo, blocks: tuple[RowBlocks, RowBlocks]
) -> str | None:
    """What is different, in words, or None.

    Tensors of one type are different where any number is. Those of two types, and codes with scales, are the same where
    no number differs by more than the distances between the numbers of one type there and of the other: that is what a
    cast does, whichever way it rounds.
    """
    if info.shape != other.shape:
        return f"shape {list(other.shape)} in the place of {list(info.shape)}"
    before, after = base.coded(info), merged.coded(other)
    is_scaled = any(one is not None and one.is_decoded for one in (before, after))
    if info.dtype == other.dtype and not is_scaled and are_same_bytes(info, other, [(0, 0, info.nbytes)]):
        return None
    if before is None or after is None:
        return "other codes" if info.dtype == other.dtype else f"{other.dtype} in the place of {info.dtype}"
    return _numbers(before, after, info.dtype == other.dtype and not is_scaled, blocks)


def _numbers(before: CodedWeight, after: CodedWeight, exact: bool, blocks: tuple[RowBlocks, RowBlocks]) -> str | None:
    first, second = (StoredWeight(one.info, one, own) for one, own in zip((before, after), blocks, strict=True))
    moved, size, count = 0.0, 0.0, 0
    for rows, others in zip(first.rows(), second.rows(), strict=True):
        differ = _differ(rows, others, exact)
        apart = (others.values.double() - rows.values.double())[differ]
        count += len(apart)
        moved += float(apart.square().sum())
        size += float(rows.values.double().square().sum())
    if not count:
        return None
    by = f", by {sqrt(moved / size):.2g} of its size" if 0 < size < float("inf") and moved < float("inf") else ""
    return f"{count:,} of {before.info.numel:,} numbers{by}"


def _differ(rows: StoredRows, others: StoredRows, exact: bool) -> torch.Tensor:
    """Where they differ by more than a cast does; what is not finite is alike where it is the same."""
    one, other = rows.values.double(), others.values.double()
    differ = (one != other) & ~(one.isnan() & other.isnan())
    if exact or not differ.any():
        return differ
    return differ & ~((one - other).abs() <= rows.units().double() + others.units().double())
