"""The change of one weight as a tensor: a merge of a weight that the caller has, or that is not needed.

The formulas and their order are those of a merge; only slices and experts of a base are missing.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from lora_inspect.algorithms.lora import other_than
from lora_inspect.architectures.rows import Runs
from lora_inspect.errors import LoraInspectError, RefusedError
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.matching.orientation import covered_shape
from lora_inspect.matching.placement import Place, Placement
from lora_inspect.maths.change import deltas
from lora_inspect.maths.dora import INPUT
from lora_inspect.maths.tensors import RowBlocks, first_non_finite
from lora_inspect.merging.factor_reader import FactorReader
from lora_inspect.merging.fold_chain import Fold, LinkReader, no_numbers_of_a_change
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.model.contribution import Contribution

_Shape = tuple[int, ...]


def needs_weight(contribution: Contribution) -> bool:
    """Return True if the change depends on the weight that it is for."""
    is_moved = bool(contribution.residual) and not contribution.on_residual
    return contribution.multiplies or contribution.algorithm.replaces or is_moved


def lone_change(adapter: Adapter, changes: Sequence[Contribution], weight: Tensor | None) -> Tensor:
    """Return the change of one parameter of one module by all its `changes`, in the shape as stored.

    The parameter itself, `weight`, is needed if a change depends on it, and determines the shape. Computed in float32;
    in float64 if a change is stored so or depends on the weight, since it is a difference then.

    Raises LoraInspectError if the change cannot be computed this way, a shape does not match or a number is not finite.
    """
    _check_computed(adapter, changes, weight is not None)
    shape = _stored_shape(changes) if weight is None else tuple(weight.shape)
    if shape is None:
        raise _refused(adapter, changes[0], "does not determine the shape of its weight; give the base's weight")
    is_wide = any(map(needs_weight, changes)) or any(i.dtype == "F64" for c in changes for i in c.operands.values())
    is_wide = is_wide or (weight is not None and weight.dtype == torch.float64)
    target = TensorInfo(changes[0].module.key, "F64" if is_wide else "F32", shape, "", 0, 0)
    folds = [Fold(_placed(adapter, one, target), 1.0, adapter) for one in changes]
    # A change that is its own is not rounded by a weight beside it.
    start = _matrix(shape, weight if any(map(needs_weight, changes)) else None, is_wide)
    try:
        change = _delta(start, folds)
    except LinAlgError as error:
        raise no_numbers_of_a_change(target, folds[-1]) from error
    value = first_non_finite(change)
    if value is not None:
        raise _refused(adapter, changes[0], f"changes its weight by {value}; repair the file, or fetch it again")
    return change.reshape(shape)


def _delta(start: Tensor, folds: Sequence[Fold]) -> Tensor:
    def read(together: int) -> Iterator[tuple[int, Tensor]]:
        yield 0, start.clone()

    reader = LinkReader(RowBlocks(1), FactorReader(), {})
    ((_, rows),) = deltas([link for fold in folds for link in reader.links(fold, read, None)], read)
    delta: Tensor = rows
    return delta


def _matrix(shape: _Shape, weight: Tensor | None, is_wide: bool) -> Tensor:
    """Return the weight as a merge sees one, (rows, columns); zeros where none is needed."""
    dtype = torch.float64 if is_wide else torch.float32
    rows = shape[0] if shape else 1
    if weight is None:
        return torch.zeros(shape, dtype=dtype, device="cpu").reshape(rows, -1)
    return weight.detach().to("cpu", dtype).reshape(rows, -1)


def _placed(adapter: Adapter, contribution: Contribution, target: TensorInfo) -> Placement:
    """Return the contribution on the whole weight, or on its rows of it; raises LoraInspectError if it does not fit."""
    rows = contribution.rows
    place = Place(target, transposed=_is_turned(contribution, target.shape))
    if rows is None:
        wrong = contribution.formula.misfit(contribution.shapes, place.shape)
    else:
        covered = covered_shape(adapter.modules[contribution.module.key])
        wrong = other_than(tuple(size or 0 for size in covered), place.shape)
        place = place._replace(runs=Runs(rows[0], rows[1] - rows[0]))
    magnitude = contribution.magnitude
    if wrong is None and magnitude and magnitude.axis == INPUT and magnitude.info.numel != place.shape[1]:
        wrong = f"has a magnitude of {magnitude.info.numel} inputs"
    if wrong:
        shown = list(target.shape)
        raise _refused(adapter, contribution, f"{wrong}, but the weight is {shown}; give the weight of this layer")
    placed = Placement(contribution, place)
    placed.check_groups()
    return placed


def _stored_shape(changes: Sequence[Contribution]) -> _Shape | None:
    """Return the stored shape of the parameter by the factors; None if a part of it stays open."""
    for one in changes:
        shape = one.shape
        if one.rows:
            shape = (max(other.rows[1] for other in changes if other.rows), *shape[1:])
        known = tuple(size for size in shape if size is not None)
        if len(known) == len(shape):
            return known[::-1] if _is_turned(one, None) else known
    return None


def _is_turned(contribution: Contribution, stored: _Shape | None) -> bool:
    """Return True if the weight is stored as (in, out): by the algorithm, the shape of the weight, or the config."""
    if contribution.algorithm.transposed is not None:
        return contribution.algorithm.transposed
    shape = contribution.shape
    if len(shape) != 2:
        return False
    if stored is not None and contribution.rows is None and stored in (shape, shape[::-1]) and shape[0] != shape[1]:
        return stored != shape
    return bool(contribution.fan_in_fan_out)


def _check_computed(adapter: Adapter, changes: Sequence[Contribution], has_weight: bool) -> None:
    for one in changes:
        if one.algorithm.experts:
            raise _refused(adapter, one, "changes the experts of a whole layer, but a base has these in several places")
        if one.formula.seen:
            raise _refused(adapter, one, "changes a bias depending on the weight of its layer")
        if needs_weight(one) and not has_weight:
            what = " with a magnitude (DoRA)" if one.magnitude else ""
            why = f"is {one.algorithm.title}{what}, and its change depends on the weight; give the base's weight"
            raise _refused(adapter, one, why)


def _refused(adapter: Adapter, contribution: Contribution, why: str) -> LoraInspectError:
    way = "" if ";" in why else "; merge the adapter into its base"
    return RefusedError(adapter.checkpoint.path, f"{contribution.module.key} {why}{way}")
