"""Slerp: the way between two inputs along the arc."""

import math
from collections.abc import Sequence

import numpy

from lora_inspect.algebra.linear.factors import Array
from lora_inspect.algebra.methods.record import Method, MethodSettings

# Beyond this cosine the arc is a line.
_STRAIGHT = 0.9995


def merge(cores: Sequence[Array], settings: MethodSettings, name: str) -> Array:
    """Return sin((1 - t) θ) / sin θ · D_1 + sin(t θ) / sin θ · D_2, θ the angle between them; a line for θ = 0."""
    one, other = cores
    norms = float(numpy.linalg.norm(one)) * float(numpy.linalg.norm(other))
    cosine = float((one * other).sum()) / norms if norms else 1.0
    if abs(cosine) > _STRAIGHT:
        return (1.0 - settings.t) * one + settings.t * other
    angle = math.acos(cosine)
    first, second = math.sin((1.0 - settings.t) * angle), math.sin(settings.t * angle)
    return (first * one + second * other) / math.sin(angle)


METHOD = Method(
    name="slerp",
    title="slerp",
    paper="Shoemake 1985",
    formula="sin((1 - t) θ) / sin θ · D_1 + sin(t θ) / sin θ · D_2",
    merge=merge,
    settings=("t",),
    is_linear=True,
    inputs=2,
    conventions="Each module has its own angle. The norms are not made equal, as in mergekit.",
)
