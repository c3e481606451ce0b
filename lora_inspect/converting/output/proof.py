"""The proof of a conversion: every module of the re-read output changes its layer as the input does.

Before the output appears, it is opened and read as any file is. This shows every loss on the way: in the factors, the
names, the metadata or the config.

The proof uses nothing of the steps that made the output. It reads factors from both files and compares the changes that
the formulas make of them; factors that are the same bytes need no computation. It also measures factors of all experts
against those of single ones, and DoRA in a program against the trained one, by the weights of the base.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from lora_inspect.algorithms import mlx
from lora_inspect.algorithms.record import Role
from lora_inspect.converting.steps.base_change import BaseDependentChange
from lora_inspect.converting.steps.carried_scale import EXACT
from lora_inspect.converting.steps.dora_delta import DeltaCache, own_weight, remembered_delta, true_change
from lora_inspect.converting.steps.full_delta import WholeChanges
from lora_inspect.converting.steps.part import lost_share, read_factor, thin_rank
from lora_inspect.converting.steps.renormalise import other_magnitude
from lora_inspect.converting.target.target_layout import Destination, OneLayer, Source
from lora_inspect.errors import LoraInspectError, RefusedError
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.files.hashes import are_same_bytes
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.maths import dora
from lora_inspect.maths.change import Change, OnRows, added, folded, settled
from lora_inspect.maths.dora import OUTPUT
from lora_inspect.maths.low_rank import Distance, Product, distance, relative
from lora_inspect.maths.scaling import per_expert
from lora_inspect.maths.tensors import SampleWeight, load_whole
from lora_inspect.programs.evaluate import Taken
from lora_inspect.programs.record import BASE_NORM, LEAVES, OTHER_AXIS, SUM_NORM, UNTRAINED
from lora_inspect.progress import Progress
from lora_inspect.reading.adapter import Adapter, read_adapter
from lora_inspect.reading.model.contribution import Contribution, Module
from lora_inspect.reading.model.settings import Settings

# (first row, row behind the last one, first row of the term) of neighbouring rows in the module.
Runs = tuple[tuple[int, int, int], ...]

# Products are compared by their factors up to this part of the smaller side, row by row above it.
_THIN = 4
# How many inputs or outputs a weight is tried with, of which the factors say nothing.
_ANY = 8


@dataclass(frozen=True, slots=True)
class ProofTerm:
    """One change of a module's weight, on the rows of its `runs` in the module; None for all rows in order.

    `matrix` is the change that a base determines, scale included.
    """

    contribution: Contribution
    runs: Runs | None = None
    matrix: torch.Tensor | None = None


def relative_distance(ones: Sequence[ProofTerm], others: Sequence[ProofTerm], read: "FactorCache") -> float:
    """Return ‖the sum of `ones` - the sum of the `others`‖ / ‖the sum of `ones`‖, in float64.

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
    """A cache that reads factors in float64, integers in int64, and keeps the factors that modules share."""

    def __init__(self) -> None:
        self._shared: dict[tuple[str, str], torch.Tensor] = {}

    def operands(self, contribution: Contribution) -> dict[Role, torch.Tensor]:
        """Return all factors that the change is computed from."""
        return {role: self.factor(contribution, role) for role in contribution.operands}

    def factor(self, contribution: Contribution, role: Role) -> torch.Tensor:
        """Return one factor."""
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

    return read_factor(info).values


def _of_pair(term: ProofTerm, written: ProofTerm, read: FactorCache) -> float | None:
    """Return the relative distance of two contributions of one form, or None if the factors do not show it."""
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
    """Return True if two tensors are the same numbers in the same bytes."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return are_same_bytes(one, other, [(0, 0, one.nbytes)])


def _has_rows_of(one: TensorInfo, other: TensorInfo, runs: Runs) -> bool:
    """Return True if the `other` tensor has the rows that `runs` take from `one`, in the same bytes."""
    if one.dtype != other.dtype or one.shape[1:] != other.shape[1:] or not other.nbytes:
        return False
    if sum(last - first for first, last, _ in runs) != other.shape[0]:
        return False
    size = other.nbytes // other.shape[0]
    return are_same_bytes(one, other, [(at * size, first * size, (last - first) * size) for first, last, at in runs])


def _common_shape(ones: Sequence[ProofTerm], others: Sequence[ProofTerm]) -> tuple[int, int] | None:
    """Return (rows, columns) of the module's weight as a matrix, or None if the terms disagree."""
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


