"""The step that settles DoRA's magnitude, which alpha/rank cannot express.

The step keeps it, over other norms or not, drops it, or makes a plain LoRA near the true change.

Magnitudes of outputs over other norms give the same DoRA for programs that divide by those of the base, and back. Both
compute W' = g · V, with g the magnitude over the norm of a row of V = W + delta, or of W. With the weight at hand, one
magnitude follows from the other for every row: the other is g times the other norm.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import cast

import torch

from lora_inspect import schemes
from lora_inspect.architectures.rows import Runs
from lora_inspect.converting.options import ConvertOptions
from lora_inspect.converting.steps.base_change import BaseDependentChange
from lora_inspect.converting.steps.dora_delta import (
    BLOCK_ELEMENTS,
    DeltaCache,
    approximate_change,
    module_change,
    own_weight,
    remembered_deltas,
)
from lora_inspect.converting.steps.part import Context, Factor, ModuleParts, Part, check_finite, rounded
from lora_inspect.converting.steps.respell import without_unchanged
from lora_inspect.converting.target.target_layout import Source
from lora_inspect.converting.target.target_program import due_norms
from lora_inspect.errors import RefusedError
from lora_inspect.files.hashes import sha256
from lora_inspect.maths.change import folded, settled
from lora_inspect.maths.dora import OF_BASE, OVER_BASE, SPELLINGS, DoraSpelling
from lora_inspect.maths.dora_fold import DecomposedRows, magnitude_of
from lora_inspect.maths.low_rank import relative
from lora_inspect.maths.tensors import first_non_finite
from lora_inspect.reading.metadata.output_metadata import describe_file
from lora_inspect.reading.model.contribution import Module
from lora_inspect.reading.scale.dora_evidence import NormsRecord


def other_magnitude(dependent: BaseDependentChange, spelling: DoraSpelling) -> torch.Tensor:
    """Return the magnitude (out,) in the `spelling` that means the same as the module's own, in float64.

    Raises LoraInspectError if one is not finite in float32, as for a row of norm zero.
    """
    weight = own_weight(dependent.places)
    read = partial(_blocks, weight)
    own = (*dependent.before, dependent.contribution)
    *before, (change, _) = settled([(module_change(one, dependent, torch.float64), 1.0) for one in own], read)
    decomposed, other = cast(DecomposedRows, change), magnitude_of(spelling, None)
    values = weight.new_empty(len(weight), dtype=torch.float64)
    for first, rows in folded(before, read, change.together):
        values[first : first + len(rows)] = decomposed.values_of(other, rows, first)
    if (bad := first_non_finite(values.float())) is not None:
        place, _ = dependent.places[0]
        raise RefusedError(
            dependent.file,
            f"a magnitude of {dependent.contribution.module.key} would be {bad}, as its rows or those of "
            f"{place.target.name} are zero, not finite or too large to square",
            "use --rank N or --max-error X, or repair the file that holds such numbers",
        )
    return values


def _blocks(weight: torch.Tensor, together: int) -> Iterator[tuple[int, torch.Tensor]]:
    count = max(1, BLOCK_ELEMENTS // max(1, weight.shape[1]))
    count = max(together, count - count % together) if together else max(1, len(weight))
    for first in range(0, len(weight), count):
        yield first, weight[first : first + count].double()


def norms_record_of(remeasured: Mapping[str, BaseDependentChange], base: str) -> NormsRecord:
    """Return the record of the base at the path `base`, by the weight of the first of the modules."""
    place, _ = next(iter(remeasured.values())).places[0]
    return NormsRecord(describe_file(base), place.target.name, sha256(place.target))


def settle_magnitudes(module: ModuleParts, context: Context) -> ModuleParts:
    """Settle the magnitudes of each source: approximate the true change, use other norms, drop or keep them."""
    options = context.options
    cache = remembered_deltas(context)

    def settled_in(source: Source, parts: Sequence[Part]) -> Sequence[Part]:
        key = source.module.name.key
        if own := context.base_changes.get(key):
            found = _approximate(parts, own, options.rank, options.max_error, cache, source.runs)
            return without_unchanged(found, own)
        if own := context.remeasured.get(key):
            return _remeasure(parts, own, module.target.module, options)
        return _drop(parts) if options.drop_magnitude else _keep(parts)

    return module.each(settled_in)


def _keep(parts: Sequence[Part]) -> Sequence[Part]:
    """Return the parts with their magnitudes; raise LoraInspectError if one is not finite."""
    for part in parts:
        if part.magnitude:
            check_finite(part.magnitude.info)
    return parts


def _drop(parts: Sequence[Part]) -> list[Part]:
    """Drop the magnitudes; the error of that is unknown without a base."""
    return [
        replace(part, magnitude=None, dropped=(part.magnitude.info.name,), error=None) if part.magnitude else part
        for part in parts
    ]


def _remeasure(
    parts: Sequence[Part], dependent: BaseDependentChange, module: Module, options: ConvertOptions
) -> list[Part]:
    """Return the same DoRA with a magnitude over the due norms, in float32, for a `module` of the output.

    The parts are those of the module that has the `dependent` change.
    """
    suffix = schemes.by_name(module.name.scheme).suffixes["magnitude"]
    spelling = OVER_BASE if due_norms(options) == OF_BASE else SPELLINGS[suffix]
    return [_remeasured(part, dependent, spelling) if part.magnitude else part for part in parts]


def _remeasured(part: Part, dependent: BaseDependentChange, spelling: DoraSpelling) -> Part:
    meant = other_magnitude(dependent, spelling)
    written = rounded(meant, "F32")
    lost = relative(float((written - meant).norm()), float(meant.norm()))
    own = part.magnitude
    if own is not None:
        # The base tells a kernel that factors may have flattened.
        shape = (len(meant), *(1 for _ in dependent.shape[1:]))
        own = own._replace(info=own.info._replace(shape=shape), spelling=own.spelling._replace(norms=spelling.norms))
    error = None if part.error is None else part.error + lost
    return replace(part, magnitude=own, lengths=Factor(written, "F32"), error=error)


def _approximate(
    parts: Sequence[Part],
    dependent: BaseDependentChange,
    rank: int | None,
    max_error: float | None,
    cache: DeltaCache,
    runs: Runs | None,
) -> list[Part]:
    """Replace the part that depends on the base by a plain LoRA of its true change.

    It is the change of the rows that `runs` take, None for all.
    """
    own = dependent.contribution
    return [
        _of(part, dependent, rank, max_error, cache, runs)
        if (part.magnitude if own.magnitude else part.algorithm is own.algorithm)
        else part
        for part in parts
    ]


def _of(
    part: Part,
    dependent: BaseDependentChange,
    rank: int | None,
    max_error: float | None,
    cache: DeltaCache,
    runs: Runs | None,
) -> Part:
    """Return the approximation in the shape of the part's factors, or in that of the base's weight."""
    found = approximate_change(dependent, rank, max_error, cache, runs)
    origin = part.origin
    if dependent.is_turned:
        factors = {"down": Factor(found.up.T.contiguous(), "F32"), "up": Factor(found.down.T.contiguous(), "F32")}
        return Part(origin, dependent.algorithm, factors, 1.0, replaced=True, error=found.relative_error)
    is_kept = origin.algorithm is dependent.algorithm
    shape = origin.known_shape if is_kept else dependent.shape
    kernel = origin.factors["up"].shape[2:] if is_kept else (1,) * len(shape[2:])
    return Part(
        origin._replace(alpha=None, magnitude=None),
        dependent.algorithm,
        {
            "down": Factor(found.down.reshape(found.rank, *shape[1:]), "F32"),
            "up": Factor(found.up.reshape(shape[0], found.rank, *kernel), "F32"),
        },
        1.0,
        replaced=True,
        error=found.relative_error,
    )
