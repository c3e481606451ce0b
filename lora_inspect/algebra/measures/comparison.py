"""How far several adapters' changes are from each other, whatever their names, ranks, scales and element types.

All numbers come from the changes in one pair of bases: the norm of a difference keeps its digits where the changes are
nearly the same. The overlap of two changes is the share of directions that they have in common, ‖X_aᵀ X_b‖² over the
smaller rank, the mean of columns and rows.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import islice
from typing import TYPE_CHECKING

import numpy
from numpy.typing import NDArray

from lora_inspect.algebra.alignment import MultipliedAdapter, OutputModule, Term
from lora_inspect.algebra.changes import check_sizes, matrix_shape, needs_base, terms_of, thin_rank, whole_change
from lora_inspect.algebra.experts import ExpertChanges
from lora_inspect.algebra.linear.core import Decomposed, decomposed, shared_factors
from lora_inspect.algebra.linear.factors import Factors
from lora_inspect.algebra.linear.module_threads import made_in_order
from lora_inspect.algebra.measures.stack import Peaks, WeightName, peaks_of, sign_numbers, weight_name
from lora_inspect.algebra.numpy_tensors import refuse_not_finite
from lora_inspect.errors import RefusedError
from lora_inspect.progress import Progress
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.model.contribution import Contribution, Module
from lora_inspect.schemes.record import MODEL

if TYPE_CHECKING:
    from lora_inspect.algebra.changes import WeightChanges

Square = NDArray[numpy.float64]


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
        """‖one - other‖ / ‖one‖; None where `one` changes nothing."""
        norm = self.norms[one]
        return math.sqrt(self.apart[one, other]) / norm if norm else None

    def cosine(self, one: int, other: int) -> float | None:
        """The cosine of the angle between two changes; None where one of them changes nothing."""
        product = self.norms[one] * self.norms[other]
        # Rounding makes a little more of the same direction.
        return max(-1.0, min(1.0, float(self.inner[one, other]) / product)) if product else None

    def best_multiplier(self, one: int, other: int) -> "BestMultiplier | None":
        """The number that brings `one` nearest to `other`; None where `one` changes nothing."""
        square, norm = float(self.inner[one, one]), self.norms[other]
        if not square:
            return None
        value = float(self.inner[one, other]) / square
        # ‖value · one - other‖² by the difference, which keeps the digits of changes that are nearly the same.
        left = float(self.apart[one, other]) - (value - 1.0) ** 2 * square
        return BestMultiplier(value, math.sqrt(max(0.0, left)) / norm if norm else 0.0)

    def overlap(self, one: int, other: int) -> float | None:
        """The share of directions in common, of modules by their energy; None where they change no module both."""
        if one == other:
            return 1.0 if self.norms[one] else None
        weight = float(self.weights[one, other])
        return float(self.common[one, other]) / weight if weight else None

    def sign_conflict(self, one: int, other: int) -> float | None:
        """The share of their common numbers in which two changes have opposite signs; None without such numbers."""
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
    """The comparison of the adapters in each module; a module that an adapter lacks is no change of it.

    `bases` compute the changes of each adapter that depend on a weight. Sign conflicts and peaks are there if they are
    asked for `as_stack`. Raises LoraInspectError for a number that is not finite, and where shapes disagree.
    """
    progress(0)
    found = []
    own = bases or [None] * len(adapters)
    for one in made_in_order(lambda module: _in_module(module, adapters, own, as_stack), modules):
        found.append(one)
        progress(1)
    return found


def by_parameter(modules: Iterable[OutputModule]) -> list[OutputModule]:
    """The modules with one parameter of a layer each."""
    found: list[OutputModule] = []
    for module in modules:
        terms: dict[str, list[Term]] = defaultdict(list)
        for term in module.terms:
            terms[term.contribution.algorithm.parameter].append(term)
        found += [module._replace(terms=tuple(own)) for own in terms.values()]
    return found


def check_thin(adapters: Iterable[MultipliedAdapter]) -> None:
    """Raises LoraInspectError for the first change that only the base tells, or that has no thin factors."""
    for one in adapters:
        for module in (module for key, module in one.adapter.modules.items() if one.multipliers.get(key)):
            for contribution in module.contributions:
                _refuse_not_thin(one.adapter.checkpoint.path, contribution)


# The path of a module up to its first number; the underscored name of one that has no known path.
_NUMBERED = re.compile(r"(?P<list>.+?)[._](?P<number>[0-9]+)(?=[._]|$)")


def block_of(module: Module) -> str:
    """The block of a module: its path up to the first number, as `blocks.7`, or else its component.

    Blocks of text encoders have the component in front.
    """
    component = module.name.component
    found = _NUMBERED.match(module.path or module.name.body)
    if found is None:
        return component
    block = f"{found['list']}.{found['number']}"
    return block if component == MODEL else f"{component}.{block}"


def in_order_of_blocks(names: Iterable[str]) -> list[str]:
    """The names of blocks, those of one list by their numbers."""

    def place(name: str) -> tuple[str, int]:
        blocks, _, number = name.rpartition(".")
        return (blocks, int(number)) if number.isdecimal() else (name, -1)

    return sorted(names, key=place)


def total(comparisons: Iterable[Comparison], count: int) -> Comparison:
    """All of them together, of so many adapters."""
    nothing = numpy.zeros((count, count))
    none = Comparison(nothing, nothing, nothing, nothing, 0.0, nothing, nothing)
    return reduce(Comparison.__add__, comparisons, none)


def _in_module(
    module: OutputModule, adapters: Sequence[Adapter], bases: "Sequence[WeightChanges | None]", as_stack: bool
) -> Comparison:
    """The comparison in one module, the sum over its experts where it has several."""
    terms = [[one for one in module.terms if one.adapter is adapter and one.multiplier] for adapter in adapters]
    every = list(_changes_of(terms, bases))
    names = [weight_name(module, expert if len(every) > 1 else None) for expert in range(len(every))]
    found = (_of_changes(own, module, name if as_stack else None) for own, name in zip(every, names, strict=True))
    return total(found, len(adapters))


def _of_changes(changes: Sequence[Sequence[Factors]], module: OutputModule, name: WeightName | None) -> Comparison:
    """The comparison of the changes that each adapter adds up in one weight; none of one that changes nothing there.

    With a name of the weight it has the numbers of the stack.
    """
    there = [number for number, own in enumerate(changes) if own]
    try:
        counts = [len(changes[number]) for number in there]
        shared = shared_factors([one for own in changes for one in own], counts) if there else []
    except FloatingPointError:
        refuse_not_finite(module.terms)
        raise
    cores, directions = [one.core for one in shared], decomposed(shared)
    count = len(changes)
    inner, apart, common, weights = (numpy.zeros((count, count)) for _ in range(4))
    for number, core in zip(there, cores, strict=True):
        energy = float(numpy.square(core).sum())
        inner[number, number] = energy
        apart[number, :] = apart[:, number] = apart[:, number] + energy
        apart[number, number] = 0.0
    for at, one in enumerate(there):
        for behind, other in enumerate(there[at + 1 :], at + 1):
            inner[one, other] = inner[other, one] = float((cores[at] * cores[behind]).sum())
            apart[one, other] = apart[other, one] = float(numpy.square(cores[at] - cores[behind]).sum())
            weight = math.sqrt(inner[one, one] * inner[other, other])
            weights[one, other] = weights[other, one] = weight
            common[one, other] = common[other, one] = weight * _overlap(directions[at], directions[behind])
    stacked = sum(cores[1:], cores[0]) if cores else numpy.zeros((0, 0))
    together = float(numpy.square(stacked).sum())
    opposed, smaller = sign_numbers(directions if name else [], there, count)
    is_matrix = any(min(matrix_shape(one.shape)) > 1 for own in changes for one in own)
    peaks = (peaks_of(name, directions, there, count, stacked),) if name and is_matrix else ()
    return Comparison(inner, apart, common, weights, together, opposed, smaller, peaks)


def _changes_of(
    terms: Sequence[Sequence[Term]], bases: "Sequence[WeightChanges | None]"
) -> Iterator[list[list[Factors]]]:
    """The changes that each adapter adds up, of each expert's weight where a layer has several.

    Raises LoraInspectError where their shapes disagree.
    """
    every = [term for own in terms for term in own]
    if any(term.contribution.algorithm.experts for term in every):
        of_experts = [ExpertChanges(own).changes if own else [] for own in terms]
        ExpertChanges.check(every)
        for expert in range(max(map(len, of_experts))):
            yield [[own[expert]] if own else [] for own in of_experts]
        return
    if all(thin_rank(term.contribution) is not None for term in every):
        changes = iter(terms_of(every))
        yield [list(islice(changes, len(own))) for own in terms]
        return
    found = [[_whole(own, base)] if own else [] for own, base in zip(terms, bases, strict=True)]
    firsts = [own[0] for own in terms if own]
    check_sizes(firsts, [own[0].shape for own in found if own])
    yield found


def _whole(terms: Sequence[Term], base: "WeightChanges | None") -> Factors:
    """The sum of one adapter's terms as factors: of a change that is no thin product, itself and an identity."""
    matrix = whole_change(terms, base)
    rows, columns = matrix.shape
    up, down = (matrix, numpy.eye(columns)) if columns <= rows else (numpy.eye(rows), matrix)
    return Factors.of(up, down, matrix.shape)


def _refuse_not_thin(path: str, one: Contribution) -> None:
    """Raises LoraInspectError for a change that only the base tells, or a dense matrix."""
    title = f"{one.module.key} is {'DoRA' if one.magnitude else one.algorithm.title}"
    if needs_base(one):
        raise RefusedError(path, f"{title}, whose change depends on the base", "compare it with --base BASE")
    if thin_rank(one) is None and not one.algorithm.experts:
        raise RefusedError(
            path, f"{title}, whose change is no product of thin factors", "compare it with one other file"
        )


def _overlap(one: Decomposed, other: Decomposed) -> float:
    rank = min(len(one.values), len(other.values))
    sides = ((one.left, other.left), (one.right, other.right))
    return sum(float(numpy.square(own.T @ its).sum()) for own, its in sides) / (2 * rank) if rank else 0.0