def _products(terms: Sequence[ProofTerm], shape: tuple[int, int], read: FactorCache) -> list[Product] | None:
    """Return each term as a product of thin factors, or None if one is no such product or the sum is not thin."""
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


def _apart(
    ones: Sequence[ProofTerm], others: Sequence[ProofTerm], shape: tuple[int, int], read: FactorCache
) -> Distance:
    """Return the distance, computed on the changed rows of a weight, of zeros unless a change depends on it."""
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


def _change(term: ProofTerm, shape: tuple[int, int], read: FactorCache) -> Change:
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


def expert_distance(destination: Destination, written: Contribution, read: FactorCache) -> Distance:
    """Return the relative distance, over all experts, of the output module with `written` and its sources."""
    sources = [source.module.contributions[0] for source in destination.sources]
    layers = destination.experts
    if layers is None:
        (source,) = sources
        if written.algorithm != source.algorithm:
            return Distance(math.inf, 1.0)
        return _over_all([[one] for one in _of_all(source, read)], written, read)
    if isinstance(layers, OneLayer):
        (source,) = sources
        whole = list(_of_all(source, read))[layers.expert]
        turned = Product(whole.down.t(), whole.up.t()) if layers.turned else whole
        rows = [turned.up[first : first + stop - start] for start, stop, first in layers.runs.each()]
        return distance([turned._replace(up=torch.cat(rows))], [_of_one(written, read)])
    of_experts: list[list[Product]] = [[] for _ in range(layers.experts)]
    for source, (expert, _, runs) in zip(sources, layers.places, strict=True):
        own = _of_one(source, read)
        up = own.up.new_zeros(layers.rows, own.up.shape[1])
        for start, stop, first in runs.each():
            up[start:stop] = own.up[first : first + stop - start]
        of_experts[expert].append(own._replace(up=up))
    return _over_all(of_experts, written, read)


def _of_one(contribution: Contribution, read: FactorCache) -> Product:
    factors = read.operands(contribution)
    return Product(factors["up"] * contribution.known_scale, factors["down"])


def _of_all(contribution: Contribution, read: FactorCache) -> Iterator[Product]:
    """Yield the product of each expert."""
    one, algorithm = _of_one(contribution, read), contribution.algorithm
    if algorithm.packed:
        yield from map(Product, *per_expert(one.up, one.down, algorithm.experts, contribution.settings["packing"]))
    else:
        yield from map(Product, *mlx.per_expert(one.up, one.down))


def _over_all(meant: Sequence[list[Product]], written: Contribution, read: FactorCache) -> Distance:
    found = [distance(ones, [other]) for ones, other in zip(meant, _of_all(written, read), strict=True)]
    return Distance(math.hypot(*(one.apart for one in found)), math.hypot(*(one.norm for one in found)))


