"""The slices of a fused layer as one pair of factors, which loaders know instead of numbered ones.

Slices that share down factors stack their up factors at no cost; others stand in blocks, each with columns of its own.
"""

import math
from collections.abc import Sequence

import torch

from lora_inspect.converting.growth import Growth
from lora_inspect.converting.naming import FACTORS
from lora_inspect.converting.part import Part
from lora_inspect.converting.scaled_factors import Factor, joined, product_norm, read_factor, relative, scaled, zeros
from lora_inspect.files.writer import TensorPlan
from lora_inspect.maths import fusing


def fuse_slices(parts: Sequence[Part], carrier: str, growth: Growth) -> Sequence[Part]:
    """One part in the place of a split layer's slices; what is whole stays as it is.

    Its scale is 1 where readers know none, else the largest of the slices' own. Raises LoraInspectError where
    `growth` refuses the size, before the blocks are made.
    """
    slices = [part for part in parts if part.origin.rows is not None]
    if not slices:
        return parts
    whole = [part for part in parts if part.origin.rows is None]
    return [_fuse(slices, 1.0 if carrier == FACTORS else None, growth), *whole]


def _fuse(parts: Sequence[Part], scale: float | None, growth: Growth) -> Part:
    first = parts[0].origin
    module = first.module.key
    downs, ups = ([read_factor(part.origin.factors[role]) for part in parts] for role in ("down", "up"))
    own = [part.scale for part in parts]
    common = (max(own, key=abs) or 1.0) if scale is None else scale
    shares = [mine / common for mine in own]
    written = [scaled(up, share) for up, share in zip(ups, shares, strict=True)]
    kept, columns = _distinct(downs)
    rows, rank = fusing.shape_of([up.values for up in ups], columns)
    up_dtype, down_dtype = joined(written), joined(kept)
    for dtype, shape in ((up_dtype, (rows, rank)), (down_dtype, (rank, downs[0].values.shape[1]))):
        growth.take(TensorPlan(module, dtype, shape).nbytes, f"the fused slices of {module}")
    up = fusing.place(zeros(rows, rank, up_dtype), [part.values for part in written], columns)
    lost, norm = [], []
    for part, share, meant, down in zip(written, shares, ups, downs, strict=True):
        lost.append(product_norm(part.values - share * meant.values, down.values))
        norm.append(product_norm(share * meant.values, down.values))
    stacked = Factor(torch.cat([down.values for down in kept]), down_dtype)
    return Part(
        first._replace(rows=None, alpha=None),
        first.algorithm,
        {"down": stacked, "up": Factor(up, up_dtype)},
        common,
        folded=own[0] / common if len(set(own)) == 1 else 1.0,
        error=relative(math.hypot(*lost), math.hypot(*norm)),
    )


def _distinct(downs: Sequence[Factor]) -> tuple[list[Factor], list[int]]:
    """The down factors without repetitions, and the first column of up that belongs to each of the slices."""
    kept: list[Factor] = []
    places: list[int] = []
    for down in downs:
        place = next((i for i, other in enumerate(kept) if torch.equal(other.values, down.values)), len(kept))
        if place == len(kept):
            kept.append(down)
        places.append(place)
    starts = fusing.starts([down.values for down in kept])
    return kept, [starts[place] for place in places]
