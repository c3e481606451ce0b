"""Differences of a parameter that is no weight: of the module that has it, or of the parameter by its own name.

Wan's `modulation` of `blocks.0` has a suffix of its own, `.diff_m`, and is called `blocks.0.scale_shift_table` in
diffusers, where `.diff` of that name is the difference.
"""

from lora_inspect.algorithms.full import ALGORITHMS
from lora_inspect.algorithms.record import BIAS, WEIGHT, Algorithm
from lora_inspect.reading.keys.suffixes import MODELS
from lora_inspect.reading.model.contribution import Module

# The difference of a weight, and by parameter those that are none of weights and biases.
_OF_WEIGHT = next(one for one in ALGORITHMS if one.parameter == WEIGHT)
_OF_OTHERS = {one.parameter: one for one in ALGORITHMS if one.parameter not in (WEIGHT, BIAS)}


def is_own_parameter(module: Module) -> bool:
    """Whether a module of the model changes a parameter alone that is no weight and no bias."""
    return module.name.component in MODELS and _changed(module) in _OF_OTHERS


def by_its_name(module: Module) -> tuple[Module, str] | None:
    """The module as the parameter that alone it changes, and that one's path; None for another one.

    `blocks.0` becomes `blocks.0.modulation`.
    """
    parameter = _changed(module)
    if parameter not in _OF_OTHERS or module.path is None:
        return None
    return _changing(module, _OF_WEIGHT), f"{module.path}.{parameter}"


def of_its_owner(module: Module, path: str) -> tuple[Module, str]:
    """What a module that goes to `path` is there, and the path: the owner's where the parameter has its own suffix.

    `blocks.0.modulation` becomes `blocks.0`.
    """
    owner, _, parameter = path.rpartition(".")
    if parameter not in _OF_OTHERS or any(c.algorithm.name != _OF_WEIGHT.name for c in module.contributions):
        return module, path
    return _changing(module, _OF_OTHERS[parameter]), owner


def _changed(module: Module) -> str:
    parameters = {contribution.algorithm.parameter for contribution in module.contributions}
    return parameters.pop() if len(parameters) == 1 else WEIGHT


def _changing(module: Module, algorithm: Algorithm) -> Module:
    contributions = tuple(contribution._replace(algorithm=algorithm) for contribution in module.contributions)
    return module._replace(contributions=contributions)
