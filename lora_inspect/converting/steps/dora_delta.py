"""The change of a module to its base weight as a plain LoRA of a chosen rank or error: DoRA's, or OFT's.

The weight is read from the base as the module's own rows in their order, wherever the base has them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from math import prod

import torch

from lora_inspect.architectures.rows import Runs
from lora_inspect.caching import Remembered
from lora_inspect.converting.steps.base_change import BaseDependentChange
from lora_inspect.converting.steps.part import Context, few_rows, in_rows, read_operands
from lora_inspect.errors import RefusedError
from lora_inspect.matching.placement import Place, Placement
from lora_inspect.maths.change import Change, deltas, folded, settled
from lora_inspect.maths.low_rank import Approximation, approximate
from lora_inspect.maths.tensors import RowBlocks, first_non_finite, working_dtype
from lora_inspect.reading.base.base_codecs import CodedWeight
from lora_inspect.reading.model.contribution import Contribution

# A block of rows that is read at once: 4 MB in float32.
BLOCK_ELEMENTS = 1 << 20


def own_weight(places: Sequence[tuple[Place, CodedWeight]]) -> torch.Tensor:
    """Return the matrix (out, in·kernel) of all places' rows, in float32, or float64 if one is stored so.

    Raises LoraInspectError if the codes of a weight are no numbers.
    """
    shapes = [place.shape for place, _ in places]
    rows, columns = sum(shape[0] for shape in shapes), prod(shapes[0][1:])
    dtypes = {working_dtype(weight.info) for _, weight in places}
    dtype = torch.float64 if torch.float64 in dtypes else torch.float32
    own = torch.empty(rows, columns, dtype=dtype, device="cpu")
    blocks = RowBlocks(BLOCK_ELEMENTS)
    for place, weight in places:
        for first, block in blocks.read(weight.info, decode=weight.decode):
            take_rows(own, block, first, place)
    return own


def take_rows(own: torch.Tensor, block: torch.Tensor, first: int, place: Place) -> None:
    """Copy the rows of its own from a block of the stored weight that begins at row `first`."""
    if place.block:
        start, rows = place.block
        begin, end = max(first, start), min(first + block.shape[0], start + rows)
        block, first = block[max(begin - first, 0) : max(end - first, 0)], begin - start
    last = first + block.shape[0]
    for start, stop, source in _runs(place):
        if place.transposed:
            own[source : source + stop - start, first:last] = block[:, start:stop].transpose(0, 1)
        elif (begin := max(first, start)) < (end := min(last, stop)):
            own[source + begin - start : source + end - start] = block[begin - first : end - first]


def _runs(place: Place) -> Sequence[tuple[int, int, int]]:
    return [(0, place.shape[0], 0)] if place.runs is None else list(place.runs.each())


# What a base tells of the module that was last asked for, by its name and the parameter: a fused layer is asked for by
# each of the layers that take rows of it, one after the other.
DeltaCache = Remembered[tuple[str, str], torch.Tensor]


def remembered_deltas(context: Context) -> DeltaCache:
    """Return the changes that the steps of one conversion remember for each other."""
    cache: DeltaCache = context.kept.setdefault("dora_delta", DeltaCache(1))
    return cache


def approximate_change(
    dependent: BaseDependentChange,
    rank: int | None,
    max_error: float | None,
    cache: DeltaCache,
    runs: Runs | None = None,
) -> Approximation:
    """Return the low-rank approximation of the true change, with factors in float32; raise as `true_change` does.

    If `runs` take some of the rows, it approximates only those, and is zero in all others.
    """
    change = remembered_delta(dependent, cache, runs)
    taken = few_rows(runs, len(change))
    if taken is None:
        return approximate(change, rank, max_error, torch.float32)
    found = approximate(change[taken], rank, max_error, torch.float32)
    return replace(found, up=in_rows(found.up, taken, len(change)))


def remembered_delta(dependent: BaseDependentChange, cache: DeltaCache, runs: Runs | None) -> torch.Tensor:
    """Return the true change, cached if `runs` take some of its rows."""
    own = dependent.contribution
    key = own.module.key, own.algorithm.parameter
    return cache.of(key, partial(true_change, dependent)) if runs else true_change(dependent)


def true_change(dependent: BaseDependentChange) -> torch.Tensor:
    """Return W' - W as (out, in·kernel), with the module's earlier changes in W.

    Raises LoraInspectError if it is not finite.
    """
    weight = own_weight(dependent.places)
    for other in dependent.before:
        _fold(module_change(other, dependent, weight.dtype), weight)
    own = module_change(dependent.contribution, dependent, weight.dtype)
    ((_, rows),) = deltas([(own, 1.0)], partial(_at_once, weight))
    difference: torch.Tensor = rows
    if first_non_finite(difference) is not None:
        place, _ = dependent.places[0]
        raise RefusedError(
            dependent.file,
            f"the change that {dependent.contribution.module.key} makes to {place.target.name} is not finite or too "
            "large to take its norm",
            "lower its alpha, or repair the file that holds such numbers",
        )
    return difference


def module_change(contribution: Contribution, dependent: BaseDependentChange, dtype: torch.dtype) -> Change:
    """Return the change of the module's own rows as (out, in·kernel), with factors in `dtype`."""
    place, _ = dependent.places[0]
    placed = Placement(contribution, Place(place.target._replace(shape=dependent.shape)))
    return placed.read_change(partial(read_operands, dtype=dtype), lambda seen: iter(()), dtype)


def _fold(change: Change, matrix: torch.Tensor) -> None:
    """Fold the change into all rows at once."""
    read = partial(_at_once, matrix)
    for _ in folded(settled([(change, 1.0)], read), read):
        pass


def _at_once(matrix: torch.Tensor, together: int) -> Iterator[tuple[int, torch.Tensor]]:
    yield 0, matrix
