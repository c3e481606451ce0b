"""The plan of a sum of adapters, made from headers: its modules with their form, and the output.

`combine`, `resize` and `average` make their outputs by such a plan. All that is not in the sum is in `left_out`, with
the reason.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_inspect import programs
from lora_inspect.algebra.alignment import MultipliedAdapter, OutputModule, Term, aligned
from lora_inspect.algebra.changes import check_sizes, has_open_kernel, matrix_shape, needs_base, shape_of, thin_rank
from lora_inspect.algebra.core_merging import MergeRule
from lora_inspect.algebra.experts import widths
from lora_inspect.algebra.inputs import Inputs, base_changes, check_experts, without_biases
from lora_inspect.algebra.linear.ranks import RankRule
from lora_inspect.algebra.options import ENERGY, AverageRequest, CombineRequest, ResizeRequest, recorded_options
from lora_inspect.algebra.output.adapter_output import AdapterOutput
from lora_inspect.algebra.output.output_modules import Making, PlannedModule, widest
from lora_inspect.algebra.output.spelling import times_counted
from lora_inspect.algebra.tied_heads import REPEATED, split_repeated_heads
from lora_inspect.algorithms.record import WEIGHT
from lora_inspect.converting.options import LORA, ConvertOptions, ConvertRequest, convert_options
from lora_inspect.converting.target.target_names import architecture_of
from lora_inspect.converting.target.target_program import for_program
from lora_inspect.errors import RefusedError
from lora_inspect.files.hashes import are_same_tensors
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.merging.plan import check_dora_rule
from lora_inspect.programs.record import Program
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.model.evidence import RSLORA_FLAG
from lora_inspect.reading.model.settings import Settings
from lora_inspect.schemes.gguf import GGUF

if TYPE_CHECKING:
    from lora_inspect.algebra.changes import WeightChanges

SumRequest = CombineRequest | ResizeRequest | AverageRequest


@dataclass(frozen=True, slots=True)
class SumPlan:
    """The planned output of a sum.

    `program` is the program for the output, if one was named. `left_out` are the reasons by module or key.
    `order_matters` names weights of the base that another order of the adapters would leave different.
    """

    inputs: Inputs
    program: Program | None
    allows_growth: bool
    modules: tuple[PlannedModule, ...]
    output: AdapterOutput
    rule: RankRule
    making: Making
    is_stabilised: bool
    recorded: dict[str, Any]
    left_out: dict[str, str]
    order_matters: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def adapters(self) -> list[Adapter]:
        """The adapters in the order of the arguments."""
        return [one.adapter for one in self.inputs.adapters]

    @property
    def steps(self) -> int:
        """The number of modules in the progress of the making; some outputs look at each several times."""
        passes = (self.is_measured, self.is_calibrated_by_energy)
        return len(self.modules) * (1 + sum(passes))

    @property
    def is_calibrated_by_energy(self) -> bool:
        """True if one multiplier of all modules has to be known before the first is made."""
        return self.making.merge is not None and self.making.merge.calibrate == ENERGY

    @property
    def is_measured(self) -> bool:
        """True if the rank of each module depends on all modules: for a size, and for programs with one rank."""
        return self.rule.size is not None or self.output.is_uniform

    @property
    def most(self) -> list[int]:
        """The largest rank that each module may have in the output."""
        found = [self.rule.most(one.rank, one.of_inputs) for one in self.modules]
        if self.making.initial is None:
            return found
        return [min(self.making.initial, *matrix_shape(one.shape)) if one.shape else 0 for one in self.modules]


def plan_sum(
    inputs: Inputs,
    output: str | None,
    request: SumRequest,
    rule: RankRule,
    is_resized: bool = False,
    weights: Sequence[float] | None = None,
) -> SumPlan:
    """Return the plan of the sum of the inputs; `is_resized` keeps RS-LoRA and fills ranks up to that of the rule.

    With `weights`, one of each input, it is their weighted sum: each input changes the base as if it were the only one.

    Raises LoraInspectError for adapters of different models, for changes that need a base without one, for names that
    cannot have a change, and if no module is left.
    """
    if isinstance(request, (CombineRequest, AverageRequest)) and not request.allow_mixed:
        check_experts([one.adapter for one in inputs.adapters])
    check_dora_rule(request.dora_multiplier, [one.adapter for one in inputs.adapters])
    left_out = dict(_left_out(inputs, request))
    if isinstance(request, CombineRequest) and request.drop_biases:
        inputs, biases = without_biases(inputs)
        left_out |= biases
    used = [
        MultipliedAdapter(one.adapter, {key: weight * m for key, m in one.multipliers.items() if m})
        for one, weight in zip(inputs.adapters, weights or [1.0] * len(inputs.adapters), strict=True)
    ]
    options = _target_options(request, inputs.first)
    aligned_modules, heads = split_repeated_heads(aligned(used, options))
    left_out |= {module.module.name.key: REPEATED for module in heads}
    modules, passed = _without_saved(aligned_modules, inputs)
    merge = _merge_rule(request, inputs)
    recorded = recorded_options(request)
    recorded |= {"method": merge.to_record()} if merge else {}
    recorded |= {"weights": list(weights)} if weights else {}
    base = base_changes(inputs, modules, request, weights)
    is_stabilised = is_resized and request.to is None and inputs.first.rslora.value is True
    planned = [_planned(module, base, rule) for module in modules]
    planned = [one for one in planned if one.shape or one.vectors]
    if not planned and passed:
        raise RefusedError(inputs.first.checkpoint.path, "it has only weights that are saved whole", "merge it instead")
    if not planned:
        raise RefusedError(inputs.first.checkpoint.path, "no module is left", "give a multiplier other than 0")
    if merge:
        _check_cores(planned, merge)
    making = Making(
        dtype=request.dtype or widest(_factors(planned)),
        differences=request.dtype or widest(_others(planned)),
        base=base,
        initial=rule.rank if is_resized else None,
        merge=merge,
    )
    flags = [key for key in inputs.first.flags if key.endswith(RSLORA_FLAG)] if is_stabilised else []
    passed += [inputs.first.checkpoint.tensors[key] for key in flags]
    passed += _others_of_one(inputs)
    checkpoint = inputs.first.checkpoint
    program = programs.by_name(options.program) if options.program else None
    hashed = checkpoint.metadata if len(inputs.adapters) == 1 else ()
    place = AdapterOutput(
        inputs.first,
        planned,
        output,
        list(inputs.files),
        checkpoint.name,
        is_stabilised,
        passed,
        hashed,
        is_asked=request.to is not None,
        architecture=_architecture(planned, inputs.first, options),
        target=for_program(inputs.first, inputs.first, options),
    )
    return SumPlan(
        inputs=inputs,
        program=program,
        allows_growth=request.allow_growth,
        modules=tuple(planned),
        output=place,
        rule=rule,
        making=making,
        is_stabilised=is_stabilised,
        recorded=recorded,
        left_out=left_out,
        order_matters=tuple(base.order_matters()) if base else (),
        notes=(*inputs.notes, *_partial(planned, inputs), *(base.notes if base else ())),
    )


def _merge_rule(request: SumRequest, inputs: Inputs) -> MergeRule | None:
    if not isinstance(request, CombineRequest):
        return None
    return MergeRule.of(request, [one.adapter for one in inputs.adapters])


def _check_cores(planned: Sequence[PlannedModule], merge: MergeRule) -> None:
    """Raise LoraInspectError for a change that is no product of thin factors, so that a method has no core of it."""
    for one in planned:
        for term in one.sum.terms if one.is_full else ():
            contribution = term.contribution
            if thin_rank(contribution) is None:
                title = "DoRA" if contribution.magnitude else contribution.algorithm.title
                raise RefusedError(
                    term.adapter.checkpoint.path,
                    f"{contribution.module.key} is {title}, no product of thin factors, of which {merge.method.title} "
                    "has no core",
                    "convert it to LoRA of a rank first, or leave it out with --exclude",
                )


def _target_options(request: SumRequest, first: Adapter) -> ConvertOptions:
    """Return the options of a conversion to the names of the output: the sum is plain LoRA, whatever the inputs are."""
    asked = ConvertRequest(
        to=request.to,
        algorithm=LORA,
        base=request.base,
        architecture=request.architecture,
        model_config=request.model_config,
    )
    return convert_options(asked, Settings(), first.checkpoint.path) if request.to else ConvertOptions()


def _architecture(planned: Sequence[PlannedModule], first: Adapter, options: ConvertOptions) -> str:
    """Return llama.cpp's name of the model, for an output of its names; empty for any other one."""
    is_gguf = any(one.sum.module.name.scheme == GGUF.name for one in planned)
    return architecture_of(first, options) if is_gguf else ""


