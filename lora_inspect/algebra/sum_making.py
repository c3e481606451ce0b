"""The making of a planned sum, and the account of it: ranks, bytes, and the errors of trim and rounding."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from lora_inspect import programs
from lora_inspect.algebra.combination import OFFERED, MeasuredModule, calibrated_making, made, made_by_rule, measured
from lora_inspect.algebra.core_merging import carried_shares, total_facts
from lora_inspect.algebra.linear.ranks import choose_ranks
from lora_inspect.algebra.output.made_metadata import input_records, made_metadata, made_record
from lora_inspect.algebra.output.numbered_names import check_numbered_layers, numbered_metadata
from lora_inspect.algebra.output.output_modules import FileError, MadeModule, ModuleAccount, file_error
from lora_inspect.algebra.output.streamed_file import bytes_behind
from lora_inspect.algebra.output.sum_metadata import conflict_notes, dropped_keys
from lora_inspect.algebra.plan import SumPlan
from lora_inspect.algebra.results import OfferedTrim, SumResult, WorstModule
from lora_inspect.converting.growth import Growth
from lora_inspect.converting.options import ConvertOptions
from lora_inspect.converting.result import ProgramCheck
from lora_inspect.errors import RefusedError
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.files.temp_files import remove_leftovers
from lora_inspect.programs.verdict import SAME, judge_each
from lora_inspect.progress import Progress, silent
from lora_inspect.reading.adapter import read_adapter
from lora_inspect.reading.identify import adapter_candidates, with_paths
from lora_inspect.schemes.cloneofsimo import CLONEOFSIMO
from lora_inspect.sentences import counted, listed, some

_OTHER_PROGRAM = "choose another program (nothing was written)"


class _Account:
    """The facts of the modules that were made so far, and the metadata that they give."""

    def __init__(self, plan: SumPlan, verb: str) -> None:
        self._plan, self._verb = plan, verb
        self.inputs = input_records(plan.inputs)
        self.modules: list[ModuleAccount] = []
        self._growth = Growth(plan.inputs.first.checkpoint.path, plan.inputs.bytes, plan.allows_growth)

    def of(self, making: Iterable[MadeModule]) -> Iterator[MadeModule]:
        """Pass the modules on as they are made; LoraInspectError if the output grows too much."""
        for one in making:
            self._growth.take(one.nbytes, f"the change of {one.key}")
            self.modules.append(one.account)
            yield one
        self.check()

    def check(self) -> None:
        """Raise LoraInspectError if nothing is left of any module, or if names that are numbers mean other layers."""
        if not any(one.rank or one.has_differences for one in self.modules):
            path, size = self._plan.inputs.first.checkpoint.path, self._plan.rule.size
            if size is not None and any(one.norm for one in self.modules):
                raise RefusedError(path, f"--size {size:,} has no room for a module", "give a larger size")
            if len(self._plan.inputs.adapters) == 1:
                raise RefusedError(path, "no module is left, as all its changes are zero", "name a trained adapter")
            raise RefusedError(
                path,
                "no module is left, as the changes cancel each other or are zero",
                "change a multiplier",
            )
        check_numbered_layers(self._plan.adapters, self._numbered_ranks())

    def metadata(self) -> dict[str, str]:
        """Return the metadata of an output that has these modules."""
        plan = self._plan
        errors = file_error(self.modules)
        record = made_record(self._verb, self.inputs, plan.rule, plan.making.dtype, errors, plan.recorded)
        ranks = {one.rank for one in self.modules if one.rank}
        alphas = set(map(plan.output.alpha_of, ranks))
        metadata = made_metadata(plan.adapters, record, ranks, alphas, plan.is_stabilised)
        return metadata | numbered_metadata(plan.adapters, self._numbered_ranks())

    def _numbered_ranks(self) -> dict[str, int]:
        """Return the rank of each layer whose name is a number: the highest one until its module is made."""
        plan = self._plan
        keys = [one.sum.module.name.key for one in plan.modules if one.sum.module.name.scheme == CLONEOFSIMO.name]
        if not keys:
            return {}
        ranks = {one.sum.module.name.key: rank for one, rank in zip(plan.modules, plan.most, strict=True)}
        ranks |= {one.key: one.rank for one in self.modules}
        return {plan.output.numbered_layer(key): ranks[key] for key in keys if ranks[key]}


def write_sum(plan: SumPlan, verb: str, force: bool = False, progress: Progress = silent) -> SumResult:
    """Make the planned output; `progress` counts modules, as many as the `steps` of the plan.

    Raises LoraInspectError, and leaves nothing, where a number is not finite or beyond the element type, where a size
    has no room, and where the output cannot be written.
    """
    started = time.perf_counter()
    output, rule, making = plan.output, plan.rule, plan.making
    leftovers = remove_leftovers(output.path)
    output.check(list(plan.inputs.files), force)
    account = _Account(plan, verb)
    if plan.is_calibrated_by_energy:
        making = calibrated_making(plan.modules, making, progress)
    if plan.is_measured:
        known = measured(plan.modules, making, progress)
        ranks = _ranks(plan, known, account)
        making = replace(making, common=output.one_rank(ranks))
        modules = made(known, ranks, making, progress)
        ranks = _filled(plan, ranks)
    else:
        ranks, modules = plan.most, made_by_rule(plan.modules, rule, making, progress)
    plans = output.plans(ranks, making)
    received = ProgramCheck(plan.program, output.path, ConvertOptions(), _OTHER_PROGRAM, True) if plan.program else None
    look = received or (lambda path: None)
    size = output.write(plans, account.of(modules), making, account.metadata, plan.inputs.files, force, look)
    offer = _offer(plan, account) if rule.is_exact else None
    lost = _programs_lost(plan, output.path) if len({one.rank for one in account.modules} - {0}) > 1 else ()
    errors = file_error(account.modules)
    found = _result(plan, verb, account, errors, size, time.perf_counter() - started)
    return replace(found, output=output.path, is_made=True, rounding=errors.rounding, offer=offer, notes=(
        *found.notes, *(received.remarks if received else ()), *lost, *leftovers
    ))  # fmt: skip


def plan_result(plan: SumPlan, verb: str, progress: Progress = silent) -> SumResult:
    """Return the account of the output that a plan would give; nothing is written, and nothing rounded."""
    started = time.perf_counter()
    account = _Account(plan, verb)
    # The header has room for the tensors at their largest ranks, and for the metadata before anything is made.
    metadata, making = account.metadata(), plan.making
    if plan.is_calibrated_by_energy:
        making = calibrated_making(plan.modules, making, progress)
    known = measured(plan.modules, making, progress)
    ranks = _ranks(plan, known, account)
    filled = _filled(plan, ranks)
    for one, rank, own in zip(known, filled, ranks, strict=True):
        is_kept = not one.spectrum.rounding or one.module.is_difference
        norm, lost = (0.0, 0.0) if is_kept else (one.spectrum.norm, float(one.spectrum.tails[own]))
        has_differences = bool(one.module.vectors) or one.module.is_difference
        account.modules.append(ModuleAccount(one.key, rank, has_differences, norm, lost, 0.0, facts=one.facts))
    account.check()
    at_most = plan.output.plans(filled if plan.is_measured else plan.most, plan.making)
    room = plan.output.size(at_most, metadata) - bytes_behind(at_most)
    size = room + bytes_behind(plan.output.plans(filled, plan.making))
    return _result(plan, verb, account, file_error(account.modules), size, time.perf_counter() - started)


def _programs_lost(plan: SumPlan, path: str) -> Iterator[str]:
    """Yield a sentence on the programs that read every input right, but not an output with several ranks and alphas."""
    known = list(programs.PROGRAMS.values())
    for adapter in plan.adapters:
        families = adapter_candidates(adapter)
        verdicts = judge_each(with_paths(adapter, families), families, known)
        known = [one.program for one in verdicts if one.verdict == SAME]
    if not known:
        return
    written = read_adapter(open_checkpoint(path))
    families = adapter_candidates(written)
    lost = [one for one in judge_each(with_paths(written, families), families, known) if one.verdict != SAME]
    if lost:
        titles = listed([one.program.title for one in lost])
        first = lost[0]
        yield (
            f"in {titles} the inputs are right, but the output may not be ({first.says}); for {first.program.title} "
            f"write it with --to {first.program.name}."
        )


def _filled(plan: SumPlan, ranks: Sequence[int]) -> list[int]:
    """Return the ranks, each filled up if the plan fills it."""
    if common := plan.output.one_rank(ranks):
        pairs = zip(plan.modules, ranks, strict=True)
        return [common if rank or module.is_single_expert else 0 for module, rank in pairs]
    if plan.making.initial is None:
        return list(ranks)
    return [most if one.shape else 0 for one, most in zip(plan.modules, plan.most, strict=True)]


def _ranks(plan: SumPlan, known: Sequence[MeasuredModule], account: _Account) -> list[int]:
    """Return the ranks of measured modules; LoraInspectError if a size has no room for the parts that stay whole."""
    metadata = account.metadata()

    def size(ranks: Sequence[int]) -> int:
        return plan.output.size(plan.output.plans(_filled(plan, ranks), plan.making), metadata)

    try:
        return choose_ranks([one.spectrum for one in known], plan.rule, size, [one.module.of_inputs for one in known])
    except ValueError:
        least = size([0] * len(known))
        raise RefusedError(
            plan.inputs.first.checkpoint.path,
            f"its header and all that has no rank take {least:,} bytes, which is above --size {plan.rule.size:,}",
            "give a larger size",
        ) from None


def _offer(plan: SumPlan, account: _Account) -> OfferedTrim | None:
    """Return the trim that keeps nearly all of an exact sum, where it makes the output smaller."""
    ranks = [one.offered for one in account.modules]
    if ranks == [one.rank for one in account.modules] or any(one.is_full for one in plan.modules):
        return None
    plans = plan.output.plans(ranks, plan.making)
    return OfferedTrim(OFFERED, max(ranks), plan.output.size(plans, account.metadata()))


def _result(plan: SumPlan, verb: str, account: _Account, errors: FileError, size: int, seconds: float) -> SumResult:
    written = [one for one in account.modules if one.rank or one.has_differences]
    no_room = "--size has no room for it" if plan.rule.size is not None else ""
    gone = {
        one.key: (one.norm and no_room) or "nothing is left of its change"
        for one in account.modules
        if one not in written
    }
    ranks = Counter(one.rank for one in written if one.rank)
    merge, facts = plan.making.merge, [one.facts for one in account.modules if one.facts]
    conflicts = conflict_notes(plan.adapters) if len(plan.adapters) > 1 else ()
    return SumResult(
        verb=verb,
        output=plan.output.path or None,
        is_made=False,
        inputs=tuple(
            {"path": one.adapter.checkpoint.path, "bytes": one.adapter.checkpoint.bytes, **record}
            for one, record in zip(plan.inputs.adapters, account.inputs, strict=True)
        ),
        modules=len(written),
        left_out={**plan.left_out, **gone},
        ranks=dict(sorted(ranks.items())),
        dtype=plan.making.dtype,
        bytes=size,
        energy=errors.energy,
        error=errors.error,
        rounding=None,
        worst=WorstModule(errors.worst_module, errors.worst) if errors.worst_module is not None else None,
        order_matters=plan.order_matters,
        seconds=seconds,
        dropped_metadata=dropped_keys(plan.adapters, plan.output.metadata_keys(account.metadata())),
        method=merge.to_record() if merge else None,
        shares=carried_shares(total_facts(facts)) if merge and facts else None,
        clipped=tuple(one.clip for one in facts if one.clip),
        notes=(*plan.notes, *_of_bases(account.modules), *conflicts),
    )


def _of_bases(made: Sequence[ModuleAccount]) -> Iterator[str]:
    """Yield a sentence on the modules in which another pair of bases would give another result."""
    modules = [one.key for one in made if one.facts and not one.facts.is_unique]
    if modules:
        yield (
            f"in {counted(len(modules), 'module')} ({some(modules, 2)}) the inputs have directions of one length, so "
            "that rounding decides the numbers that the method looks at."
        )
