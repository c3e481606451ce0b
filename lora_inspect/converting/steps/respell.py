"""The steps that write the same change in another algorithm or form, for programs that compute only that.

- LoRA of an Embedding turns: llama.cpp has its factors along the tokens, PEFT across them.
- `turn_mlx` and `as_mlx` turn factors between mlx-lm's form and LoRA's, and undo each other. Source:
  `linear_to_lora_layers` and `load_adapters` of mlx-lm.
- Weights that were saved whole and equal the base's are not written.
- LoRA on torch's MultiheadAttention, which PEFT computes in its own way, becomes plain LoRA.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from lora_inspect import algorithms
from lora_inspect.algorithms import by_name, lora, mlx
from lora_inspect.algorithms.attention_lora import IN_PROJ, OUT_PROJ, TIMES
from lora_inspect.algorithms.lora_embedding import spelled_in
from lora_inspect.algorithms.record import Algorithm, Role
from lora_inspect.converting.steps.base_change import BaseDependentChange
from lora_inspect.converting.steps.carried_scale import into_factors
from lora_inspect.converting.steps.part import Context, Factor, ModuleParts, Part, as_factor
from lora_inspect.errors import RefusedError
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.reading.model.contribution import Module


def substitute_algorithms(module: ModuleParts, context: Context) -> ModuleParts:
    """Replace algorithms by the ones that the scheme has instead, which also have one factor."""
    instead = context.instead
    return module.each(
        lambda source, parts: [
            _written(part, instead[part.algorithm.name]) if part.algorithm.name in instead else part for part in parts
        ]
    )


def _written(part: Part, name: str) -> Part:
    other = algorithms.by_name(name)
    (factor,), (role,) = part.factors.values(), other.marks
    return into_factors(replace(part, algorithm=other, factors={role: factor}))


def turn_embeddings(module: ModuleParts, context: Context) -> ModuleParts:
    """Transpose the factors of Embeddings as the dialects of the output need."""
    return module.each(
        lambda source, parts: [_turned_embedding(part, spelled_in(part.algorithm, context.dialects)) for part in parts]
    )


def _turned_embedding(part: Part, algorithm: Algorithm) -> Part:
    if algorithm is part.algorithm:
        return part
    down = as_factor(part.factors["down"])
    turned = Factor(down.values.transpose(0, 1).contiguous(), down.dtype)
    origin = part.origin._replace(algorithm=algorithm)
    return replace(part, origin=origin, algorithm=algorithm, factors={**part.factors, "down": turned})


_EMBEDDING = by_name("lora_embedding")


def turn_mlx(module: ModuleParts, context: Context) -> ModuleParts:
    """Convert mlx-lm's factors of one layer to LoRA's, down (rank, in) and up (out, rank)."""
    return module.each(
        lambda source, parts: [_as_lora(part) if part.algorithm.name == mlx.NAME else part for part in parts]
    )


def as_mlx(parts: Sequence[Part]) -> list[Part]:
    """Return the parts with mlx-lm's factors for LoRA's, and experts in the shape of its current versions.

    Raises LoraInspectError for a part that mlx-lm cannot hold.
    """
    return [_as_mlx(part) for part in parts]


def _as_lora(part: Part) -> Part:
    return replace(part, algorithm=mlx.in_lora(part.algorithm), factors=_turned_factors(part.factors))


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
        raise RefusedError(
            part.file,
            f"{part.origin.module.key} has {part.algorithm.title} of {part.shapes}, but mlx-lm supports only "
            "LoRA of Linear layers, Embeddings and its own expert layers",
            "merge it instead",
        )
    algorithm = mlx.EMBEDDING if is_embedding else mlx.ALGORITHM
    return replace(part, algorithm=algorithm, factors=_turned_factors(part.factors))


def _turned_factors(factors: Mapping[Role, TensorInfo | Factor]) -> dict[Role, Factor]:
    read = {role: as_factor(factor) for role, factor in factors.items()}
    return {role: factor._replace(values=factor.values.T.contiguous()) for role, factor in read.items()}


def without_unchanged(parts: Sequence[Part], dependent: BaseDependentChange) -> list[Part]:
    """Return the parts without the LoRA of a saved weight that equals the base's."""
    own = dependent.contribution
    return [part for part in parts if not (own.algorithm.replaces and _is_of(part, dependent) and _is_nothing(part))]


def _is_of(part: Part, dependent: BaseDependentChange) -> bool:
    return part.origin.factors == dependent.contribution.factors


def _is_nothing(part: Part) -> bool:
    return not any(as_factor(factor).values.any() for factor in part.factors.values())


def count_once(module: ModuleParts, context: Context) -> ModuleParts:
    """Make plain LoRA of the changes that only PEFT counts twice, if the output has other names."""
    return module.each(lambda source, parts: counted_once(parts, source.module, module.target.module))


def counted_once(parts: Sequence[Part], source: Module, target: Module) -> Sequence[Part]:
    """Return the parts of the `source` as readers of the `target`'s names must find them; PEFT finds its own."""
    return parts if source.name == target.name else [_plain(part) for part in parts]


def _plain(part: Part) -> Part:
    if part.algorithm is OUT_PROJ:
        # The alpha is that of the change as it is trained, and not of the factors alone.
        origin = part.origin._replace(alpha=None)
        return replace(part, origin=origin, algorithm=lora.ALGORITHM, scale=TIMES * part.scale)
    if part.algorithm is IN_PROJ:
        own = part.origin.operands
        unused = [info.name for role, info in part.origin.factors.items() if role not in own]
        factors = {role: factor for role, factor in part.factors.items() if role in own}
        return replace(part, algorithm=lora.ALGORITHM, factors=factors, dropped=(*part.dropped, *unused))
    return part
