"""The distances between several adapters' changes, for any names, ranks, scales and element types.

All numbers come from the changes in one pair of bases: the norm of a difference keeps its digits where the changes are
nearly the same. The overlap of two changes is the share of common directions, ‖X_aᵀ X_b‖² over the smaller rank, the
mean of columns and rows.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import combinations
from typing import TYPE_CHECKING

import numpy
from numpy.typing import NDArray

from lora_inspect.algebra.alignment import MultipliedAdapter, OutputModule, Term
from lora_inspect.algebra.changes import check_sizes, matrix_shape, needs_base, sum_of, thin_rank, whole_change
from lora_inspect.algebra.experts import ExpertChanges
from lora_inspect.algebra.linear.core import Decomposed, SharedFactors, decomposed, shared_factors
from lora_inspect.algebra.linear.factors import Factors, joined
from lora_inspect.algebra.linear.module_threads import Workspace, made_in_order
from lora_inspect.algebra.measures.stack import Peaks, WeightName, peaks_of, sign_numbers, weight_name
from lora_inspect.algebra.numpy_tensors import refuse_not_finite
from lora_inspect.errors import RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.progress import Progress
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.model.contribution import Contribution, Module
from lora_inspect.schemes.record import MODEL

if TYPE_CHECKING:
    from lora_inspect.algebra.changes import WeightChanges

Square = NDArray[numpy.float64]
# So many modules are computed together where all their factors have at most so many directions.
_TOGETHER = 8
_SMALL = 256


@dataclass(frozen=True, slots=True)
class Comparison:
    """Numbers of some modules of several adapters, which add up: squares are sums over the modules.

    `inner` (n, n) are the inner products of the changes, so its diagonal has their squared norms. `apart` (n, n) are
    the squared norms of the differences. `common` (n, n) are the overlaps times the energy of both, and `weights` these
    energies. `together` is the squared norm of the sum of all. `opposed` and `smaller` (n, n) are the numbers of a sign
    conflict, and `peaks` the largest singular values of each matrix; they are empty where they were not asked for.
    """

    inner: Square
    apart: Square
    common: Square
    weights: Square
    together: float
    opposed: Square
    smaller: Square
    peaks: tuple[Peaks, ...] = ()

    def __add__(self, other: "Comparison") -> "Comparison":
        return Comparison(
            self.inner + other.inner,
            self.apart + other.apart,
            self.common + other.common,
            self.weights + other.weights,
            self.together + other.together,
            self.opposed + other.opposed,
            self.smaller + other.smaller,
            self.peaks + other.peaks,
        )

    @property
    def norms(self) -> list[float]:
        """The norm of each change."""
        return [math.sqrt(square) for square in self.inner.diagonal()]

    def relative_difference(self, one: int, other: int) -> float | None:
        """Return ‖one - other‖ / ‖one‖; None if `one` changes nothing."""
        norm = self.norms[one]
        return math.sqrt(self.apart[one, other]) / norm if norm else None

    def cosine(self, one: int, other: int) -> float | None:
        """Return the cosine of the angle between two changes; None if one of them changes nothing."""
        product = self.norms[one] * self.norms[other]
        # Rounding makes a little more of the same direction.
        return max(-1.0, min(1.0, float(self.inner[one, other]) / product)) if product else None

    def best_multiplier(self, one: int, other: int) -> "BestMultiplier | None":
        """Return the number that brings `one` nearest to `other`; None if `one` changes nothing."""
        square, norm = float(self.inner[one, one]), self.norms[other]
        if not square:
            return None
        value = float(self.inner[one, other]) / square
        # ‖value · one - other‖² by the difference, which keeps the digits of changes that are nearly the same.
        left = float(self.apart[one, other]) - (value - 1.0) ** 2 * square
        return BestMultiplier(value, math.sqrt(max(0.0, left)) / norm if norm else 0.0)

    def overlap(self, one: int, other: int) -> float | None:
        """Return the share of directions in common, of modules by their energy; None if they change no module both."""
        if one == other:
            return 1.0 if self.norms[one] else None
        weight = float(self.weights[one, other])
        return float(self.common[one, other]) / weight if weight else None

    def sign_conflict(self, one: int, other: int) -> float | None:
        """Return the share of common numbers with opposite signs in two changes; None without such numbers."""
        if one == other:
            return 0.0 if self.norms[one] else None
        smaller = float(self.smaller[one, other])
        return float(self.opposed[one, other]) / smaller if smaller else None

    @property
    def sum_energy(self) -> float | None:
        """The energy of the sum over the sum of energies: 1 of independent changes, their number of the same one."""
        energies = float(self.inner.trace())
        return self.together / energies if energies else None


@dataclass(frozen=True, slots=True)
class BestMultiplier:
    """The multiplier, and the relative difference that it leaves."""

    value: float
    left: float


def compared(
    modules: Sequence[OutputModule],
    adapters: Sequence[Adapter],
    progress: Progress,
    bases: "Sequence[WeightChanges | None] | None" = None,
    as_stack: bool = False,
) -> list[Comparison]:
    """Return the comparison of the adapters in each module; a module that an adapter lacks is no change of it.

    `bases` compute the changes of each adapter that depend on a weight. Sign conflicts and peaks are there if they are
    asked for `as_stack`. Raises LoraInspectError for a number that is not finite, and where shapes disagree.
    """
    progress(0)
    found: list[Comparison] = []
    own = bases or [None] * len(adapters)
    workspace = Workspace()
    for batch in made_in_order(lambda some: _in_batch(some, adapters, own, as_stack, workspace), _batches(modules)):
        for one in batch:
            found.append(one)
            progress(1)
    return found


def by_parameter(modules: Iterable[OutputModule]) -> list[OutputModule]:
    """Return the modules with one parameter of a layer each."""
    found: list[OutputModule] = []
    for module in modules:
        terms: dict[str, list[Term]] = defaultdict(list)
        for term in module.terms:
            terms[term.contribution.algorithm.parameter].append(term)
        found += [module._replace(terms=tuple(own)) for own in terms.values()]
    return found


def check_thin(adapters: Iterable[MultipliedAdapter]) -> None:
    """Raise LoraInspectError for the first change that needs the base, or that has no thin factors."""
    for one in adapters:
        for module in (module for key, module in one.adapter.modules.items() if one.multipliers.get(key)):
            for contribution in module.contributions:
                _refuse_not_thin(one.adapter.checkpoint.path, contribution)


# The path of a module up to its first number; the underscored name of one that has no known path.
_NUMBERED = re.compile(r"(?P<list>.+?)[._](?P<number>[0-9]+)(?=[._]|$)")


def block_of(module: Module) -> str:
    """Return the block of a module: its path up to the first number, as `blocks.7`, or else its component.

    Blocks of text encoders have the component in front.
    """
    component = module.name.component
    found = _NUMBERED.match(module.path or module.name.body)
    if found is None:
        return component
    block = f"{found['list']}.{found['number']}"
    return block if component == MODEL else f"{component}.{block}"


def in_order_of_blocks(names: Iterable[str]) -> list[str]:
    """Return the names of blocks, those of one list by their numbers."""

    def place(name: str) -> tuple[str, int]:
        blocks, _, number = name.rpartition(".")
        return (blocks, int(number)) if number.isdecimal() else (name, -1)

    return sorted(names, key=place)


def total(comparisons: Iterable[Comparison], count: int) -> Comparison:
    """Return the comparison over all of them together, for so many adapters."""
    nothing = numpy.zeros((count, count))
    none = Comparison(nothing, nothing, nothing, nothing, 0.0, nothing, nothing)
    return reduce(Comparison.__add__, comparisons, none)


def _batches(modules: Sequence[OutputModule]) -> Iterator[list[OutputModule]]:
    """Yield the modules in order, several small ones at a time, to compute their small matrices together."""
    batch: list[OutputModule] = []
    for module in modules:
        ranks = [thin_rank(term.contribution) for term in module.terms]
        is_small = None not in ranks and sum(rank or 0 for rank in ranks) <= _SMALL
        if batch and not (is_small and len(batch) < _TOGETHER):
            yield batch
            batch = []
        batch.append(module)
        if not is_small:
            yield batch
            batch = []
    if batch:
        yield batch


class _Sum(NamedTuple):
    """The sum of all adapters' changes of one weight, and how many of its directions are of each adapter.

    The number is None where the adapter does not change the weight.
    """

    whole: Factors | None
    ranks: tuple[int | None, ...]


class _Weight(NamedTuple):
    """The changes of a weight in bases that they share, and the adapters that they are of by their numbers."""

    is_matrix: bool
    there: tuple[int, ...]
    changes: list[SharedFactors]


def _in_batch(
    modules: Sequence[OutputModule],
    adapters: Sequence[Adapter],
    bases: "Sequence[WeightChanges | None]",
    as_stack: bool,
    workspace: Workspace,
) -> list[Comparison]:
    """Return the comparison in each module of a batch, the sum over its experts where it has several."""
    weights = [list(_weights_of(module, adapters, bases, workspace)) for module in modules]
    groups: dict[object, list[tuple[int, int]]] = defaultdict(list)
    for number, own in enumerate(weights):
        for expert, one in enumerate(own):
            shapes = [side.shape for change in one.changes for side in change]
            groups[one.is_matrix, one.there, tuple(shapes)].append((number, expert))
    found: list[list[Comparison]] = [[] for _ in modules]
    for places in groups.values():
        group = [weights[number][expert] for number, expert in places]
        names = [
            weight_name(modules[number], expert if len(weights[number]) > 1 else None) for number, expert in places
        ]
        of_group = _of_weights(group, names if as_stack else None, len(adapters))
        for (number, _), comparison in zip(places, of_group, strict=True):
            found[number].append(comparison)
    return [total(own, len(adapters)) for own in found]


def _weights_of(
    module: OutputModule, adapters: Sequence[Adapter], bases: "Sequence[WeightChanges | None]", workspace: Workspace
) -> Iterator[_Weight]:
    """Yield the weight of a module, or those of its experts; LoraInspectError for a number that is not finite."""
    terms = [[one for one in module.terms if one.adapter is adapter and one.multiplier] for adapter in adapters]
    for whole, ranks in _changes_of(terms, bases, workspace):
        try:
            changes = shared_factors(whole, [rank for rank in ranks if rank is not None]) if whole else []
        except FloatingPointError:
            refuse_not_finite(module.terms)
            raise
        is_matrix = whole is not None and min(matrix_shape(whole.shape)) > 1
        there = tuple(number for number, rank in enumerate(ranks) if rank is not None)
        yield _Weight(is_matrix, there, changes)


def _of_weights(weights: Sequence[_Weight], names: Sequence[WeightName] | None, count: int) -> list[Comparison]:
    """Return the comparison in each of several weights with changes of the same shapes.

    With names of the weights it has the numbers of the stack.
    """
    there, size = weights[0].there, len(weights)
    if not there:
        return [total((), count) for _ in weights]
    each = zip(*(weight.changes for weight in weights), strict=True)
    changes = [SharedFactors(*(numpy.stack(sides) for sides in zip(*own, strict=True))) for own in each]
    directions = [svd for own in changes if (svd := decomposed(own)) is not None]
    if len(directions) < len(changes):
        each_name = [[name] for name in names] if names else [None] * size
        alone = zip(weights, each_name, strict=True)
        return [found for one, name in alone for found in _of_weights([one], name, count)]
    cores = [own.core for own in changes]
    inner, common, energies = numpy.zeros((3, size, count, count))
    for number, core in zip(there, cores, strict=True):
        inner[:, number, number] = numpy.square(core).sum((1, 2))
    squares = inner.diagonal(axis1=1, axis2=2).copy()
    apart = squares[:, :, None] + squares[:, None]
    apart[:, range(count), range(count)] = 0.0
    for (at, one), (behind, other) in combinations(enumerate(there), 2):
        inner[:, one, other] = inner[:, other, one] = (cores[at] * cores[behind]).sum((1, 2))
        apart[:, one, other] = apart[:, other, one] = numpy.square(cores[at] - cores[behind]).sum((1, 2))
        energy = numpy.sqrt(squares[:, one] * squares[:, other])
        energies[:, one, other] = energies[:, other, one] = energy
        common[:, one, other] = common[:, other, one] = energy * _overlap(directions[at], directions[behind])
    sums = reduce(numpy.add, cores)
    together = numpy.square(sums).sum((1, 2)).tolist()
    opposed, smaller = sign_numbers(directions, there, count) if names else numpy.zeros((2, size, count, count))
    peaks = peaks_of(names, directions, there, count, sums) if names and weights[0].is_matrix else ()
    own_peaks: list[tuple[Peaks, ...]] = [(one,) for one in peaks] or [()] * size
    numbers = zip(inner, apart, common, energies, together, opposed, smaller, own_peaks, strict=True)
    return [Comparison(*own) for own in numbers]


def _changes_of(
    terms: Sequence[Sequence[Term]], bases: "Sequence[WeightChanges | None]", workspace: Workspace
) -> Iterator[_Sum]:
    """Yield the changes of a weight that each adapter adds up, or of each expert's weight.

    The factors of plain LoRA are in memory of the `workspace`. Raises LoraInspectError where shapes disagree.
    """
    every = [term for own in terms for term in own]
    if any(term.contribution.algorithm.experts for term in every):
        of_experts = [ExpertChanges(own).changes if own else [] for own in terms]
        ExpertChanges.check(every)
        for expert in range(max(map(len, of_experts))):
            yield _joined([own[expert] if own else None for own in of_experts])
    elif all(thin_rank(term.contribution) is not None for term in every):
        ranks = [sum(thin_rank(one.contribution) or 0 for one in own) if own else None for own in terms]
        yield _Sum(sum_of(every, workspace=workspace) if every else None, tuple(ranks))
    else:
        found = [_whole(own, base) if own else None for own, base in zip(terms, bases, strict=True)]
        check_sizes([own[0] for own in terms if own], [one.shape for one in found if one])
        yield _joined(found)


def _joined(changes: Sequence[Factors | None]) -> _Sum:
    there = [one for one in changes if one]
    return _Sum(joined(there) if there else None, tuple(one.rank if one else None for one in changes))


def _whole(terms: Sequence[Term], base: "WeightChanges | None") -> Factors:
    """Return the sum of one adapter's terms as factors: of a change that is no thin product, itself and an identity."""
    matrix = whole_change(terms, base)
    rows, columns = matrix.shape
    up, down = (matrix, numpy.eye(columns)) if columns <= rows else (numpy.eye(rows), matrix)
    return Factors.of(up, down, matrix.shape)


def _refuse_not_thin(path: str, one: Contribution) -> None:
    """Raise LoraInspectError for a change that needs the base, or a dense matrix."""
    title = f"{one.module.key} is {'DoRA' if one.magnitude else one.algorithm.title}"
    if needs_base(one):
        raise RefusedError(path, f"{title}, whose change depends on the base", "compare it with --base BASE")
    if thin_rank(one) is None and not one.algorithm.experts:
        raise RefusedError(
            path, f"{title}, whose change is no product of thin factors", "compare it with one other file"
        )


def _overlap(one: Decomposed, other: Decomposed) -> Square:
    rank = min(one.values.shape[1], other.values.shape[1])
    if not rank:
        return numpy.zeros(len(one.values))
    sides = ((one.left, other.left), (one.right, other.right))
    found: Square = sum(numpy.square(own.swapaxes(1, 2) @ its).sum((1, 2)) for own, its in sides) / (2 * rank)
    return found
