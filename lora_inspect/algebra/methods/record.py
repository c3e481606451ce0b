"""The record of a method that makes one change of several, and the steps that several methods share.

A method gets one core for each input: the change at its multiplier in the bases that all inputs of a module share, and
zeros where an input lacks the module. `linear/core_space.py` has the bases.
"""

import hashlib
from collections.abc import Callable, Sequence

import numpy

from lora_inspect.algebra.linear.factors import Array
from lora_inspect.fast_namedtuple import NamedTuple

# A number below this share of the largest one is the rounding of zero.
_ZERO = 1e-12
# The least square that SVC divides by, as a share of the largest square of an input in any direction.
_LEAST_SQUARE = 1e-12


class MethodSettings(NamedTuple):
    """The settings of methods: the share `density` of numbers that is kept, the place `t` between two, the `seed`.

    `rounding` is the share of the largest singular value below which one is rounding.
    """

    density: float = 1.0
    t: float = 0.5
    seed: int = 0
    rounding: float = 1e-7


# Makes the merged core (k, l) of those of the inputs, for the module of a name.
Merge = Callable[[Sequence[Array], MethodSettings, str], Array]


class Method(NamedTuple):
    """A method by its `name` on the command line, and the `paper` and the `formula` that it follows.

    `settings` are its settings among density, t and seed. `in_numbers` is True if it uses single numbers of a core, so
    that another pair of bases gives another result, and `is_linear` if its result is a sum of the inputs times numbers.
    `has_directions` is False if all singular values of its result are equal, so that its singular vectors are
    arbitrary. `inputs` is the number that it takes, None for any number. `conventions` are its differences from the
    paper or from other programs.
    """

    name: str
    title: str
    paper: str
    formula: str
    merge: Merge
    settings: tuple[str, ...] = ()
    in_numbers: bool = False
    is_linear: bool = False
    has_directions: bool = True
    inputs: int | None = None
    conventions: str = ""


def total(cores: Sequence[Array]) -> Array:
    """Return the sum of all inputs."""
    found: Array = numpy.sum(cores, axis=0)
    return found


def without_zeros(cores: Sequence[Array]) -> list[Array]:
    """Return the cores with 0 for numbers that are rounding."""
    largest = max((float(numpy.abs(core).max()) for core in cores if core.size), default=0.0)
    return [numpy.where(numpy.abs(core) > _ZERO * largest, core, 0.0) for core in cores]


def kept(core: Array, density: float) -> Array:
    """Return the core with the round(density · n) largest of its n numbers, at least one, and 0 for all others.

    Of numbers of one size the first ones are kept.
    """
    count = max(1, round(density * core.size))
    if count >= core.size:
        return core
    order = numpy.argsort(-numpy.abs(core), axis=None, kind="stable")
    found = numpy.zeros(core.size)
    found[order[:count]] = core.ravel()[order[:count]]
    return found.reshape(core.shape)


def agreeing_mean(cores: Sequence[Array]) -> Array:
    """Return, for each number, the mean of the inputs with the sign of the sum; 0 if the inputs add up to 0."""
    cores = without_zeros(cores)
    elected = _elected(cores)
    agree = [numpy.sign(core) * elected > 0 for core in cores]
    count = numpy.sum(agree, axis=0)
    found: Array = numpy.sum([core * own for core, own in zip(cores, agree, strict=True)], axis=0)
    found /= numpy.maximum(count, 1)
    return found


def _elected(cores: Sequence[Array]) -> Array:
    """Return the sign of the sum of each number; 0 if the sum is the rounding of its parts."""
    found, size = total(cores), numpy.sum([numpy.abs(core) for core in cores], axis=0)
    elected: Array = numpy.where(numpy.abs(found) > _ZERO * size, numpy.sign(found), 0.0)
    return elected


def survivors(cores: Sequence[Array], settings: MethodSettings, name: str) -> list[Array]:
    """Return the cores with each number kept with the chance of the density, and divided by it; the others are 0.

    The numbers are drawn for the module of the name, for the inputs by their falling norms, so that neither threads nor
    the order of the inputs decide them.
    """
    drawn = numpy.random.default_rng(_seed(settings.seed, name))
    found = list(cores)
    for number in sorted(range(len(cores)), key=lambda number: -float(numpy.linalg.norm(cores[number]))):
        mask = drawn.random(cores[number].shape) < settings.density
        found[number] = numpy.where(mask, cores[number] / settings.density, 0.0)
    return found


def _seed(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8], "little")


def polar(matrix: Array) -> Array:
    """Return U Vᵀ of the SVD U S Vᵀ: the nearest matrix with orthonormal columns, or rows."""
    left, _, right = numpy.linalg.svd(matrix, full_matrices=False)
    found: Array = left @ right
    return found


def truncated_svd(core: Array, rounding: float) -> tuple[Array, Array, Array]:
    """Return the SVD (U, S, Vᵀ) of a core, without the values that are rounding."""
    if not core.size:
        return core, numpy.zeros(0), core
    left, values, right = numpy.linalg.svd(core, full_matrices=False)
    rank = int(numpy.count_nonzero(values > rounding * values[0])) if values.size and values[0] else 0
    return left[:, :rank], values[:rank], right[:rank]


def accumulation(merged: Array, left: Array, cores: Sequence[Array]) -> Array:
    """Return η_r of each column u_r of `left`: how often the inputs count its direction in the merged core.

    η_r is the mean over the inputs of max(1, <a, a_i> / ‖a_i‖²), with a = u_rᵀ M and a_i = u_rᵀ M_i. The least ‖a_i‖²
    is relative, so that η does not depend on the size of all cores together.
    """
    projected = left.T @ merged
    parts = [left.T @ core for core in cores]
    squares = numpy.square(parts).sum(axis=2)
    least_square = max(_LEAST_SQUARE * float(squares.max(initial=0.0)), numpy.finfo(numpy.float64).tiny)
    products = (projected * parts).sum(axis=2)
    accumulations: Array = numpy.maximum(products / numpy.maximum(squares, least_square), 1.0).mean(axis=0)
    return accumulations


def calibrated(merged: Array, cores: Sequence[Array], rounding: float) -> Array:
    """Return the merged core with each singular value divided by the accumulation of its direction."""
    left, values, right = truncated_svd(merged, rounding)
    found: Array = (left * (values / accumulation(merged, left, cores))) @ right
    return found
