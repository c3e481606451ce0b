"""Changes that are no product of thin factors, as matrices: by a formula, or as the difference of weights.

If one adapter's change of a weight depends on the weight, the difference is that of a merge: all changes of the weight
in the order of the adapters, each adapter's added ones first. So the merge of the output equals the merge of the
adapters. All of it is computed in float64, with torch.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import partial, reduce
from math import prod
from threading import Lock
from typing import Any

import numpy
import torch
from numpy.typing import NDArray
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from lora_inspect.algebra.alignment import MultipliedAdapter, OutputModule, Term
from lora_inspect.algebra.numpy_tensors import no_numbers
from lora_inspect.architectures.rows import Runs
from lora_inspect.converting.steps.dora_delta import BLOCK_ELEMENTS, take_rows
from lora_inspect.converting.steps.part import read_operands
from lora_inspect.errors import RefusedError
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.files.input_file import Identity
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.matching.match import match
from lora_inspect.matching.orientation import Answers, check_answers
from lora_inspect.matching.placement import Place, Placement
from lora_inspect.maths.change import Change, LowRank, deltas
from lora_inspect.maths.tensors import RowBlocks
from lora_inspect.merging.fold_chain import Fold
from lora_inspect.merging.fold_checks import check_replaced
from lora_inspect.reading.base.base_codecs import BaseCodecs, CodedWeight
from lora_inspect.reading.model.contribution import Contribution

Matrix = NDArray[numpy.floating[Any]]


def of_formula(term: Term) -> Matrix:
    """Return the change (out, in·kernel) of a term with a formula that needs no weight, at its multiplier."""
    contribution, shape = term.contribution, term.contribution.known_shape
    matrix = torch.zeros(shape[0], prod(shape[1:]), dtype=torch.float64, device="cpu")
    try:
        _change_of(contribution).fold(matrix, 0, term.multiplier)
    except LinAlgError as error:
        raise no_numbers(contribution) from error
    return _finite(matrix, contribution)


def product_of(contribution: Contribution) -> LowRank:
    """Return the change of a contribution with an `inner` rank in its formula, as a product in float64."""
    change = _change_of(contribution)
    assert isinstance(change, LowRank)
    return change


def _change_of(contribution: Contribution) -> Change:
    first = next(iter(contribution.factors.values()))
    place = Place(first._replace(name=contribution.module.key, shape=contribution.known_shape))
    return Placement(contribution, place).change(read_operands(contribution, torch.float64))


def _finite(matrix: torch.Tensor, contribution: Contribution) -> Matrix:
    found: Matrix = matrix.numpy()
    if not numpy.isfinite(found).all():
        raise no_numbers(contribution)
    return found


class BaseChanges:
    """The differences that the terms of all modules together make in the weights of a base.

    Raises LoraInspectError if a change depends on a weight that the base lacks, and if one adapter changes a tensor
    that another one replaces.
    """

    def __init__(
        self,
        adapters: Sequence[MultipliedAdapter],
        modules: Sequence[OutputModule],
        base: Checkpoint,
        rule: str | None,
        answers: Answers,
    ) -> None:
        self._base, self._rule = base, rule
        self._codecs = BaseCodecs(base)
        self._folds: dict[str, list[Fold]] = defaultdict(list)
        self._places: dict[tuple[object, ...], list[tuple[str, Place]]] = defaultdict(list)
        # A layer is asked for by each of the modules that take rows of it, one after the other.
        self._last: tuple[str, torch.Tensor] | None = None
        self._lock = Lock()
        summed = {(id(term.adapter), _identity(term.contribution)) for module in modules for term in module.terms}
        orientations = []
        for one in adapters:
            excluded = one.adapter.modules.keys() - one.multipliers.keys()
            matching = match(one.adapter, base, transposed=answers, without=excluded)
            orientations.append(matching.orientations)
            for name, placed in matching.targets.items():
                for each in placed:
                    if (id(one.adapter), _identity(each.contribution)) not in summed:
                        continue
                    multiplier = one.multipliers[each.contribution.module.key]
                    self._folds[name].append(Fold(each, multiplier, one.adapter))
                    self._places[id(one.adapter), _identity(each.contribution)].append((name, each.place))
        check_replaced(self._folds)
        self.notes = check_answers(orientations, answers)

    @property
    def inputs(self) -> dict[str, Identity]:
        """Every file of the base by path, with its identity when it was opened."""
        return self._base.inputs

    def has(self, term: Term) -> bool:
        """Return True if the base has the parameter that a term changes."""
        return (id(term.adapter), _identity(term.contribution)) in self._places

    def shape(self, term: Term) -> tuple[int, ...]:
        """Return (out, in, *kernel) of the output's weight that a term changes, by the base."""
        shapes = [place.shape for _, place in self._of(term)]
        rows = term.moves[-1][1] if term.moves else sum(shape[0] for shape in shapes)
        return (rows, *shapes[0][1:])

    def order_matters(self) -> list[str]:
        """Return the weights that another order of the adapters would leave different."""
        at_work = {name: [fold for fold in folds if fold.multiplier] for name, folds in self._folds.items()}
        return [
            name
            for name, folds in at_work.items()
            if len({id(fold.adapter) for fold in folds}) > 1 and any(fold.contribution.multiplies for fold in folds)
        ]

    def difference(self, terms: Sequence[Term]) -> Matrix:
        """Return W' - W (out, in·kernel) of one weight of the output: the rows that any of its terms change."""
        with self._lock:  # a difference takes as much memory as a few modules
            shape = self.shape(terms[0])
            found = numpy.zeros((shape[0], prod(shape[1:])))
            for term in terms:
                _take(found, self._rows_of(term), term.moves)
        return found

    def weight_norm(self, terms: Sequence[Term]) -> float:
        """Return the Frobenius norm of the base's rows that any of the terms changes, without adapters."""
        every = (each for term in terms for each in self._of(term))
        places = {(name, place.runs, place.block): place for name, place in every}
        with self._lock:
            return math.sqrt(sum(self._squared_norm(place) for place in places.values()))

    def _squared_norm(self, place: Place) -> float:
        rows = torch.zeros(place.shape[0], prod(place.shape[1:]), dtype=torch.float64, device="cpu")
        for first, block in _read(self._codecs.of(place.target), place.target, 1):
            take_rows(rows, block, first, place)
        return float(rows.square().sum())

    def _of(self, term: Term) -> list[tuple[str, Place]]:
        places = self._places.get((id(term.adapter), _identity(term.contribution)))
        if not places:
            raise RefusedError(
                term.adapter.checkpoint.path,
                f"{self._base.path} has no weight of {term.contribution.module.key}, whose change depends on it",
                "name the base that the adapter was trained on",
            )
        return places

    def _rows_of(self, term: Term) -> Matrix:
        """Return the difference in the rows of a term's contribution."""
        places = self._of(term)
        shapes = [place.shape for _, place in places]
        own = torch.zeros(sum(s[0] for s in shapes), prod(shapes[0][1:]), dtype=torch.float64, device="cpu")
        for name, place in places:
            for first, rows in self._blocks(name, place.target):
                take_rows(own, rows, first, place)
        return _finite(own, term.contribution)

    def _blocks(self, name: str, target: TensorInfo) -> Iterable[tuple[int, torch.Tensor]]:
        """Return the difference of a tensor of the base as it is stored."""
        if self._last is None or self._last[0] != name:
            folds = [fold for fold in self._folds[name] if fold.multiplier]
            read = partial(_read, self._codecs.of(target), target)
            whole = torch.zeros(target.shape[0], prod(target.shape[1:]), dtype=torch.float64, device="cpu")
            try:
                for first, rows in deltas([(self._change(fold), fold.multiplier) for fold in folds], read):
                    whole[first : first + len(rows)] = rows
            except LinAlgError as error:
                raise no_numbers(folds[0].contribution) from error
            self._last = name, whole
        return [(0, self._last[1])]

    def _change(self, fold: Fold) -> Change:
        def blocks(info: TensorInfo) -> Iterator[tuple[int, torch.Tensor]]:
            return _read(self._codecs.of(info), info, 1)

        operands = partial(read_operands, dtype=torch.float64)
        return fold.placed.read_change(operands, blocks, torch.float64, self._rule)


