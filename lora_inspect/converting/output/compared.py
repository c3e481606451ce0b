"""How far what a module of the output changes is from what its sources change.

Nothing of the steps that made the output is used here: factors are read from both files, and what is compared is the
change that the formulas make of them. Factors that are the same bytes need no computation.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lora_inspect.algorithms.record import Role
from lora_inspect.converting.steps.change_norm import lost_share
from lora_inspect.converting.target.thin_rank import thin_rank
from lora_inspect.files.hashes import are_same_bytes
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.maths.change import Change, OnRows, added, folded, settled
from lora_inspect.maths.low_rank import Distance, Product, distance
from lora_inspect.maths.tensors import SampleWeight, load_whole
from lora_inspect.reading.model.contribution import Contribution

# (first row, row behind the last one, first row of the term) of neighbouring rows in the module.
Runs = tuple[tuple[int, int, int], ...]

# Products are compared by their factors up to this part of the smaller side, row by row above it.
_THIN = 4
# How many inputs or outputs a weight is tried with, of which the factors say nothing.
_ANY = 8


@dataclass(frozen=True, slots=True)
class Term:
    """One change of a module's weight, on the rows of its `runs` in the module; None for all of them in order.

    `matrix` is what it changes where a base tells that, scale included.
    """

    contribution: Contribution
    runs: Runs | None = None
    matrix: torch.Tensor | None = None


def relative_distance(ones: Sequence[Term], others: Sequence[Term], read: "FactorCache") -> float:
    """‖the sum of `ones` - that of the `others`‖ / ‖that of `ones`‖, in float64.

    Changes that depend on the weight are compared on a made-up one. Infinite where the two are not of one size.
    """
    if len(ones) == len(others) == 1 and ones[0].matrix is None:
        found = _of_pair(ones[0], others[0], read)
        if found is not None:
            return found
    shape = _common_shape(ones, others)
    if shape is None:
        return math.inf
    thin = _products(ones, shape, read), _products(others, shape, read)
    if thin[0] is not None and thin[1] is not None:
        return distance(thin[0], thin[1]).share
    return _apart(ones, others, shape, read).share


class FactorCache:
    """Reads factors in float64, whole numbers in int64; keeps those that modules share."""

    def __init__(self) -> None:
        self._shared: dict[tuple[str, str], torch.Tensor] = {}

    def operands(self, contribution: Contribution) -> dict[Role, torch.Tensor]:
        """All factors that the change is computed from."""
        return {role: self.factor(contribution, role) for role in contribution.operands}

    def factor(self, contribution: Contribution, role: Role) -> torch.Tensor:
        """One of them."""
        info, algorithm = contribution.factors[role], contribution.algorithm
        if role in algorithm.positions:
            return load_whole(info)
        if role not in algorithm.shared:
            return _read(info)
        key = (info.file, info.name)
        if key not in self._shared:
            self._shared[key] = _read(info)
        return self._shared[key]


def _read(info: TensorInfo) -> torch.Tensor:
    from lora_inspect.converting.steps.scaled_factors import read_factor

    return read_factor(info).values


def _of_pair(term: Term, written: Term, read: FactorCache) -> float | None:
    """The relative distance of two contributions of one form; None where the factors alone do not tell it."""
    one, other = term.contribution, written.contribution
    own, its = one.operands, other.operands
    if one.algorithm != other.algorithm or one.settings != other.settings or own.keys() != its.keys():
        return None
    by_rows = one.algorithm.rows if term.runs else {}
    if written.runs or (term.runs and not by_rows.keys() & own.keys()):
        return None
    differing = [
        role
        for role in own
        if not (
            _has_rows_of(own[role], its[role], term.runs or ()) if role in by_rows else _is_same(own[role], its[role])
        )
    ]
    scales = one.known_scale, other.known_scale
    is_linear = bool(one.algorithm.scaled) or one.formula.low_rank is not None
    if not differing:
        if scales[0] == scales[1] and (is_linear or one.alpha == other.alpha):
            return 0.0
        # Where a factor is zero the change is none at any scale.
        is_told = is_linear and all(bool(read.factor(one, role).any()) for role in own)
        return Distance(abs(scales[0] - scales[1]), abs(scales[0])).share if is_told else None
    role = next((role for role in one.algorithm.scaled if role in own), None)
    if role is None or differing != [role] or own[role].shape != its[role].shape or term.runs or None in one.shape:
        return None
    meant, due = (c.known_scale * read.factor(c, role) for c in (one, other))
    if torch.equal(meant, due):
        return 0.0
    factors = {each: read.factor(one, each) for each in own if each != role}
    return lost_share(one.formula, factors, role, meant, due)


def _is_same(one: TensorInfo, other: TensorInfo) -> bool:
    """Whether two tensors are the same numbers in the same bytes."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return are_same_bytes(one, other, [(0, 0, one.nbytes)])


