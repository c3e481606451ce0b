"""What the shares in one weight are computed from: sums over the entries of each row, gathered as the rows go by."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import lcm

import torch
from torch import Tensor

from lora_inspect.maths.change import Link
from lora_inspect.maths.rounding import GRIDS, ROUNDING
from lora_inspect.maths.tensors import first_non_finite
from lora_inspect.verifying.stored_weight import StoredRows, StoredWeight

# Of a weight of many rows, rounding is looked up in each eighth: it is a third of all that is to be computed.
_MANY, _EVERY = 256, 8


@dataclass(frozen=True, slots=True)
class Sums:
    """For each of n rows, in float64, with x = merged - base and d_t the change that term t of k makes.

    `found` (n,) is the sum of x², `along` (n, k) of x · d_t, `gram` (n, k, k) of d_t · d_s. `noise` (n,) is the sum of
    the variances that rounding gives the entries, and `base_noise` (n,) that of rounding the base, where that is
    stored more coarsely. With e what rounding takes from an exact merge, `lost` (n, k) is the sum of e · d_t and
    `lost_squares` (n,) of e². `entries` is the length of a row. `broken` counts the entries that are not finite.
    """

    found: Tensor
    along: Tensor
    gram: Tensor
    noise: Tensor
    base_noise: Tensor
    lost: Tensor
    lost_squares: Tensor
    entries: int
    broken: int = 0


def sums_of(terms: Sequence[Sequence[Link]], base: StoredWeight, merged: StoredWeight, across: bool = False) -> Sums:
    """The sums of one weight, with the settled links of each term.

    `across` sums over columns in the place of rows, for weights that are stored as (in, out).
    """
    together = lcm(1, *(change.together for links in terms for change, _ in links))
    parts: list[list[Tensor]] = []
    broken, entries = 0, 0
    step = _EVERY if base.info.shape and base.info.shape[0] >= _MANY else 1
    for before, after in zip(base.rows(together), merged.rows(together), strict=True):
        if first_non_finite(after.values) is not None:
            broken += int((~after.values.isfinite()).sum())
            continue
        fields = list(_of_block(terms, before, after, 0 if across else 1, step))
        rows, columns = before.values.shape
        entries = entries + rows if across else columns
        if across and parts:
            parts = [[old.add_(new) for old, new in zip(parts[0], fields, strict=True)]]
        else:
            parts.append(fields)
    if broken or not parts:
        return _nothing(len(terms), broken)
    found, noise, base_noise, lost_squares, along, lost, gram = (torch.cat(of) for of in zip(*parts, strict=True))
    return Sums(found, along, gram, noise, base_noise, lost, lost_squares, entries)


def _of_block(
    terms: Sequence[Sequence[Link]], before: StoredRows, after: StoredRows, axis: int, step: int
) -> Iterator[Tensor]:
    """The fields of `Sums`, vectors first, for one block of the weight; that of the base is changed.

    What rounding does is looked up in each `step`th row.
    """
    rows = before.values
    after = after._replace(values=after.values.to(rows.dtype)).as_found()
    seen = after.every(step)
    x = after.values - rows
    is_coarser = GRIDS[before.dtype].bits < GRIDS[after.dtype].bits
    base_noise = before.every(step).units().square_().mul_(ROUNDING) if is_coarser else torch.zeros_like(seen.values)
    changes = [_folded(links, rows, before.first) for links in terms]
    lost = seen.rounded(rows[::step]).sub_(rows[::step])

    def total(values: Tensor) -> Tensor:
        return values.sum(axis).double()

    def estimated(values: Tensor) -> Tensor:
        if axis == 0:
            return total(values) * (len(rows) / len(values))
        return total(values).repeat_interleave(step)[: len(rows)]

    yield total(x * x)
    yield estimated(seen.noise())
    yield estimated(base_noise)
    yield estimated(lost * lost)
    count = x.shape[1 - axis]
    along, lost_along = (x.new_empty(count, len(changes), dtype=torch.float64) for _ in range(2))
    gram = x.new_empty(count, len(changes), len(changes), dtype=torch.float64)
    for t, d in enumerate(changes):
        along[:, t], lost_along[:, t] = total(x * d), estimated(lost * d[::step])
        for s in range(t + 1):
            gram[:, t, s] = gram[:, s, t] = total(d * changes[s])
    yield along
    yield lost_along
    yield gram


def _folded(links: Sequence[Link], rows: Tensor, first: int) -> Tensor:
    """Folds them into the rows, and returns what that changed."""
    before = rows.clone()
    for change, multiplier in links:
        change.fold(rows, first, multiplier)
    return torch.sub(rows, before, out=before)


def _nothing(terms: int, broken: int) -> Sums:
    shapes = (0,), (0, terms), (0, terms, terms)
    vector, matrix, cube = (torch.zeros(shape, dtype=torch.float64, device="cpu") for shape in shapes)
    return Sums(vector, matrix, cube, vector, vector, matrix, vector, 0, broken)
