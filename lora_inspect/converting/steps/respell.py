"""The step that writes an algorithm as another one of the same change, for programs that compute that one alone."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from lora_inspect import algorithms
from lora_inspect.converting.steps.carried_scale import into_factors
from lora_inspect.converting.steps.part import Part


def write_instead(parts: Sequence[Part], instead: Mapping[str, str]) -> list[Part]:
    """The parts, those of the algorithms in `instead` as of the one that stands there, which has one factor as well."""
    return [_written(part, instead[part.algorithm.name]) if part.algorithm.name in instead else part for part in parts]


def _written(part: Part, name: str) -> Part:
    other = algorithms.by_name(name)
    (factor,), (role,) = part.factors.values(), other.marks
    return into_factors(replace(part, algorithm=other, factors={role: factor}))
