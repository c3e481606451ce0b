"""The merge of a module's inputs by a method in their core space, followed by λ, calibration and a cap.

The steps are those of the command line: multipliers, the method, `--calibrate`, `--lambda` and `--clip-sigma`. A method
sees only small matrices, so it costs milliseconds for a layer of any size.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy

from lora_inspect.algebra.alignment import Term
from lora_inspect.algebra.changes import terms_of, whole_change
from lora_inspect.algebra.experts import ExpertChanges
from lora_inspect.algebra.linear.core_space import CoreSpace
from lora_inspect.algebra.linear.factors import Array, Factors, joined
from lora_inspect.algebra.methods import by_name
from lora_inspect.algebra.methods.record import Method, MethodSettings, calibrated, truncated_svd
from lora_inspect.algebra.options import SVC, CombineRequest
from lora_inspect.algebra.results import ClippedModule
from lora_inspect.errors import RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.safetensors.dtypes import BITS
from lora_inspect.reading.adapter import Adapter

# Below this share of the largest singular value a direction is the rounding of factors in single precision, and of
# factors of 16 bits and less.
_FINE, _COARSE = 1e-7, 1e-4


@dataclass(frozen=True, slots=True)
class MergeRule:
    """A method with its settings, and the steps behind it; `factor` is λ, times the multiplier of the energy.

    `adapters` are the inputs in their order, and `calibrate` is SVC, ENERGY or None. Singular values above `clip` are
    cut to it.
    """

    method: Method
    settings: MethodSettings
    adapters: tuple[Adapter, ...]
    factor: float = 1.0
    calibrate: str | None = None
    clip: float | None = None

    @classmethod
    def of(cls, request: CombineRequest, adapters: Sequence[Adapter]) -> "MergeRule | None":
        """Return the rule of a request; None for a plain sum. LoraInspectError for too many adapters."""
        if request.is_sum:
            return None
        method = by_name(request.method)
        if method.inputs is not None and len(adapters) != method.inputs:
            raise RefusedError(
                adapters[0].checkpoint.path,
                f"{method.title} is of {method.inputs} adapters, but {len(adapters)} are named",
                f"name {method.inputs}",
            )
        given = {name: getattr(request, name) for name in method.settings}
        settings = MethodSettings(**{name: value for name, value in given.items() if value is not None})
        factor = 1.0 if request.lambda_ is None else request.lambda_
        return cls(method, settings, tuple(adapters), factor, request.calibrate, request.clip_sigma)

    def to_record(self) -> dict[str, Any]:
        """Return the method, its settings and the steps, as an output records them."""
        own = {name: getattr(self.settings, name) for name in self.method.settings}
        factor = None if self.factor == 1.0 else self.factor
        steps = {"lambda": factor, "calibrate": self.calibrate, "clip_sigma": self.clip}
        return {"name": self.method.name, **own, **{name: value for name, value in steps.items() if value is not None}}


class MergeFacts(NamedTuple):
    """The numbers of one merged module, which add up: inner products of the result with each input, and squares.

    `inner` and `squares` have one number for each input, `energy` is the squared norm of the result before λ and the
    cap. `is_unique` says that no other pair of bases gives another result.
    """

    inner: tuple[float, ...]
    squares: tuple[float, ...]
    energy: float
    clip: ClippedModule | None
    is_unique: bool


class MergedModule:
    """The result of a method in one module: its singular values, and the factors of a rank."""

    def __init__(self, name: str, changes: Sequence[Factors | None], shares: Sequence[float], rule: MergeRule) -> None:
        there = [number for number, change in enumerate(changes) if change is not None]
        present = [change for change in changes if change is not None]
        self._space = CoreSpace(present, [shares[number] for number in there])
        nothing = numpy.zeros_like(self._space.cores[0])
        self._cores = [nothing] * len(changes)
        for number, core in zip(there, self._space.cores, strict=True):
            self._cores[number] = core
        rounding = max(shares[number] for number in there)
        merged = _merged(self._cores, rounding, rule, name)
        self._energy = float(numpy.square(merged).sum())
        self._left, values, self._right = truncated_svd(merged * rule.factor, _FINE)
        self.values = values if rule.clip is None else numpy.minimum(values, rule.clip)
        self._clip = _clip(name, values, self.values)
        self._is_unique = self._space.is_unique or not rule.method.in_numbers

    def change(self, rank: int) -> Factors:
        """Return the nearest change of a rank to the result."""
        return self._space.change(self._left[:, :rank], self.values[:rank], self._right[:rank])

    def facts(self, rank: int) -> MergeFacts:
        """Return the numbers of the result at a rank."""
        written = (self._left[:, :rank] * self.values[:rank]) @ self._right[:rank]
        return _facts(written, self._cores, self._energy, self._clip, self._is_unique)


def _merged(cores: Sequence[Array], rounding: float, rule: MergeRule, name: str) -> Array:
    merged = rule.method.merge(cores, rule.settings._replace(rounding=rounding), name)
    return calibrated(merged, cores, rounding) if rule.calibrate == SVC else merged


def _facts(
    written: Array, cores: Sequence[Array], energy: float, clip: ClippedModule | None, is_unique: bool
) -> MergeFacts:
    inner = tuple(float((written * core).sum()) for core in cores)
    return MergeFacts(inner, tuple(float(numpy.square(core).sum()) for core in cores), energy, clip, is_unique)


def _clip(name: str, before: Array, after: Array) -> ClippedModule | None:
    if not before.size or before[0] <= after[0]:
        return None
    energies = float(numpy.square(before).sum()), float(numpy.square(after).sum())
    return ClippedModule(name, float(before[0]), 1.0 - energies[1] / energies[0])


class MergedWeight:
    """The result in one weight of a module, or in those of all its experts."""

    def __init__(self, parts: Sequence[MergedModule]) -> None:
        self._parts = parts
        count = max(len(part.values) for part in parts)
        squares = [numpy.square(numpy.pad(part.values, (0, count - len(part.values)))) for part in parts]
        self.values: Array = numpy.sqrt(numpy.sum(squares, axis=0))

    def changes(self, rank: int) -> list[Factors]:
        """Return the change of each part, with zeros behind its own rank."""
        return [_padded(part.change(min(rank, len(part.values))), rank) for part in self._parts]

    def facts(self, rank: int) -> MergeFacts:
        """Return the numbers of all parts together."""
        return total_facts([part.facts(min(rank, len(part.values))) for part in self._parts])


def _padded(change: Factors, rank: int) -> Factors:
    missing = rank - change.rank
    up, down = numpy.pad(change.up, ((0, 0), (0, missing))), numpy.pad(change.down, ((0, missing), (0, 0)))
    return Factors.of(up, down, change.shape)


def total_facts(found: Sequence[MergeFacts]) -> MergeFacts:
    """Return the numbers of several parts: sums, the largest cut value, and whether all are unique."""
    clips = [one.clip for one in found if one.clip]
    return MergeFacts(
        tuple(map(sum, zip(*(one.inner for one in found), strict=True))),
        tuple(map(sum, zip(*(one.squares for one in found), strict=True))),
        sum(one.energy for one in found),
        max(clips, key=lambda clip: clip.value) if clips else None,
        all(one.is_unique for one in found),
    )


def merged_weight(name: str, terms: Sequence[Term], rule: MergeRule) -> MergedWeight:
    """Return the merge of the terms of a module's weight, each adapter's added up; of all experts, expert by expert.

    Raises FloatingPointError for numbers beyond the range.
    """
    own, shares = _by_adapter(terms, rule), _shares(terms, rule)
    if not any(term.contribution.algorithm.experts for term in terms):
        changes = [joined(terms_of(one)) if one else None for one in own]
        return MergedWeight([MergedModule(name, changes, shares, rule)])
    ExpertChanges.check(terms)
    read = [ExpertChanges(one).changes if one else [] for one in own]
    experts = range(max(map(len, read)))
    each = [[changes[expert] if changes else None for changes in read] for expert in experts]
    return MergedWeight([MergedModule(f"{name} {at}", changes, shares, rule) for at, changes in enumerate(each)])


def energy_multiplier(found: Sequence[MergeFacts]) -> float:
    """Return the multiplier that gives the result the energy of independent inputs; 1 if nothing is left of it."""
    energy = sum(one.energy for one in found)
    return math.sqrt(sum(map(sum, (one.squares for one in found))) / energy) if energy else 1.0


def carried_shares(facts: MergeFacts) -> tuple[float | None, ...]:
    """Return the share of each input in the result, <D, D_i> / ‖D_i‖²; None for one without a change."""
    pairs = zip(facts.inner, facts.squares, strict=True)
    return tuple(inner / square if square else None for inner, square in pairs)


def merged_vector(name: str, terms: Sequence[Term], rule: MergeRule) -> tuple[Array, MergeFacts]:
    """Return the merge of the differences of a vector, by their numbers directly."""
    own = [whole_change(one, None) if one else None for one in _by_adapter(terms, rule)]
    shape = next(one.shape for one in own if one is not None)
    cores = [numpy.zeros(shape) if one is None else one for one in own]
    merged = _merged(cores, _FINE, rule, name)
    found = merged * rule.factor
    return found, _facts(found, cores, float(numpy.square(merged).sum()), None, True)


def _by_adapter(terms: Sequence[Term], rule: MergeRule) -> list[list[Term]]:
    """Return the terms of each input that change anything."""
    return [[term for term in terms if term.adapter is adapter and term.multiplier] for adapter in rule.adapters]


def _shares(terms: Sequence[Term], rule: MergeRule) -> list[float]:
    """Return the share of its largest singular value below which a direction of each input is rounding."""
    if rule.method.is_linear:
        return [_FINE] * len(rule.adapters)
    return [
        _COARSE
        if any(BITS[info.dtype] <= 16 for term in own for info in term.contribution.operands.values())
        else _FINE
        for own in _by_adapter(terms, rule)
    ]
