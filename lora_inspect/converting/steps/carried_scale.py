"""The step that puts a scale where readers look for it: into an alpha of alpha/rank, or into the factors.

Programs with one rank and one scale for all modules in their config, such as mlx-lm and SGLang, have a step of their
own.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch

from lora_inspect.algorithms import mlx
from lora_inspect.converting.options import ConvertOptions
from lora_inspect.converting.steps.part import Context, Factor, ModuleParts, Part, as_factor, lost_share, scaled
from lora_inspect.converting.target.key_names import ALPHA, CONFIG, FACTORS, HEADER, ONE_SCALE
from lora_inspect.errors import RefusedError
from lora_inspect.maths.scaling import plain_alpha, to_float32
from lora_inspect.reading.model.contribution import Contribution

# What rounding to float32 may cost, and nothing else: half a unit in its last place, and room for adding up.
EXACT = 2.0**-22


def alpha_of_all(contributions: Iterable[Contribution]) -> float:
    """Return the alpha that a header states once, as a float32: that of most modules, and never 0."""
    alphas = (_as_float32(_plain(c, c.known_scale, rank)) for c in contributions if (rank := c.rank))
    held = Counter(alpha for alpha in alphas if alpha and math.isfinite(alpha))
    return held.most_common(1)[0][0] if held else 1.0


def carry_scale(module: ModuleParts, context: Context) -> ModuleParts:
    """Put the scale of each part into the carrier that readers of the output use."""
    return replace(module, parts=carry_scales(module.parts, module.carrier, context.common))


def carry_scales(parts: Sequence[Part], carrier: str, common: float = 1.0) -> list[Part]:
    """Return the parts of one module with their scales in the `carrier`; raise LoraInspectError if one cannot be.

    `common` is the alpha of all modules, if a header states it.
    """
    own = [part if part.algorithm.beside else _carry(part, carrier, common) for part in parts]
    scales = {part.algorithm.bearer: part.scale for part in own}
    carried = [_carry_beside(part, scales) if part.algorithm.beside else part for part in own]
    alphas = sorted({part.alpha for part in carried if part.alpha is not None})
    if len(alphas) > 1:
        first = carried[0].origin
        raise RefusedError(
            carried[0].file,
            f"{first.module.key} has several algorithms with one shared alpha, but they need {alphas[0]:g} and "
            f"{alphas[1]:g}",
            "write them to separate files first",
        )
    if carrier == ALPHA and alphas and (other := next((part for part in carried if _takes_alpha(part)), None)):
        bearer = next(part for part in carried if part.alpha is not None)
        raise RefusedError(
            other.file,
            f"{other.origin.module.key} has {other.algorithm.title} next to {bearer.algorithm.title}, but "
            "their shared alpha is a scale only for the second",
            "write them to separate files first",
        )
    return carried


def _takes_alpha(part: Part) -> bool:
    """Return True if the module's alpha is not a scale to the part's algorithm."""
    return part.algorithm.has_alpha and part.algorithm.settings is not None and part.alpha is None


def _carry(part: Part, carrier: str, common: float) -> Part:
    rank = part.rank
    if carrier == ONE_SCALE or (carrier == CONFIG and not part.formula.rslora):
        # The config has one rule, and says the scale itself or goes on as it is.
        return replace(part, alpha=None if rank is None else part.scale * rank)
    if rank is None:
        return into_factors(part)
    # A stored alpha of 0 is read as rank by some programs: factors of zeros say the same to all of them.
    if carrier == FACTORS or (part.scale == 0.0 and carrier == ALPHA):
        return replace(into_factors(part), alpha=float(rank))
    if carrier == HEADER and _as_float32(_plain(part.origin, part.scale, rank)) != common:
        rest = into_factors(replace(part, scale=part.scale * rank / common))
        return replace(rest, scale=common / rank, alpha=common, folded=part.folded)
    return _into_alpha(part, rank, carrier)


def _carry_beside(part: Part, scales: Mapping[str, float]) -> Part:
    """Move the scale that a part shares with another one into its factors if readers no longer find it there."""
    return part if part.scale == scales[part.algorithm.beside or ""] else into_factors(part)


def into_factors(part: Part) -> Part:
    """Return the part with its scale multiplied into the first factor that takes one; readers then multiply by 1.

    Raises LoraInspectError if none does.
    """
    if part.scale == 1.0:
        return part
    algorithm = part.algorithm
    role = next((role for role in algorithm.scaled if role in part.factors), None)
    if role is None:
        raise RefusedError(
            part.file,
            f"{part.origin.module.key} has {algorithm.title}: no single factor can take its scale of "
            f"{part.scale:g}, and programs that read its names use no alpha",
            "merge it instead",
        )
    factors = {role: as_factor(factor) for role, factor in part.factors.items()}
    written = scaled(factors[role], part.scale)
    meant = factors[role].values * part.scale
    values = {role: factor.values for role, factor in factors.items()}
    lost = lost_share(part.formula, values, role, meant, written.values)
    error = None if part.error is None else part.error + lost
    folded = part.folded * part.scale
    return replace(part, factors={**part.factors, role: written}, scale=1.0, folded=folded, error=error)


def _into_alpha(part: Part, rank: int, carrier: str) -> Part:
    """Return the part with alpha = scale · `rank`, as its carrier holds it: a float32, or a number of JSON."""
    alpha = _plain(part.origin, part.scale, rank)
    held = alpha if carrier == CONFIG else _as_float32(alpha)
    error = abs(held / rank - part.scale) / abs(part.scale) if part.scale else 0.0
    if error > EXACT:
        raise RefusedError(
            part.file,
            f"the alpha of {part.origin.module.key} is beyond float32 ({alpha:.3g})",
            "scale its factors instead",
        )
    return replace(part, alpha=held, error=None if part.error is None else part.error + error)


def _plain(origin: Contribution, scale: float, rank: int) -> float:
    """Return the alpha that divided by `rank` gives the scale."""
    return scale * rank if origin.alpha is None else plain_alpha(origin.alpha, rank, origin.rslora is True)


def _as_float32(number: float) -> float:
    """Return the nearest float32, infinity beyond them."""
    try:
        return to_float32(number)
    except OverflowError:
        return math.copysign(math.inf, number)


# The dimensions of each factor that are the rank, none of whole factors.
_RANKS: Mapping[str, tuple[int, ...]] = {
    **{"down": (0,), "up": (1,), "mid": (0, 1)},
    **{"w1_a": (1,), "w1_b": (0,), "w2_a": (1,), "w2_b": (0,), "t1": (0, 1), "t2": (0, 1)},
    **{"w1": (), "w2": ()},
}
# Those of mlx-lm's LoRA, and of its layers of all experts.
_RANKS_IN_MLX: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    mlx.NAME: {"down": (1,), "up": (0,)},
    mlx.EXPERTS: {"down": (1,), "up": (2,)},
}
# The factors that are turned around a core.
_TURNED = {"w1_a": "t1", "w2_a": "t2"}


def of_one_scale(modules: Iterable[Sequence[Part]], options: ConvertOptions) -> list[list[Part]]:
    """Return the parts of all modules at one scale and, if they have a rank, at the one rank of the options.

    Scales that differ go into the factors, and smaller ranks get zeros.
    """
    own = [list(parts) for parts in modules]
    if options.unit_scale or len({part.scale for parts in own for part in parts}) > 1:
        own = [[into_factors(part) for part in parts] for parts in own]
    rank = options.rank_of_all(part.rank for parts in own for part in parts)
    return [[_padded(part, rank) for part in parts] for parts in own]


def _padded(part: Part, rank: int) -> Part:
    """Return the part padded with zeros to the rank, with the alpha of its scale; one without a rank as it is."""
    if part.rank is None:
        return part
    own = replace(part, alpha=part.scale * rank)
    missing = rank - part.rank
    if not missing:
        return own
    ranks = _RANKS_IN_MLX.get(part.algorithm.name, _RANKS)
    if other := next((role for role in part.factors if role not in ranks), None):
        raise RefusedError(
            part.file,
            f"{part.origin.module.key} is {part.algorithm.title} of rank {part.rank}, but the output has one rank of "
            f"{rank}, and nothing is known to fill its {other} with",
            "choose --algorithm lora, or another program",
        )
    turned = {role: (0,) for role, core in _TURNED.items() if core in part.factors}
    factors = {role: as_factor(factor) for role, factor in part.factors.items()}
    for role in factors:
        for dimension in turned.get(role, ranks[role]):
            factors[role] = _with_zeros(factors[role], dimension, missing)
    return replace(own, factors=factors)


def _with_zeros(factor: Factor, dimension: int, missing: int) -> Factor:
    shape = list(factor.values.shape)
    shape[dimension] = missing
    return factor._replace(values=torch.cat([factor.values, factor.values.new_zeros(shape)], dimension))