@dataclass(slots=True)
class Proof:
    """A comparison of the output of `targets` with its input `adapter`, made when called with the output's path.

    `stated` are the relative errors that the conversion itself reports, by module, None if it cannot. `base_changes`
    are the changes that depend on a base, `remeasured` the modules with magnitudes over other norms from a base, and
    `changes` the base-dependent changes of modules that are differences in the output. `keeps_magnitudes` is True if
    the output has the magnitudes of the others. `output` is the path for error messages. `written`, `modules` and
    `max_relative_error` are the results: the output as it was read, and the comparison.
    """

    adapter: Adapter
    targets: Sequence[Destination]
    base_changes: Mapping[str, BaseDependentChange]
    remeasured: Mapping[str, BaseDependentChange]
    changes: WholeChanges
    stated: Mapping[str, float | None]
    keeps_magnitudes: bool
    output: str
    written: Adapter | None = None
    modules: int = 0
    max_relative_error: float = 0.0
    _read: FactorCache = field(default_factory=FactorCache)
    _deltas: DeltaCache = field(default_factory=lambda: DeltaCache(1))

    def __call__(self, path: str) -> None:
        """Raise LoraInspectError if a module is missing or changed by more than the stated error."""
        written = self.written = self._opened(path)
        names = {target.module.name.key for target in self.targets}
        if wrong := sorted(names.symmetric_difference(written.modules)):
            raise self._defect(f"{wrong[0]} {'is missing' if wrong[0] in names else 'is an extra module'}")
        if lost := [key for key in self.adapter.other_keys if key not in written.checkpoint.tensors]:
            raise self._defect(f"{lost[0]} is missing")
        for target in self.targets:
            key = target.module.name.key
            found, stated = self._relative_error(target, written.modules[key]), self.stated[key] or 0.0
            # The margin is what the rounding of one number to float32 may cost; a NaN is no proof.
            if not found <= stated + EXACT:
                raise self._defect(f"{key} differs by {found:.3g} of its change, but at most {stated:.3g} is allowed")
            self.max_relative_error = max(self.max_relative_error, found)
            self.modules += 1

    def _opened(self, path: str) -> Adapter:
        """Read the output as a reader without settings does, except for those that no file can hold."""
        told = Settings(allow_partial_dora=self.adapter.settings.allow_partial_dora)
        try:
            written = read_adapter(open_checkpoint(path), told)
            written.refuse()
        except LoraInspectError as error:
            raise self._defect(f"reading it fails with “{str(error).replace(path, self.output)}”") from error
        return written

    def _defect(self, what: str) -> LoraInspectError:
        return RefusedError(
            self.output,
            f"internal error: the output differs from {self.adapter.checkpoint.path} ({what}), so nothing was written",
            "report this, or give --no-verify to write the output anyway",
        )

    def _relative_error(self, target: Destination, written: Module) -> float:
        """Return the largest relative error of the module's parameters and magnitudes."""
        of_experts = [c for c in written.contributions if c.algorithm.experts]
        if target.experts or of_experts:
            return expert_distance(target, (of_experts or written.contributions)[0], self._read).share
        ones, others = defaultdict[str, list[ProofTerm]](list), defaultdict[str, list[ProofTerm]](list)
        for source in target.sources:
            whole = self.changes.get(source.module.name.key)
            for parameter, change in whole.items() if whole else ():
                runs = tuple(source.runs.each()) if source.runs else None
                ones[parameter].append(ProofTerm(change.first, runs, change.remembered(self._deltas, source.runs)))
            for contribution in () if whole else source.module.contributions:
                ones[contribution.algorithm.parameter].append(self._term(contribution, source))
        for contribution in written.contributions:
            runs = _runs(contribution, None)
            others[contribution.algorithm.parameter].append(ProofTerm(contribution._replace(magnitude=None), runs))
        if ones.keys() != others.keys():
            return float("inf")
        errors = [relative_distance(terms, others[parameter], self._read) for parameter, terms in ones.items()]
        return max((*errors, self._magnitude_error(target, written)))

    def _term(self, contribution: Contribution, source: Source) -> ProofTerm:
        own = self.base_changes.get(contribution.module.key)
        runs = _runs(contribution, source)
        if own and own.contribution is contribution:
            change = remembered_delta(own, self._deltas, source.runs).double()
            return ProofTerm(contribution, runs, change.T if own.is_turned else change)
        return ProofTerm(contribution._replace(magnitude=None), runs)

    def _magnitude_error(self, target: Destination, written: Module) -> float:
        found = [c.magnitude for c in written.contributions if c.magnitude]
        meant = [
            (c, c.magnitude, source.runs)
            for source in target.sources
            for c in source.module.contributions
            if c.magnitude
            and self.keeps_magnitudes
            and c.module.key not in self.base_changes.keys() | self.changes.keys()
        ]
        if not found and not meant:
            return 0.0
        if len(found) != 1 or {magnitude.axis for _, magnitude, _ in meant} != {found[0].axis}:
            return float("inf")
        values = read_factor(found[0].info).values.flatten()
        due = torch.zeros_like(values)
        for contribution, magnitude, runs in meant:
            if contribution.module.key in self.remeasured:
                # As the output itself says whose norms it is over.
                own = other_magnitude(self.remeasured[contribution.module.key], found[0].spelling)
            elif magnitude.spelling.norms == found[0].spelling.norms:
                own = read_factor(magnitude.info).values.flatten()
            else:
                return float("inf")
            for first, last, at in runs.each() if runs and magnitude.axis == OUTPUT else [(0, own.shape[0], 0)]:
                if last > due.shape[0]:
                    return float("inf")
                due[first:last] = own[at : at + last - first]
        return relative(float((values - due).norm()), float(due.norm()))


