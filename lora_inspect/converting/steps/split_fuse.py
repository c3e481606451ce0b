"""The steps that split and fuse layers: rows of parts in another layout, and slices of a fused layer.

A factor with the rows of a change is taken row by row. The factors that it is multiplied by stack in rows, and its own
columns go side by side, with zeros where they would meet those of another part. Parts that share such factors share the
columns too, so split layers come together again at their own rank.

Loaders do not know numbered slices, so the slices of a fused layer become one pair of factors. Slices that share down
factors stack their up factors at no cost; others form blocks, each with columns of its own.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch

from lora_inspect.algorithms.record import Role
from lora_inspect.architectures.rows import Runs
from lora_inspect.converting.growth import Growth
from lora_inspect.converting.steps.part import (
    Context,
    Factor,
    ModuleParts,
    Part,
    as_factor,
    change_norm,
    joined,
    read_factor,
    rows_in_order,
    scaled,
    zeros,
)
from lora_inspect.converting.target.key_names import FACTORS
from lora_inspect.converting.target.target_layout import Destination, are_movable
from lora_inspect.errors import LoraInspectError, RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.safetensors.writer import TensorPlan
from lora_inspect.maths.dora import OUTPUT
from lora_inspect.maths.low_rank import relative

Values = Mapping[Role, Factor]


class PartRows(NamedTuple):
    """A part, and where its rows are in the whole."""

    part: Part
    runs: Runs


def arrange(destination: Destination, found: Sequence[Sequence[Part]], carrier: str, growth: Growth) -> Sequence[Part]:
    """Return the parts of a module of the output from those `found` in each of its sources.

    Raises LoraInspectError for an algorithm that does not allow moving rows, or if `growth` refuses the size.
    """
    rows = destination.rows
    if rows is None:
        return found[0]
    pieces: dict[str, list[PartRows]] = defaultdict(list)
    for source, parts in zip(destination.sources, found, strict=True):
        for part in parts:
            pieces[part.algorithm.name].append(PartRows(part, source.runs or Runs(0, rows)))
    scale = 1.0 if carrier == FACTORS else None
    arranged: dict[str, Part] = {}
    for name, of_algorithm in pieces.items():
        # What stands beside another change, which comes before it, is multiplied by the scale of that.
        bearer = of_algorithm[0].part.algorithm.beside
        arranged[name] = _arranged(of_algorithm, rows, arranged[bearer].scale if bearer in arranged else scale, growth)
    return list(arranged.values())


def _arranged(pieces: Sequence[PartRows], rows: int, scale: float | None, growth: Growth) -> Part:
    for part, _ in pieces:
        _check(part)
    alone = len(pieces) == 1 and pieces[0].runs.rows == rows
    return _reordered(*pieces[0]) if alone else stack(pieces, rows, scale, growth)


def _check(part: Part) -> None:
    if not are_movable(part.algorithm, {role: part.shapes[role] for role in part.factors}):
        raise RefusedError(
            part.file,
            f"{part.origin.module.key} is {part.algorithm.title}, and its rows cannot be split or joined",
            "merge it into a base of either layout, convert it to plain LoRA with --algorithm lora, or keep its layout",
        )


def _reordered(part: Part, runs: Runs) -> Part:
    """Return the part with some of its rows, or with all of them in another order."""
    order = rows_in_order(runs)
    by_role = part.algorithm.rows
    own = {role: as_factor(factor) for role, factor in part.factors.items() if role in by_role}
    taken = {role: Factor(factor.values[order], factor.dtype) for role, factor in own.items()}
    lengths = part.lengths
    if part.magnitude and part.magnitude.axis == OUTPUT:
        values = part.lengths or read_factor(part.magnitude.info)
        lengths = Factor(values.values.flatten()[order], values.dtype)
    elif part.magnitude and runs.rows < next(iter(own.values())).shape[0]:
        raise _needs_all_rows(part)
    moved = replace(part, factors={**part.factors, **taken}, lengths=lengths)
    return _without_empty_columns(replace(moved, error=_share_of_rows(part, moved)), taken)


def _share_of_rows(whole: Part, rows: Part) -> float | None:
    """Return the largest possible error of the rows: all that the whole lost, as a share of a smaller change."""
    if not whole.error:
        return whole.error
    before, after = (
        change_norm(part.formula, {role: as_factor(factor).values for role, factor in part.factors.items()})
        for part in (whole, rows)
    )
    return relative(whole.error * before, after)


def _without_empty_columns(part: Part, taken: Values) -> Part:
    """Return the part without the columns of its products that are zero in all the `taken` rows."""
    inner = {role: other for role, other in part.algorithm.rows.items() if other}
    used = [factor.values.ne(0).any(0) for role, factor in taken.items() if role in inner]
    if not used or torch.stack(used).any(0).all():
        return part
    # A product has one column at least.
    found = torch.stack(used).any(0)
    columns = found.nonzero().flatten() if found.any() else found.new_zeros(1, dtype=torch.long)
    narrow = {role: Factor(taken[role].values[:, columns], taken[role].dtype) for role in inner}
    below = {other: as_factor(part.factors[other]) for other in inner.values()}
    short = {other: Factor(factor.values[columns], factor.dtype) for other, factor in below.items()}
    return replace(part, origin=part.origin._replace(alpha=None), factors={**part.factors, **narrow, **short})


def stack(pieces: Sequence[PartRows], rows: int, scale: float | None, growth: Growth) -> Part:
    """Return one part of `rows` rows with the pieces, of one algorithm, in their places, and zeros elsewhere.

    Its scale is `scale`, or the largest of the pieces' own. Raises LoraInspectError if `growth` refuses the size,
    before the factors are made, or if the pieces have no magnitude of all of the rows.
    """
    parts = [part for part, _ in pieces]
    own = [part.scale for part in parts]
    common = (max(own, key=abs) or 1.0) if scale is None else scale
    meant = [{role: as_factor(factor) for role, factor in part.factors.items()} for part in parts]
    shares = [mine / common for mine in own]
    role = next((role for role in parts[0].algorithm.scaled if role in meant[0]), None)
    written = [
        {**values, role: scaled(values[role], share)} if role else values
        for values, share in zip(meant, shares, strict=True)
    ]
    errors = [part.error for part in parts]
    known = [error for error in errors if error is not None]
    return Part(
        parts[0].origin._replace(rows=None, alpha=None),
        parts[0].algorithm,
        _joined_factors(written, pieces, rows, growth),
        common,
        magnitude=parts[0].magnitude,
        lengths=_joined_lengths(pieces, rows),
        folded=own[0] / common if len(set(own)) == 1 else 1.0,
        replaced=any(part.replaced for part in parts),
        error=max(known) + _lost(parts[0], role, meant, written, shares) if len(known) == len(errors) else None,
        dropped=tuple(key for part in parts for key in part.dropped),
    )


def _joined_factors(
    written: Sequence[Values], pieces: Sequence[PartRows], rows: int, growth: Growth
) -> dict[Role, Factor]:
    key, by_role = pieces[0].part.origin.module.key, pieces[0].part.algorithm.rows
    inner = [role for role in by_role.values() if role]
    groups, kept = _distinct([[values[role].values for role in inner] for values in written])
    found: dict[Role, Factor] = {}
    for role, other in by_role.items():
        factors = [values[role] for values in written]
        ranks = [written[at][other].shape[0] for at in kept] if other else []
        shape = (rows, sum(ranks)) if other else (rows, *factors[0].shape[1:])
        growth.refuse_more(TensorPlan("", dtype := joined(factors), shape).nbytes, f"all rows of {key}")
        whole = zeros(shape, dtype)
        for factor, group, piece in zip(factors, groups, pieces, strict=True):
            columns = slice(sum(ranks[:group]), sum(ranks[: group + 1])) if other else ...
            for first, last, source in piece.runs.each():
                whole[first:last, columns] = factor.values[source : source + last - first]
        found[role] = Factor(whole, dtype)
        if other:
            stacked = [written[at][other] for at in kept]
            found[other] = Factor(torch.cat([factor.values for factor in stacked]), joined(stacked))
    return found


def _distinct(tensors: Sequence[Sequence[torch.Tensor]]) -> tuple[list[int], list[int]]:
    """Return the group number of each list, with equal lists in one group, and the first list of each group."""
    groups: list[int] = []
    kept: list[int] = []
    for at, own in enumerate(tensors):
        equal = (group for group, first in enumerate(kept) if all(map(torch.equal, tensors[first], own)))
        group = next(equal, len(kept)) if own else 0
        if group == len(kept):
            kept.append(at)
        groups.append(group)
    return groups, kept


def _joined_lengths(pieces: Sequence[PartRows], rows: int) -> Factor | None:
    decomposed = [part for part, _ in pieces if part.magnitude]
    magnitudes = [part.magnitude for part in decomposed if part.magnitude]
    if not magnitudes:
        return None
    first = decomposed[0]
    if any(magnitude.axis != OUTPUT for magnitude in magnitudes):
        raise _needs_all_rows(first)
    rules = {magnitude.spelling for magnitude in magnitudes}
    if len(magnitudes) < len(pieces) or len(rules) > 1 or sum(runs.rows for _, runs in pieces) < rows:
        raise RefusedError(
            first.file,
            f"{first.origin.module.key} has a magnitude, but other rows of the layer that it joins have none, "
            "or one in another spelling",
            "choose --base BASE or --drop-magnitude, or keep its layout",
        )
    values = [part.lengths or read_factor(own.info) for part, own in zip(decomposed, magnitudes, strict=True)]
    whole = zeros((rows,), joined(values))
    for lengths, (_, runs) in zip(values, pieces, strict=True):
        for start, stop, source in runs.each():
            whole[start:stop] = lengths.values.flatten()[source : source + stop - start]
    return Factor(whole, joined(values))


def _needs_all_rows(part: Part) -> LoraInspectError:
    return RefusedError(
        part.file,
        f"{part.origin.module.key} has a magnitude of inputs, and its norm covers all rows of the layer",
        "choose --base BASE or --drop-magnitude, or keep its layout",
    )


def _lost(
    part: Part, role: Role | None, meant: Sequence[Values], written: Sequence[Values], shares: Sequence[float]
) -> float:
    """Return ‖the rounding error of the factors of `role`‖ / ‖the change‖ of all pieces; 0 without a role."""
    if role is None:
        return 0.0
    norm_of = partial(change_norm, part.formula)
    due = [values[role].values * share for values, share in zip(meant, shares, strict=True)]
    off = [rounded[role].values - exact for rounded, exact in zip(written, due, strict=True)]
    if not any(map(torch.any, off)):
        return 0.0
    factors = [{other: factor.values for other, factor in values.items()} for values in meant]
    lost = [norm_of({**values, role: difference}) for values, difference in zip(factors, off, strict=True)]
    norm = [norm_of({**values, role: exact}) for values, exact in zip(factors, due, strict=True)]
    return relative(math.hypot(*lost), math.hypot(*norm))


def arrange_rows(module: ModuleParts, context: Context) -> ModuleParts:
    """Put the rows of all sources in the order of the output's module."""
    parts = arrange(module.target, module.found, module.carrier, context.growth)
    return replace(module, parts=parts)


def fuse_slices(module: ModuleParts, context: Context) -> ModuleParts:
    """Fuse the slices of a split layer into one part, in each source."""
    return module.each(lambda source, parts: fused_slices(parts, module.carrier, context.growth))


def fused_slices(parts: Sequence[Part], carrier: str, growth: Growth) -> Sequence[Part]:
    """Return one part in the place of a split layer's slices; keep a whole part as it is.

    Its scale is 1 if readers know none, else the largest of the slices' own. Raises LoraInspectError if `growth`
    refuses the size, before the blocks are made.
    """
    slices = [(part, part.origin.rows) for part in parts if part.origin.rows is not None]
    if not slices:
        return parts
    whole = [part for part in parts if part.origin.rows is None]
    pieces = [PartRows(part, Runs(start, stop - start)) for part, (start, stop) in slices]
    return [stack(pieces, slices[-1][1][1], 1.0 if carrier == FACTORS else None, growth), *whole]