def _has_rows_of(one: TensorInfo, other: TensorInfo, runs: Runs) -> bool:
    """Whether the rows of the `other` tensor are those that `runs` take from `one`, in the same bytes."""
    if one.dtype != other.dtype or one.shape[1:] != other.shape[1:] or not other.nbytes:
        return False
    if sum(last - first for first, last, _ in runs) != other.shape[0]:
        return False
    size = other.nbytes // other.shape[0]
    return are_same_bytes(one, other, [(at * size, first * size, (last - first) * size) for first, last, at in runs])


def _common_shape(ones: Sequence[Term], others: Sequence[Term]) -> tuple[int, int] | None:
    """(rows, columns) of the module's weight as a matrix; None where the terms do not agree on it."""
    rows, columns = set[int](), set[int]()
    least = 0
    for term in (*ones, *others):
        outs, *ins = term.matrix.shape if term.matrix is not None else term.contribution.shape
        if ins and None not in ins:
            columns.add(math.prod(size for size in ins if size is not None))
        elif not ins:
            columns.add(1)
        if term.runs is not None:
            least = max(least, *(last for _, last, _ in term.runs), 0)
        elif outs is not None:
            rows.add(outs)
    if len(rows) > 1 or len(columns) > 1 or (rows and max(rows) < least):
        return None
    return max((*rows, least)) or _ANY, max(columns, default=_ANY)


def _products(terms: Sequence[Term], shape: tuple[int, int], read: FactorCache) -> list[Product] | None:
    """Each term as a product of thin factors; None where one is none, or all together are not thin."""
    found = []
    for term in terms:
        contribution = term.contribution
        if term.matrix is not None or contribution.formula.low_rank is None or contribution.algorithm.multiplies:
            return None
        rank = thin_rank(contribution.formula, {role: info.shape for role, info in contribution.operands.items()})
        if rank is None or rank * _THIN * len(terms) > min(shape) * 2:
            return None
        pair = contribution.formula.low_rank(read.operands(contribution))
        if pair is None:
            return None
        up = pair[0] * contribution.known_scale
        found.append(Product(up if term.runs is None else _placed(up, term.runs, shape[0]), pair[1]))
    return found


def _placed(up: torch.Tensor, runs: Runs, rows: int) -> torch.Tensor:
    whole = up.new_zeros(rows, up.shape[1])
    for first, last, source in runs:
        whole[first:last] = up[source : source + last - first]
    return whole


def _apart(ones: Sequence[Term], others: Sequence[Term], shape: tuple[int, int], read: FactorCache) -> Distance:
    """The distance from the changed rows of a weight: of zeros, unless a change depends on it."""
    depends = any(term.contribution.multiplies for term in (*ones, *others) if term.matrix is None)
    weight = SampleWeight(*shape, is_zero=not depends)
    links = [[(_change(term, shape, read), 1.0) for term in terms] for terms in (ones, others)]
    done = [settled(each, weight.read) for each in links]
    together = math.lcm(*(change.together for each in done for change, _ in each))
    blocks = (weight.read(together), *(folded(each, weight.read, together) for each in done))
    apart, norms = [0.0], [0.0]
    for (_, before), (_, one), (_, other) in zip(*blocks, strict=True):
        apart.append(float((other - one).norm()))
        norms.append(float((one - before).norm()))
    return Distance(math.hypot(*apart), math.hypot(*norms))


def _change(term: Term, shape: tuple[int, int], read: FactorCache) -> Change:
    contribution = term.contribution
    if term.matrix is not None:
        change: Change = added(term.matrix, 1.0)
    else:
        settings = dict(contribution.settings)
        if contribution.formula.sized:
            known = contribution.shape
            settings["weight"] = shape if None in known or not known else known
        formula, factors = contribution.formula, read.operands(contribution)
        change = formula.change(factors, contribution.known_scale, contribution.alpha, **settings)
    return change if term.runs is None else OnRows(change, term.runs)