def _runs(contribution: Contribution, source: Source | None) -> Runs | None:
    """Return the rows of the module that a contribution of the source changes, and its own rows for them."""
    moved = tuple(source.runs.each()) if source and source.runs else None
    if contribution.rows is None:
        return moved
    start, stop = contribution.rows
    if moved is None:
        return ((start, stop, 0),)
    cut = (
        (first + max(at, start) - at, first + min(at + last - first, stop) - at, max(at, start) - start)
        for first, last, at in moved
    )
    return tuple((first, last, at) for first, last, at in cut if first < last)


# The norms that divide a magnitude of outputs where a program takes others than are meant.
_NORMS = {BASE_NORM: dora.OF_BASE, SUM_NORM: dora.OF_SUM}
# What a program does with a module: with its magnitude, and at which scale.
_Way = tuple[str, float]


def dora_errors(
    base_changes: Mapping[str, BaseDependentChange], programs: Mapping[str, Iterable[Taken]], progress: Progress
) -> dict[str, float]:
    """Return the relative error of all changes together, by program: the norm of the error over that of the change.

    `programs` are the changes that each of them applies. Equal treatments are computed once.
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
        meant = true_change(base_changes[key])
        for (does, scale), names in own.items():
            error = float((_received(base_changes[key], does, scale) - meant).double().square().sum())
            for name in names:
                wrong[name] += error
                right[name] += float(meant.double().square().sum())
        progress(1)
    return {name: math.sqrt(relative(wrong[name], right[name])) for name in programs}


def _received(dependent: BaseDependentChange, does: str, scale: float) -> torch.Tensor:
    """Return the program's change of the module."""
    contribution = dependent.contribution._replace(scale=scale)
    if does == OTHER_AXIS:
        return _along_the_other_axis(dependent, contribution)
    if does == UNTRAINED:
        return _with_norms_of_base(dependent, contribution)
    if does == LEAVES:
        contribution = contribution._replace(magnitude=None)
    elif does in _NORMS and contribution.magnitude:
        spelling = contribution.magnitude.spelling._replace(norms=_NORMS[does])
        contribution = contribution._replace(magnitude=contribution.magnitude._replace(spelling=spelling))
    return true_change(dependent._replace(contribution=contribution))


def _with_norms_of_base(dependent: BaseDependentChange, contribution: Contribution) -> torch.Tensor:
    """Return V · ‖W‖ / ‖V‖ - W per output: DoRA with the magnitudes of its initialisation."""
    weight = own_weight(dependent.places)
    combined = weight + true_change(dependent._replace(contribution=contribution._replace(magnitude=None)))
    norms = (dora.squared_norm(one, dora.OUTPUT).to(weight.dtype) for one in (weight, combined))
    of_base, of_sum = (dora.norm_from_square(squares, 0.0) for squares in norms)
    changed: torch.Tensor = combined * dora.gain(of_base.reshape(-1, 1), of_sum)
    return changed - weight


def _along_the_other_axis(dependent: BaseDependentChange, contribution: Contribution) -> torch.Tensor:
    """Return V · m / n - W, with the magnitudes over the norms of V's inputs (A1111's `apply_weight_decompose`)."""
    assert contribution.magnitude is not None
    weight = own_weight(dependent.places)
    combined = weight + true_change(dependent._replace(contribution=contribution._replace(magnitude=None)))
    values = read_factor(contribution.magnitude.info).values.to(weight.dtype).reshape(-1, 1)
    per_input = math.prod(dependent.shape[2:])
    squares = dora.squared_norm(combined, dora.INPUT).to(weight.dtype)
    squares = squares.reshape(-1, per_input).sum(1).repeat_interleave(per_input)
    changed: torch.Tensor = combined * dora.gain(values, dora.norm_from_square(squares, 0.0))
    return changed - weight