class SeparateChanges:
    """The weighted sum of the separate differences of each adapter from the weights of a base, as in an average.

    Each of the `parts` has the weight of an adapter and its differences.
    """

    def __init__(self, parts: Sequence[tuple[float, BaseChanges]]) -> None:
        self._parts = parts
        self.notes = list(dict.fromkeys(note for _, part in parts for note in part.notes))

    def has(self, term: Term) -> bool:
        """Return True if the base has the parameter that a term changes."""
        return any(part.has(term) for _, part in self._parts)

    def shape(self, term: Term) -> tuple[int, ...]:
        """Return (out, in, *kernel) of the output's weight that a term changes, by the base."""
        return next((part for _, part in self._parts if part.has(term)), self._parts[0][1]).shape(term)

    def order_matters(self) -> list[str]:
        """Return nothing: no adapter changes a weight that another one has changed."""
        return []

    def difference(self, terms: Sequence[Term]) -> Matrix:
        """Return the sum of the differences (out, in·kernel) of one weight of the output, each at its weight."""
        # An adapter without the weight is asked too, which says what is missing.
        owners = [(weight, part, [term for term in terms if part.has(term)]) for weight, part in self._parts]
        if missing := next((term for term in terms if not self.has(term)), None):
            self.shape(missing)
        return reduce(numpy.add, (weight * part.difference(own) for weight, part, own in owners if own))


def _identity(contribution: Contribution) -> tuple[object, ...]:
    """Return a key of a contribution by its tensors, since its record is replaced before it reaches its place."""
    algorithm = contribution.algorithm
    return contribution.module.key, algorithm.name, algorithm.parameter, contribution.rows


def _take(found: Matrix, own: Matrix, moves: Sequence[tuple[Runs, int]]) -> None:
    """Put the rows of one term into those of the output, where other terms may have put the same numbers."""
    numbers = numpy.arange(len(own))
    for runs, rows in moves:
        moved = numpy.full(rows, -1)
        for first, last, source in runs.each():
            moved[first:last] = numbers[source : source + last - first]
        numbers = moved
    taken = numbers >= 0
    found[taken] = own[numbers[taken]]


def _read(weight: CodedWeight, target: TensorInfo, together: int) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield a weight in float64, in blocks of rows of its own memory."""
    for first, rows in RowBlocks(BLOCK_ELEMENTS).read(target, together, weight.decode):
        yield first, rows.double() if rows.dtype != torch.float64 else rows.clone()
