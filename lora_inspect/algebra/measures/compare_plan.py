"""The plan of a comparison: the adapters with their modules, and the numbers that come of it."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_inspect.algebra.alignment import OutputModule, aligned_in_parts
from lora_inspect.algebra.changes import needs_base, thin_rank
from lora_inspect.algebra.inputs import Inputs, base_changes, check_experts, read_inputs
from lora_inspect.algebra.measures.comparison import (
    Comparison,
    block_of,
    by_parameter,
    compared,
    in_order_of_blocks,
    total,
)
from lora_inspect.algebra.measures.stack_advice import Stack, stack_of
from lora_inspect.algebra.measures.stack_commands import CombineWords, StackedAdapter, StackTrials
from lora_inspect.algebra.options import CombineRequest, CompareRequest
from lora_inspect.converting.standard_fix import output_ending
from lora_inspect.errors import RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.input_file import check_unchanged
from lora_inspect.merging.plan import check_dora_rule
from lora_inspect.progress import Passes, Progress
from lora_inspect.reading.model.settings import Settings

if TYPE_CHECKING:
    from lora_inspect.algebra.changes import WeightChanges

_NO_ADAPTER = "compare models with `lora-inspect verify`, or write their difference with `lora-inspect extract`"


@dataclass(frozen=True, slots=True)
class ComparePlan:
    """The adapters, and their modules in the finest layout; `bases` give the changes that depend on weights."""

    inputs: Inputs
    modules: list[OutputModule]
    request: CompareRequest
    bases: "Sequence[WeightChanges | None] | None" = None

    @property
    def notes(self) -> list[str]:
        """Sentences on settings and on files that were named twice."""
        return self.inputs.notes


def planned(named: Sequence[tuple[str, Settings]], request: CompareRequest) -> ComparePlan:
    """Read the headers of adapters, and plan their comparison.

    Raises LoraInspectError for a file that is no adapter, for adapters of different families, and for a module with a
    change that cannot be compared.
    """
    inputs = read_inputs(named, request, no_adapter=_NO_ADAPTER)
    check_dora_rule(request.dora_multiplier, [one.adapter for one in inputs.adapters])
    modules = by_parameter(aligned_in_parts(inputs.adapters))
    together = base_changes(inputs, modules, request, for_output=False)
    bases = [base_changes(one, modules, request, for_output=False) for one in inputs.each()] if together else None
    if not modules:
        raise RefusedError("no module is left to compare; name fewer of them with --exclude.")
    return ComparePlan(inputs, modules, request, bases)


class PlanComparison(NamedTuple):
    """The comparison of each module of a plan, of all and of each block, the advice on the stack, and its words."""

    modules: list[Comparison]
    whole: Comparison
    blocks: dict[str, Comparison]
    stack: Stack
    words: CombineWords


def compared_by_plan(plan: ComparePlan, progress: Progress, passes: Passes) -> PlanComparison:
    """Compare the adapters; `progress` receives 1 for each module.

    The commands that are tried before one is recommended may take further `passes` over the modules. Raises
    LoraInspectError for a factor that is not finite, if shapes disagree, and for a file that has changed.
    """
    adapters = [one.adapter for one in plan.inputs.adapters]
    found = compared(plan.modules, adapters, progress, plan.bases, as_stack=True)
    blocks: dict[str, list[Comparison]] = defaultdict(list)
    for module, one in zip(plan.modules, found, strict=True):
        blocks[block_of(module.module)].append(one)
    whole = total(found, len(adapters))
    of_blocks = {name: total(blocks[name], len(adapters)) for name in in_order_of_blocks(blocks)}
    words = _words(plan)
    stack = stack_of(whole, of_blocks, words, StackTrials(plan.inputs, words, whole.inner, passes))
    check_unchanged(plan.inputs.files)
    return PlanComparison(found, whole, of_blocks, stack, words)


# The options that a command for the same adapters has as well, and those of them that go with a base.
_OF_MODULES = ("include", "exclude", "allow_partial_dora")
_OF_BASE = ("base", "dora_multiplier", "transposed")
# The rank of a change that depends on a base, where no factor tells one.
_RANK = 16


def _words(plan: ComparePlan) -> CombineWords:
    """Return the words of a command that combines the adapters of a plan.

    The paths carry the settings from any source. A change that depends on a base gets a rank, as programs read few full
    differences.
    """
    adapters = [one.adapter for one in plan.inputs.adapters]
    at_work = [term for module in plan.modules for term in module.terms if term.multiplier]
    matrices = [term.contribution for term in at_work if len(term.contribution.shape) > 1]
    chosen, of_base = ({name: getattr(plan.request, name) for name in names} for names in (_OF_MODULES, _OF_BASE))
    try:
        check_experts(adapters)
    except RefusedError:
        chosen["allow_mixed"] = True
    rank = sum(max((own.rank or 0 for own in adapter.contributions), default=0) for adapter in adapters)
    dependent = {id(term.adapter) for term in at_work if needs_base(term.contribution)}
    return CombineWords(
        adapters=tuple(
            StackedAdapter(
                adapter.checkpoint.path, adapter.settings, output_ending(adapter, None), id(adapter) in dependent
            )
            for adapter in adapters
        ),
        modules=CombineRequest(**chosen),
        of_base={**of_base, "rank": rank or _RANK},
        takes_methods=all(one.algorithm.experts or thin_rank(one) is not None for one in matrices),
    )