def _left_out(inputs: Inputs, request: SumRequest) -> Iterator[tuple[str, str]]:
    """Yield the modules and the keys that are in no sum, each with the reason."""
    chosen = " and ".join(
        option for option, given in (("--include", request.include), ("--exclude", request.exclude)) if given
    )
    kept = {key for _, own in inputs.adapters for key, multiplier in own.items() if multiplier}
    several = len(inputs.adapters) > 1
    for (adapter, own), excluded in zip(inputs.adapters, inputs.excluded, strict=True):
        yield from ((key, f"left out by {chosen}") for key in excluded if key not in kept)
        zero = (key for key, multiplier in own.items() if not multiplier and key not in kept)
        yield from ((key, "its multiplier is 0") for key in zero)
        for contribution in adapter.contributions:
            idle = [role for role in contribution.algorithm.idle if role in contribution.factors]
            yield from ((contribution.factors[role].name, "its program does not compute with it") for role in idle)
        if several:
            yield from ((key, "an embedding or a copy, which is no change") for key in adapter.other_keys)


def _others_of_one(inputs: Inputs) -> list[TensorInfo]:
    """Return the tensors outside the modules of the one input; of several, none stays."""
    if len(inputs.adapters) > 1:
        return []
    return [inputs.first.checkpoint.tensors[key] for key in inputs.first.other_keys]


