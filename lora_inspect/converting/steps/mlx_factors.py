"""The steps between LoRA's factors and those of mlx-lm, which stand the other way round.

`as_lora` and `as_mlx` undo each other. Source: `linear_to_lora_layers` and `load_adapters` of mlx-lm.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from lora_inspect.algorithms import by_name, lora, mlx
from lora_inspect.algorithms.record import Role
from lora_inspect.converting.steps.part import Part
from lora_inspect.converting.steps.scaled_factors import Factor, as_factor
from lora_inspect.errors import LoraInspectError
from lora_inspect.files.safetensors.header import TensorInfo

_EMBEDDING = by_name("lora_embedding")


def as_lora(parts: Sequence[Part]) -> list[Part]:
    """The parts with LoRA's factors, down (rank, in) and up (out, rank), in the place of mlx-lm's of one layer."""
    return [_as_lora(part) if part.algorithm.name == mlx.NAME else part for part in parts]


def as_mlx(parts: Sequence[Part]) -> list[Part]:
    """The parts with mlx-lm's factors in the place of LoRA's, and those of experts in the shape of its versions of now.

    Raises LoraInspectError for what mlx-lm has not.
    """
    return [_as_mlx(part) for part in parts]


def _as_lora(part: Part) -> Part:
    return replace(part, algorithm=mlx.in_lora(part.algorithm), factors=_turned(part.factors))


def _as_mlx(part: Part) -> Part:
    if part.algorithm.experts and not part.algorithm.packed:
        down = as_factor(part.factors["down"])
        if len(down.shape) == 3:
            return part
        _, by_expert = mlx.per_expert(as_factor(part.factors["up"]).values, down.values)
        return replace(part, factors={**part.factors, "down": down._replace(values=by_expert)})
    is_embedding = part.algorithm.name == _EMBEDDING.name
    is_plain = part.factors.keys() == {"down", "up"} and all(len(shape) == 2 for shape in part.shapes.values())
    if not is_plain or not (is_embedding or part.algorithm.name == lora.ALGORITHM.name):
        raise LoraInspectError(
            f"{part.file}: {part.origin.module.key} has {part.algorithm.title} of {part.shapes}, and mlx-lm has LoRA "
            "of Linear layers, Embeddings and its own layers of experts alone; merge it, which needs no such file."
        )
    algorithm = mlx.EMBEDDING if is_embedding else mlx.ALGORITHM
    return replace(part, algorithm=algorithm, factors=_turned(part.factors))


def _turned(factors: Mapping[Role, TensorInfo | Factor]) -> dict[Role, Factor]:
    read = {role: as_factor(factor) for role, factor in factors.items()}
    return {role: factor._replace(values=factor.values.T.contiguous()) for role, factor in read.items()}
