"""The change that a DoRA module makes to its base weight, as a plain LoRA of a chosen rank or error."""

import torch

from lora_inspect.converting.scaled_factors import read_factor
from lora_inspect.errors import LoraInspectError
from lora_inspect.files.header import TensorInfo
from lora_inspect.maths.fold import Fold
from lora_inspect.maths.lowrank import Approximation, approximate
from lora_inspect.maths.tensor_reader import first_non_finite, load
from lora_inspect.reading.contribution import Contribution, Magnitude


def approximate_change(
    contribution: Contribution,
    magnitude: Magnitude,
    target: TensorInfo,
    rank: int | None,
    max_error: float | None,
) -> Approximation:
    """The low-rank approximation of W' - W as (out, in·kernel), for the contribution as `match` found it at `target`.

    Its factors are float32.
    Raises LoraInspectError where the change is not finite.
    """
    weight = load(target)
    matrix = weight.reshape(weight.shape[0], -1)
    tensors = {role: read_factor(info).values.to(matrix.dtype) for role, info in contribution.factors.items()}
    tensors["magnitude"] = load(magnitude.info).to(matrix.dtype)
    changed = matrix.clone()
    fold = Fold.of(contribution, tensors, 1.0)
    if fold.needs_norm_pass:
        fold.observe(matrix, 0)
    fold.apply(changed, 0)
    change = changed.sub_(matrix)
    if first_non_finite(change) is not None:
        raise LoraInspectError(
            f"{contribution.factors['down'].file}: the change that {contribution.module.key} makes to {target.name} is "
            "not finite or too large to take its norm; lower its alpha, or repair the file that holds such numbers."
        )
    if contribution.transposed:
        change = change.transpose(0, 1).contiguous()
    return approximate(change, rank, max_error, torch.float32)
