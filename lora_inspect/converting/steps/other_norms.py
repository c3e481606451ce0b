"""Magnitudes of outputs over other norms: the same DoRA for programs that divide by those of the base, and back.

W' = g · V, where g is the magnitude over the norm of a row of V = W + delta, or of W. With the weight at hand, one
magnitude follows from the other for every row: the other is g times the other norm.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import cast

import torch

from lora_inspect.converting.steps.base_change import Landed
from lora_inspect.converting.steps.dora_delta import module_change
from lora_inspect.converting.steps.own_weight import BLOCK_ELEMENTS, own_weight
from lora_inspect.errors import LoraInspectError
from lora_inspect.files.hashes import sha256
from lora_inspect.maths.change import folded, settled
from lora_inspect.maths.dora import DoraSpelling
from lora_inspect.maths.dora_fold import DecomposedRows, magnitude_of
from lora_inspect.maths.tensors import first_non_finite
from lora_inspect.reading.metadata.output_metadata import describe_file
from lora_inspect.reading.scale.dora_evidence import NormsRecord


def other_magnitude(landed: Landed, spelling: DoraSpelling) -> torch.Tensor:
    """The magnitude (out,) that means in the `spelling` what the module's own does, in float64.

    Raises LoraInspectError where one is not finite in float32, as of a row that the trainer divides by nothing.
    """
    weight = own_weight(landed.places)
    read = partial(_blocks, weight)
    own = (*landed.before, landed.contribution)
    *before, (change, _) = settled([(module_change(one, landed, torch.float64), 1.0) for one in own], read)
    decomposed, other = cast(DecomposedRows, change), magnitude_of(spelling, None)
    values = weight.new_empty(len(weight), dtype=torch.float64)
    for first, rows in folded(before, read, change.together):
        values[first : first + len(rows)] = decomposed.values_of(other, rows, first)
    if (bad := first_non_finite(values.float())) is not None:
        place, _ = landed.places[0]
        raise LoraInspectError(
            f"{landed.file}: a magnitude of {landed.contribution.module.key} would be {bad}, as rows of it or of "
            f"{place.target.name} are of no length, not finite or too large to be squared; use --rank N or "
            "--max-error E, or repair the file that holds such numbers."
        )
    return values


def _blocks(weight: torch.Tensor, together: int) -> Iterator[tuple[int, torch.Tensor]]:
    count = max(1, BLOCK_ELEMENTS // max(1, weight.shape[1]))
    count = max(together, count - count % together) if together else max(1, len(weight))
    for first in range(0, len(weight), count):
        yield first, weight[first : first + count].double()


def norms_record_of(remeasured: Mapping[str, Landed], base: str) -> NormsRecord:
    """The record of the base at the path `base`, by the weight of the first of the modules."""
    place, _ = next(iter(remeasured.values())).places[0]
    return NormsRecord(describe_file(base), place.target.name, sha256(place.target))
