"""Where in a weight a change is and where not: modules on rows of their own, and rows that nothing was added to."""

from collections.abc import Sequence
from math import sqrt

import torch
from torch import Tensor

from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.maths.retained_share import SIGMAS
from lora_inspect.verifying.shares import Shares, left_over
from lora_inspect.verifying.sums import Sums
from lora_inspect.verifying.terms import Part, Ranges, Term

# A row is one that lacks a change, or has it, where its share is so near to 0 or to 1.
_NEAR = 0.25
# Rows with less than this of the mean square of a change tell nothing.
_LITTLE = 1e-3


class PartShare(NamedTuple):
    """The share of a module on rows of its own, or of all that an adapter changes in a weight."""

    part: Part
    share: float | None
    noise: float
    square: float


class InRows(NamedTuple):
    """The shares of parts by term, the rows that lack the change of a term, and whether that explains what is there."""

    parts: list[list[PartShare]]
    missing: list[Ranges]
    is_explained: bool


def in_rows(terms: Sequence[Term], sums: Sums, shares: Shares) -> InRows:
    """Looks at rows where the shares of whole weights do not explain what was found."""
    values = torch.tensor(shares.values, dtype=torch.float64, device="cpu").repeat(len(sums.found), 1)
    parts = [_parts(number, term.parts, sums, shares, values) for number, term in enumerate(terms)]
    missing: list[Ranges] = [() for _ in terms]
    explained = shares.is_explained or left_over(sums, values) <= shares.allowed
    if not explained:
        for number in range(len(terms)):
            missing[number] = _missing(number, sums, values)
        explained = any(missing) and left_over(sums, values) <= shares.allowed
    return InRows(parts, missing if explained else [() for _ in terms], explained)


def _parts(term: int, parts: Sequence[Part], sums: Sums, shares: Shares, values: Tensor) -> list[PartShare]:
    """The share of each part, which is entered into the `values` (n, k) of its rows."""
    if len(parts) == 1:
        told = None if shares.why[term] else shares.values[term]
        return [PartShare(parts[0], told, shares.noise[term], float(shares.gram[term, term]))]
    along = _along(term, sums, values)
    whole, found = float(shares.gram[term, term]), []
    for part in parts:
        rows = torch.cat([torch.arange(start, stop, dtype=torch.long, device="cpu") for start, stop in part.rows])
        square = float(sums.gram[rows, term, term].sum())
        share = float(along[rows].sum()) / square if square > 0 else 0.0
        values[rows, term] = share
        told = None if shares.why[term] or square <= 0 else share
        noise = shares.noise[term] * sqrt(whole / square) if square > 0 else 0.0
        found.append(PartShare(part, told, noise, square))
    return found


def _along(term: int, sums: Sums, values: Tensor) -> Tensor:
    """By row, the product of the change with what is left of x without the shares of the others."""
    others = (sums.gram[:, term] * values).sum(1) - sums.gram[:, term, term] * values[:, term]
    return sums.along[:, term] - others


def _missing(term: int, sums: Sums, values: Tensor) -> Ranges:
    """The rows that lack the change, where every row that tells has it or lacks it; entered into `values`."""
    if len(values) < 2:
        return ()
    exact = values.clone()
    exact[:, [other for other in range(values.shape[1]) if other != term]] = 1.0
    squares = sums.gram[:, term, term]
    noise = SIGMAS * (sums.noise / max(sums.entries, 1) / squares.clamp(min=1e-300)).sqrt()
    tells = (squares > _LITTLE * squares.mean()) & (noise < _NEAR)
    share = _along(term, sums, exact) / squares.clamp(min=1e-300)
    lacks, has = tells & (share.abs() < _NEAR), tells & ((share - 1).abs() < _NEAR)
    if not lacks.any() or not has.any() or not ((lacks | has) == tells).all():
        return ()
    values[:, term] = lacks.logical_not().double()
    return _ranges(tells.nonzero().flatten().tolist(), lacks.tolist())


def _ranges(rows: Sequence[int], lacks: Sequence[bool]) -> Ranges:
    """The rows that lack it, as (start, stop); rows that tell nothing belong to those around them."""
    found: list[tuple[int, int]] = []
    was = False
    for row in rows:
        if lacks[row]:
            found.append((found.pop()[0] if was else row, row + 1))
        was = lacks[row]
    return tuple(found)
