"""The change that a module makes to its base weight, as a plain LoRA of a chosen rank or error: DoRA's, or OFT's."""

from dataclasses import replace

import torch

from lora_inspect.architectures.rows import Runs
from lora_inspect.converting.steps.base_change import Landed
from lora_inspect.converting.steps.own_weight import own_weight
from lora_inspect.converting.steps.part import few_rows, in_rows, read_factor
from lora_inspect.errors import LoraInspectError
from lora_inspect.matching.placement import Place, Placed
from lora_inspect.maths.change import Change, folded, settled
from lora_inspect.maths.low_rank import Approximation, approximate
from lora_inspect.maths.tensors import first_non_finite, load, load_whole
from lora_inspect.reading.model.contribution import Contribution


def approximate_change(
    landed: Landed, rank: int | None, max_error: float | None, runs: Runs | None = None
) -> Approximation:
    """The low-rank approximation of the true change, with factors in float32; raises as `true_change` does.

    Where `runs` take some of the rows, it is that of those alone, and zeros in all other ones.
    """
    change = true_change(landed)
    taken = few_rows(runs, len(change))
    if taken is None:
        return approximate(change, rank, max_error, torch.float32)
    found = approximate(change[taken], rank, max_error, torch.float32)
    return replace(found, up=in_rows(found.up, taken, len(change)))


def true_change(landed: Landed) -> torch.Tensor:
    """W' - W as (out, in·kernel), where W has what the module adds to it before; LoraInspectError if not finite."""
    weight = own_weight(landed.places)
    for other in landed.before:
        _fold(module_change(other, landed, weight.dtype), weight)
    changed = weight.clone()
    _fold(module_change(landed.contribution, landed, weight.dtype), changed)
    difference = changed.sub_(weight)
    if first_non_finite(difference) is not None:
        place, _ = landed.places[0]
        raise LoraInspectError(
            f"{landed.file}: the change that {landed.contribution.module.key} makes to "
            f"{place.target.name} is not finite or too large to take its norm; lower its alpha, or repair the file "
            "that holds such numbers."
        )
    return difference


def module_change(contribution: Contribution, landed: Landed, dtype: torch.dtype) -> Change:
    """The change of the module's own rows as (out, in·kernel), with factors in `dtype`."""
    place, _ = landed.places[0]
    positions = contribution.algorithm.positions
    tensors = {
        role: load_whole(info) if role in positions else read_factor(info).values.to(dtype)
        for role, info in contribution.operands.items()
    }
    if contribution.magnitude:
        tensors["magnitude"] = load(contribution.magnitude.info).to(dtype)
    return Placed(contribution, Place(place.target._replace(shape=landed.shape))).change(tensors)


def _fold(change: Change, matrix: torch.Tensor) -> None:
    """Folds the change into all rows at once."""
    for _ in folded(
        settled([(change, 1.0)], lambda together: iter([(0, matrix)])), lambda together: iter([(0, matrix)])
    ):
        pass