def _without_saved(modules: Sequence[OutputModule], inputs: Inputs) -> tuple[list[OutputModule], list[TensorInfo]]:
    """Return the modules without the whole tensors that all inputs share, and those tensors."""
    found: list[OutputModule] = []
    passed: list[TensorInfo] = []
    for module in modules:
        saved = [term for term in module.terms if term.contribution.algorithm.replaces]
        others = [term for term in module.terms if not term.contribution.algorithm.replaces]
        own = _same(saved, module, inputs) if saved else []
        passed += own
        found.append(module._replace(terms=tuple(others if own else module.terms)))
    return found, passed


def _same(saved: Sequence[Term], module: OutputModule, inputs: Inputs) -> list[TensorInfo]:
    """Return the first input's tensors if all inputs have equal bytes, at multipliers of 1 or adding up to 1."""
    by_adapter: dict[int, dict[tuple[str, str], TensorInfo]] = defaultdict(dict)
    for term in saved:
        contribution = term.contribution
        tensors = {(contribution.algorithm.parameter, role): info for role, info in contribution.operands.items()}
        by_adapter[id(term.adapter)] |= tensors
    first = by_adapter[id(saved[0].adapter)]
    same = len(by_adapter) == len(inputs.adapters) and all(
        own.keys() == first.keys() and all(are_same_tensors(own[role], first[role]) for role in own)
        for own in by_adapter.values()
    )
    multipliers = {id(term.adapter): term.multiplier for term in saved}.values()
    is_one = all(multiplier == 1 for multiplier in multipliers) or math.isclose(sum(multipliers), 1)
    return list(first.values()) if same and is_one and not saved[0].moves and not module.module.respelled else []


def _planned(module: OutputModule, base: "WeightChanges | None", rule: RankRule) -> PlannedModule:
    """Return the plan of a module; LoraInspectError if its terms are of different layers, or cannot be added."""
    vectors: dict[str, list[Term]] = defaultdict(list)
    of_weight: list[Term] = []
    for term in module.terms:
        algorithm = term.contribution.algorithm
        is_vector = algorithm.parameter != WEIGHT or len(term.contribution.shape) < 2
        if is_vector and term.contribution.is_optional and not (base and base.has(term)):
            continue  # the layer has no bias
        (vectors[algorithm.parameter] if is_vector else of_weight).append(term)
    others = {parameter: tuple(terms) for parameter, terms in vectors.items()}
    shapes = {parameter: _vector_shape(terms, base) for parameter, terms in others.items()}
    if of_weight and WEIGHT in others:  # that of a norm, and that of a layer
        check_sizes([of_weight[0], others[WEIGHT][0]], [shape_of(of_weight[0]), shapes[WEIGHT]])
    found = PlannedModule(module._replace(terms=tuple(of_weight)), (), False, False, 0, 0, others, shapes)
    return _with_weight(found, of_weight, base, rule) if of_weight else found


