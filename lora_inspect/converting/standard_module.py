"""One module of a standard file: its tensors, its rank, and the scale that every reader of its names applies."""

import struct
from dataclasses import dataclass

from lora_inspect.algorithms import lora
from lora_inspect.converting.fused_slices import fuse
from lora_inspect.converting.growth import Growth
from lora_inspect.converting.naming import (
    ALPHA,
    CONFIG,
    FACTORS,
    alpha_key,
    carrier_of,
    factor_key,
    magnitude_place,
)
from lora_inspect.converting.scaled_factors import (
    Factor,
    check_finite,
    content,
    product_norm,
    read_factor,
    relative,
    scaled,
)
from lora_inspect.errors import LoraInspectError
from lora_inspect.files.contents import Content, renamed
from lora_inspect.files.writer import TensorPlan
from lora_inspect.maths.lowrank import Approximation
from lora_inspect.maths.scaling import plain_alpha, to_float32
from lora_inspect.reading.contribution import Contribution, Module

# What rounding to float32 may cost, and nothing else: half a unit in its last place, and room for adding up.
EXACT = 2.0**-22


@dataclass(frozen=True, slots=True)
class StandardModule:
    """What is written of a module. Its scale is `alpha` / `rank`, whatever says it.

    `folded` is the scale that its factors carry on top of that, where it is one number. `relative_error` is what
    its change lost, in the Frobenius norm; None where a magnitude is left out, as only a base could tell.
    `magnitude` is the suffix under which one is kept; `replaced` says that the factors are other ones.
    """

    contents: tuple[Content, ...]
    rank: int
    alpha: float
    folded: float = 1.0
    relative_error: float | None = 0.0
    dropped: tuple[str, ...] = ()
    magnitude: str | None = None
    replaced: bool = False


def keep(module: Module, growth: Growth, drop_magnitude: bool) -> StandardModule:
    """The module with its own factors, its slices fused, and its magnitude kept unless that is dropped."""
    if module.contributions[0].rows is not None:
        return _fused(module, growth)
    (contribution,) = module.contributions
    rank, scale, carrier = contribution.known_rank, contribution.known_scale, carrier_of(module)
    for info in contribution.factors.values():
        check_finite(info)
    contents = {role: renamed(info, factor_key(module, info.name)) for role, info in contribution.factors.items()}
    alpha, error, folded = float(rank), 0.0, 1.0
    if carrier == FACTORS or (scale == 0.0 and carrier == ALPHA):
        # A stored alpha of 0 is read as rank by some programs: factors of zeros say the same to all of them.
        folded = scale
        if scale != 1.0:
            factors = {role: read_factor(info) for role, info in contribution.factors.items()}
            up = scaled(factors["up"], scale)
            contents["up"] = content(contents["up"].plan.name, up, contribution.factors["up"].file)
            error = _lost(contribution, factors, up, scale)
    else:
        alpha, error = _alpha(contribution, rank, carrier)
    written = [*contents.values(), *_alpha_contents(module, alpha)]
    dropped: tuple[str, ...] = ()
    suffix = None
    if magnitude := contribution.magnitude:
        if drop_magnitude:
            dropped = (magnitude.info.name,)
        else:
            check_finite(magnitude.info)
            key, suffix, shape = magnitude_place(module, contribution, magnitude)
            written.append(renamed(magnitude.info, key, shape))
    growth.take(sum(item.plan.nbytes for item in written), module.name.key)
    lost = None if dropped else error
    return StandardModule(tuple(written), rank, alpha, folded, lost, dropped, suffix)


def approximated(module: Module, found: Approximation, growth: Growth) -> StandardModule:
    """The module as the plain LoRA `found` in place of a DoRA one."""
    (contribution,) = module.contributions
    shape, rank = contribution.known_shape, found.rank
    kernel = (1,) * (len(contribution.factors["up"].shape) - 2)
    file = contribution.factors["up"].file
    shapes = {"down": (rank, *shape[1:]), "up": (shape[0], rank, *kernel)}
    written = [
        content(
            factor_key(module, contribution.factors[role].name),
            Factor({"down": found.down, "up": found.up}[role].reshape(shape), "F32"),
            file,
        )
        for role, shape in shapes.items()
    ]
    written += _alpha_contents(module, float(rank))
    growth.take(sum(item.plan.nbytes for item in written), module.name.key)
    return StandardModule(tuple(written), rank, float(rank), relative_error=found.relative_error, replaced=True)


def _fused(module: Module, growth: Growth) -> StandardModule:
    parts = module.contributions
    carrier = carrier_of(module)
    fused = fuse(parts, 1.0 if carrier == FACTORS else None, growth)
    rank = fused.down.values.shape[0]
    alpha, error = float(rank), 0.0
    if carrier != FACTORS:
        alpha, error = _rounded_alpha(parts[0], fused.scale * rank, rank, fused.scale, carrier)
    scales = {part.known_scale for part in parts}
    folded = scales.pop() / fused.scale if len(scales) == 1 else 1.0
    written = [
        content(factor_key(module, parts[0].factors[role].name), factor, parts[0].factors[role].file)
        for role, factor in (("down", fused.down), ("up", fused.up))
    ]
    error += relative(fused.lost, fused.norm)
    return StandardModule((*written, *_alpha_contents(module, alpha)), rank, alpha, folded, error)


def _alpha(contribution: Contribution, rank: int, carrier: str) -> tuple[float, float]:
    """The alpha whose quotient by `rank` is the scale, and the relative error of that quotient."""
    if contribution.alpha is None:
        alpha = contribution.known_scale * rank
    else:
        alpha = plain_alpha(contribution.alpha, rank, contribution.rslora is True)
    return _rounded_alpha(contribution, alpha, rank, contribution.known_scale, carrier)


def _rounded_alpha(
    contribution: Contribution, alpha: float, rank: int, scale: float, carrier: str
) -> tuple[float, float]:
    """The alpha as its carrier holds it: float32 in a tensor, a number of JSON in a config."""
    try:
        held = alpha if carrier == CONFIG else to_float32(alpha)
    except OverflowError:
        held = float("inf")
    error = abs(held / rank - scale) / abs(scale) if scale else 0.0
    if error > EXACT:
        raise LoraInspectError(
            f"{contribution.factors['down'].file}: the alpha of {contribution.module.key} is beyond float32 "
            f"({alpha:.3g}); scale its factors instead."
        )
    return held, error


def _alpha_contents(module: Module, alpha: float) -> list[Content]:
    if carrier_of(module) != ALPHA:
        return []
    return [Content(TensorPlan(alpha_key(module), "F32", ()), struct.pack("<f", alpha))]


def _lost(contribution: Contribution, factors: dict[str, Factor], up: Factor, scale: float) -> float:
    """‖(up' - scale·up) @ down‖ / ‖scale·up @ down‖ for up' as it is written, from Gram matrices."""
    values = {role: factor.values for role, factor in factors.items()}
    meant, down = lora.matrices({**values, "up": scale * values["up"]})
    norm = product_norm(meant, down)
    lost = product_norm(up.values.reshape(meant.shape) - meant, down)
    return relative(lost, norm)
