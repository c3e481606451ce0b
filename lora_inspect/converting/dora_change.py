"""The change that a DoRA module makes to its base weight, as a plain LoRA of a chosen rank or error."""

from collections.abc import Iterator

import torch

from lora_inspect.converting.scaled_factors import read_factor
from lora_inspect.errors import LoraInspectError
from lora_inspect.matching.place import Placed
from lora_inspect.maths.chain import folded, settled
from lora_inspect.maths.lowrank import Approximation, approximate
from lora_inspect.maths.tensor_reader import first_non_finite, load
from lora_inspect.reading.contribution import Magnitude


def approximate_change(
    placed: Placed, magnitude: Magnitude, rank: int | None, max_error: float | None
) -> Approximation:
    """The low-rank approximation of W' - W as (out, in·kernel), of a contribution in its place.

    Its factors are float32. Raises LoraInspectError where the change is not finite.
    """
    contribution, place = placed
    weight = load(place.target)
    matrix = weight.reshape(weight.shape[0], -1)
    tensors = {role: read_factor(info).values.to(matrix.dtype) for role, info in contribution.factors.items()}
    tensors["magnitude"] = load(magnitude.info).to(matrix.dtype)

    def read(together: int) -> Iterator[tuple[int, torch.Tensor]]:
        yield 0, matrix.clone()

    ((_, changed),) = folded(settled([(placed.change(tensors), 1.0)], read), read)
    difference = changed.sub_(matrix)
    if first_non_finite(difference) is not None:
        raise LoraInspectError(
            f"{contribution.factors['down'].file}: the change that {contribution.module.key} makes to "
            f"{place.target.name} is not finite or too large to take its norm; lower its alpha, or repair the file "
            "that holds such numbers."
        )
    if place.transposed:
        difference = difference.transpose(0, 1).contiguous()
    return approximate(difference, rank, max_error, torch.float32)
