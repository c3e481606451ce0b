"""The commands that combine a stack of adapters, as words for a shell, and the share of each adapter that they carry.

A command is computed before it is recommended, from the same request that its words come from. Sums of products of thin
factors follow from the inner products of the changes. Methods take one more pass over the factors, as `combine` does.
Sums that depend on a base are made at the ranks of the command.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy

from lora_inspect.algebra.alignment import MultipliedAdapter, OutputModule, Term
from lora_inspect.algebra.changes import matrix_shape, whole_change
from lora_inspect.algebra.combination import made_by_rule, merged_facts
from lora_inspect.algebra.core_merging import MergeFacts, carried_shares, energy_multiplier, total_facts
from lora_inspect.algebra.inputs import Inputs, base_changes
from lora_inspect.algebra.linear.factors import Array
from lora_inspect.algebra.measures.comparison import Square, by_parameter, compared, total
from lora_inspect.algebra.methods import SUM
from lora_inspect.algebra.options import ENERGY, CombineRequest, rank_rule
from lora_inspect.algebra.output.output_modules import MadeModule, PlannedModule
from lora_inspect.algebra.plan import SumPlan, plan_sum
from lora_inspect.errors import RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.maths.stored_numbers import decoded
from lora_inspect.option import declared
from lora_inspect.progress import Passes, silent
from lora_inspect.reading.model.settings import Settings, spell_argument
from lora_inspect.shell import command_line, operand

if TYPE_CHECKING:
    from lora_inspect.algebra.changes import WeightChanges

# Digits of a multiplier in a command.
_DIGITS = 4
# The options of a command in the order of its words.
_ORDER = (
    *("include", "exclude", "allow_partial_dora", "allow_mixed", "base", "dora_multiplier", "transposed"),
    *("rank", "energy", "method", "density", "calibrate", "clip_sigma"),
)


class StackedAdapter(NamedTuple):
    """An adapter as commands name it, by its path and settings; `ending` is that of an output with its names."""

    path: str
    settings: Settings
    ending: str
    needs_base: bool

    def named(self, factor: float = 1.0) -> str:
        """Return the path with its settings, and so many times the multipliers."""
        own = self.settings
        if factor != 1.0:
            multiplier = _times(1.0 if own.multiplier is None else own.multiplier, factor)
            parts = tuple((name, _times(number, factor)) for name, number in own.part_multipliers)
            own = own._replace(multiplier=multiplier, part_multipliers=parts if factor else ())
        return spell_argument(operand(self.path), own)


def _times(number: float, factor: float) -> float:
    return float(f"{number * factor:.{_DIGITS}g}")


class StackCommand(NamedTuple):
    """A `combine` of a stack: a factor for the multipliers of each adapter, 0 to leave it out, and further options."""

    factors: tuple[float, ...]
    options: Mapping[str, Any] = {}


class CombineWords(NamedTuple):
    """The words of commands for a stack.

    `modules` is the request that chooses modules; if it is not empty, an adapter that is left out has the multiplier 0,
    so that its options still apply. `of_base` are the options if a remaining adapter depends on a base. `takes_methods`
    is False if a change is no product of thin factors, since methods other than the sum then have no core.
    """

    adapters: tuple[StackedAdapter, ...]
    modules: CombineRequest
    of_base: Mapping[str, Any]
    takes_methods: bool

    def named_places(self, command: StackCommand) -> list[int]:
        """Return the places of the adapters that a command names."""
        names_all = self.modules != CombineRequest()
        return [place for place, factor in enumerate(command.factors) if factor or names_all]

    def depends_on_base(self, command: StackCommand) -> bool:
        """Return True if an adapter that a command combines depends on a base."""
        return any(one.needs_base and factor for one, factor in zip(self.adapters, command.factors, strict=True))

    def request(self, command: StackCommand) -> CombineRequest:
        """Return the request of a command."""
        of_base = self.of_base if self.depends_on_base(command) else {}
        return replace(self.modules, **{**of_base, **command.options})

    def line(self, command: StackCommand) -> str:
        """Return a command as words, with a new file or folder of the current one for its output."""
        places = self.named_places(command)
        named = [self.adapters[place].named(command.factors[place]) for place in places]
        request, options = self.request(command), declared(CombineRequest)
        words = [word for name in _ORDER for word in options[name].words(getattr(request, name))]
        output = _new_name("combined", self.adapters[places[0]].ending)
        return command_line(["lora-inspect", "combine", *named, *words, "-o", output])


def _new_name(stem: str, ending: str) -> str:
    names = (f"{stem}{number}{ending}" for number in ("", *(f"-{count}" for count in range(2, 10_000))))
    return next(name for name in names if not os.path.lexists(name))


class StackResult(NamedTuple):
    """The share of each adapter that a command carries, None for one that it leaves out, and its squared norm."""

    carried: tuple[float | None, ...]
    squared_norm: float

    def share(self, place: int) -> float:
        """Return the share of an adapter; 0 if the result has nothing of it."""
        return self.carried[place] or 0.0


class StackTrials:
    """The results of commands for a stack, each computed when it is asked for.

    `inner` (n, n) are the inner products of the n changes over all modules. `refusal` is the last error of a refused
    command.
    """

    def __init__(self, inputs: Inputs, words: CombineWords, inner: Square, passes: Passes) -> None:
        self._inputs, self._words, self._inner, self._passes = inputs, words, inner, passes
        # By the factors of a command, its method and the steps behind it.
        self._passed: dict[object, list[MergeFacts]] = {}
        self.refusal: RefusedError | None = None

    def result(self, command: StackCommand) -> StackResult | None:
        """Return the result of a command; None, with the error in `refusal`, if `combine` refuses it."""
        places = [place for place, factor in enumerate(command.factors) if factor]
        try:
            facts = self._facts(command, places)
        except RefusedError as error:
            self.refusal = error
            return None
        shares = carried_shares(facts)
        carried = tuple(share if place in places else None for place, share in enumerate(shares))
        return StackResult(carried, facts.energy)

    def _facts(self, command: StackCommand, places: Sequence[int]) -> MergeFacts:
        """Return the numbers of the result of a command that combines the adapters at `places`."""
        request = self._words.request(command)
        if len(places) == 1 and request == CombineRequest():
            return self._of_sum(command, request)
        plan = plan_sum(self._command_inputs(command), None, request, rank_rule(request))
        if self._words.depends_on_base(command) and plan.making.merge is None:
            return self._of_written(plan, command, request)
        if request.method == SUM and request.clip_sigma is None and request.calibrate in (None, ENERGY):
            return self._of_sum(command, request)
        return self._of_method(plan, command, request)

    def _command_inputs(self, command: StackCommand) -> Inputs:
        """Return the inputs of a command: the headers that were read, at its multipliers."""
        places = self._words.named_places(command)
        adapters = []
        for place in places:
            adapter, multipliers = self._inputs.adapters[place]
            factor = command.factors[place]
            scaled = {key: factor * multiplier for key, multiplier in multipliers.items()}
            adapters.append(MultipliedAdapter(adapter, scaled))
        return replace(
            self._inputs,
            adapters=tuple(adapters),
            excluded=tuple(self._inputs.excluded[place] for place in places),
            base=self._inputs.base if self._words.depends_on_base(command) else None,
        )

    def _of_sum(self, command: StackCommand, request: CombineRequest) -> MergeFacts:
        """Return the numbers of a sum of products of thin factors."""
        factors = numpy.array(command.factors)
        facts = _facts_of_sum(self._inner, factors)
        if request.calibrate != ENERGY:
            return facts
        squares = self._inner.diagonal() * numpy.square(factors)
        return _scaled(facts, energy_multiplier([facts._replace(squares=tuple(squares.tolist()))]))

    def _of_method(self, plan: SumPlan, command: StackCommand, request: CombineRequest) -> MergeFacts:
        """Return the numbers of the result of a method; several multipliers of one result take one pass."""
        is_energy = request.calibrate == ENERGY
        steps = request.method, request.density, None if is_energy else request.calibrate, request.clip_sigma
        key = command.factors, steps
        if key not in self._passed:
            assert plan.making.merge
            with self._passes(len(plan.modules)) as progress:
                self._passed[key] = merged_facts(plan.modules, plan.making.merge, progress)
        modules = self._passed[key]
        facts = _scaled(total_facts(modules), energy_multiplier(modules) if is_energy else 1.0)
        numbers = numpy.zeros((2, len(command.factors)))
        numbers[:, self._words.named_places(command)] = facts.inner, facts.squares
        inner, squares = numbers.tolist()
        return facts._replace(inner=tuple(inner), squares=tuple(squares))

    def _of_written(self, plan: SumPlan, command: StackCommand, request: CombineRequest) -> MergeFacts:
        """Return the numbers of a sum with changes that depend on a base.

        Such changes do not add up, and a rank leaves a part of them out: their modules are made. All others add up.
        """
        adapters = [one.adapter for one in self._inputs.adapters]
        factors = {id(adapter): factor for adapter, factor in zip(adapters, command.factors, strict=True)}
        modules, linear, full = list[OutputModule](), list[OutputModule](), list[tuple[PlannedModule, list[Term]]]()
        for planned in plan.modules:
            weight = _at_stack_multipliers(planned.sum.terms, factors)
            others = [_at_stack_multipliers(terms, factors) for terms in planned.vectors.values()]
            vectors = [term for terms in others for term in terms]
            module = planned.sum._replace(terms=(*weight, *vectors))
            modules.append(module)
            if planned.is_full:
                full.append((planned, weight))
                module = module._replace(terms=tuple(vectors))
            linear.append(module)
        bases = [base_changes(one, modules, request, for_output=False) for one in self._inputs.each()]
        added = total(compared(by_parameter(linear), adapters, silent, bases), len(adapters))
        facts = [_facts_of_sum(added.inner, numpy.array(command.factors))]
        with self._passes(len(full)) as progress:
            written = made_by_rule([planned for planned, _ in full], plan.rule, plan.making, progress)
            for made, (_, weight) in zip(written, full, strict=True):
                terms = [[term for term in weight if term.adapter is adapter] for adapter in adapters]
                facts.append(_facts_of_written(made, plan.making.dtype, terms, bases))
        return total_facts(facts)


def _at_stack_multipliers(terms: Iterable[Term], factors: Mapping[int, float]) -> list[Term]:
    """Return the terms of a command without the factors of their adapters, which are by the identity of these."""
    return [term._replace(multiplier=term.multiplier / factors[id(term.adapter)]) for term in terms]


def _facts_of_written(
    made: MadeModule, dtype: str, terms: Sequence[Sequence[Term]], bases: "Sequence[WeightChanges | None]"
) -> MergeFacts:
    """Return the numbers of a written weight, and of the change that the terms of each adapter alone make of it."""
    rows, columns = matrix_shape(made.module.shape)
    up: Array = numpy.zeros((rows, 0))
    down: Array = numpy.zeros((0, columns))
    if made.up is not None and made.down is not None:
        up = decoded(dtype, made.up).reshape(made.up.shape).astype(numpy.float64) * made.module.times
        down = decoded(dtype, made.down).reshape(made.down.shape).astype(numpy.float64)
    inner, squares = [], []
    for adapter_terms, base in zip(terms, bases, strict=True):
        change = whole_change(adapter_terms, base) if adapter_terms else numpy.zeros((rows, columns))
        inner.append(float(((up.T @ change) * down).sum()))
        squares.append(float(numpy.square(change).sum()))
    energy = float(((up.T @ up) * (down @ down.T)).sum())
    return MergeFacts(tuple(inner), tuple(squares), energy, None, True)


def _facts_of_sum(inner: Square, factors: Square) -> MergeFacts:
    """Return the numbers of a sum of changes with the products `inner` (n, n), times the factors (n,)."""
    products = inner @ factors
    squares = tuple(inner.diagonal().tolist())
    return MergeFacts(tuple(products.tolist()), squares, float(factors @ products), None, True)


def _scaled(facts: MergeFacts, multiplier: float) -> MergeFacts:
    inner = tuple(multiplier * product for product in facts.inner)
    return facts._replace(inner=inner, energy=multiplier**2 * facts.energy)