def _vector_shape(terms: Sequence[Term], base: "WeightChanges | None") -> tuple[int, ...]:
    of_base = base is not None and any(needs_base(term.contribution) for term in terms)
    shapes = [base.shape(term) if base and of_base else shape_of(term) for term in terms]
    check_sizes(terms, shapes)
    return shapes[0]


def _with_weight(
    one: PlannedModule, terms: Sequence[Term], base: "WeightChanges | None", rule: RankRule
) -> PlannedModule:
    if terms[0].contribution.algorithm.experts:
        return _with_experts(one, terms, rule)
    of_base = base is not None and any(needs_base(term.contribution) for term in terms)
    shapes = [base.shape(term) if base and of_base else shape_of(term) for term in terms]
    check_sizes(terms, shapes)
    shape = max(shapes, key=len)
    if base and has_open_kernel(terms, with_any=True):
        shape = base.shape(terms[0])
    ranks = [thin_rank(term.contribution) for term in terms]
    known = [rank for rank in ranks if rank is not None]
    is_full = of_base or len(known) < len(ranks)
    most = min(matrix_shape(shape))
    own: dict[int, int] = defaultdict(int)
    for term, rank in zip(terms, ranks, strict=True):
        own[id(term.adapter)] += term.contribution.rank or rank or 0
    of_inputs = min(most, max(own.values()))
    return one._replace(
        shape=shape,
        is_full=is_full,
        is_difference=is_full and (rule.is_exact or (rule.of_inputs and not of_inputs)),
        rank=most if is_full else min(most, sum(known)),
        of_inputs=of_inputs,
        times=times_counted(one.sum.module, terms[0].contribution),
    )


def _with_experts(one: PlannedModule, terms: Sequence[Term], rule: RankRule) -> PlannedModule:
    """Return the module of a layer of experts; its factors combine with no other kind of change."""
    other = next((term for term in terms if not term.contribution.algorithm.experts or term.moves), None)
    if other:
        raise RefusedError(
            other.adapter.checkpoint.path,
            f"{other.contribution.module.key} is {other.contribution.algorithm.title}, but in "
            f"{terms[0].adapter.checkpoint.path} it is {terms[0].contribution.algorithm.title}",
            "take the experts apart with convert --layout single-experts",
        )
    first = terms[0].contribution
    shape = widths(first)
    ranks = [term.contribution.known_rank for term in terms]
    return one._replace(
        shape=shape,
        rank=min(*shape, sum(ranks)),
        of_inputs=min(*shape, max(ranks)),
        experts=first.algorithm.experts,
    )


def _partial(planned: Sequence[PlannedModule], inputs: Inputs) -> Iterator[str]:
    """Yield a sentence on the modules that some inputs lack, if there are any.

    An input with modules left out by a multiplier of 0 is ignored: the user wants them missing.
    """
    whole = {id(one.adapter) for one in inputs.adapters if all(one.multipliers.values())}
    terms = [[*one.sum.terms, *(term for own in one.vectors.values() for term in own)] for one in planned]
    some = [one for one, own in zip(planned, terms, strict=True) if whole - {id(term.adapter) for term in own}]
    if some:
        key = some[0].sum.module.name.key
        yield f"{len(some)} of {len(planned)} modules are in only some of the inputs ({key})."


def _factors(planned: Sequence[PlannedModule]) -> set[str]:
    """Return the element types of the factors, or of all that the weights' changes are made of where there are none."""
    terms = [term for one in planned if one.shape for term in one.sum.terms]
    return {info.dtype for term in terms for info in term.contribution.operands.values()}


def _others(planned: Sequence[PlannedModule]) -> set[str]:
    """Return the element types of all that becomes a difference."""
    terms = [term for one in planned for own in one.vectors.values() for term in own]
    terms += [term for one in planned if one.is_full for term in one.sum.terms]
    return {info.dtype for term in terms for info in term.contribution.operands.values()}
