"""How far what a program makes of DoRA is from what was trained, by the weights of the base."""

import math
from collections.abc import Iterable, Mapping

import torch

from lora_inspect.converting.steps.base_change import Landed
from lora_inspect.converting.steps.dora_delta import true_change
from lora_inspect.converting.steps.own_weight import own_weight
from lora_inspect.converting.steps.scaled_factors import read_factor
from lora_inspect.maths import dora
from lora_inspect.programs.evaluate import Taken
from lora_inspect.programs.record import BASE_NORM, LEAVES, OTHER_AXIS, SUM_NORM
from lora_inspect.progress import Progress
from lora_inspect.reading.model.contribution import Contribution

# The norms that divide a magnitude of outputs where a program takes others than are meant.
_NORMS = {BASE_NORM: dora.OF_BASE, SUM_NORM: dora.OF_SUM}
# What a program does with a module: with its magnitude, and at which scale.
_Way = tuple[str, float]


def dora_errors(
    landed: Mapping[str, Landed], programs: Mapping[str, Iterable[Taken]], progress: Progress
) -> dict[str, float]:
    """The relative error of all changes together, by program: the norm of what is wrong over that of what is right.

    `programs` are what each of them takes. What several do alike is computed once.
    """
    ways: dict[str, dict[_Way, list[str]]] = {}
    for name, taken in programs.items():
        for one in taken:
            if one.magnitude and one.scale is not None:
                own = ways.setdefault(one.module.name.key, {})
                own.setdefault((one.magnitude, one.scale), []).append(name)
    wrong, right = dict.fromkeys(programs, 0.0), dict.fromkeys(programs, 0.0)
    progress(0)
    for key, own in ways.items():
        meant = true_change(landed[key])
        for (does, scale), names in own.items():
            error = float((_received(landed[key], does, scale) - meant).double().square().sum())
            for name in names:
                wrong[name] += error
                right[name] += float(meant.double().square().sum())
        progress(1)
    return {name: math.sqrt(wrong[name] / right[name]) if right[name] else 0.0 for name in programs}


def _received(landed: Landed, does: str, scale: float) -> torch.Tensor:
    """The change that the program makes of the module."""
    contribution = landed.contribution._replace(scale=scale)
    if does == OTHER_AXIS:
        return _along_the_other_axis(landed, contribution)
    if does == LEAVES:
        contribution = contribution._replace(magnitude=None)
    elif does in _NORMS and contribution.magnitude:
        spelling = contribution.magnitude.spelling._replace(norms=_NORMS[does])
        contribution = contribution._replace(magnitude=contribution.magnitude._replace(spelling=spelling))
    return true_change(landed._replace(contribution=contribution))


def _along_the_other_axis(landed: Landed, contribution: Contribution) -> torch.Tensor:
    """V · m / n - W with magnitudes of outputs over the norms of V's inputs (A1111's `apply_weight_decompose`)."""
    assert contribution.magnitude is not None
    weight = own_weight(landed.places)
    combined = weight + true_change(landed._replace(contribution=contribution._replace(magnitude=None)))
    values = read_factor(contribution.magnitude.info).values.to(weight.dtype).reshape(-1, 1)
    per_input = math.prod(landed.shape[2:])
    squares = dora.squared_norm(combined, dora.INPUT).to(weight.dtype)
    squares = squares.reshape(-1, per_input).sum(1).repeat_interleave(per_input)
    changed: torch.Tensor = combined * dora.gain(values, dora.norm_from_square(squares, 0.0))
    return changed - weight
