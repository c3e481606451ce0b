"""The making of a planned sum, and the account of it: ranks, bytes, and what the trim and the rounding cost."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lora_inspect.algebra.combination import (
    OFFERED,
    FileError,
    MadeModule,
    MeasuredModule,
    ModuleAccount,
    file_error,
    made,
    made_by_rule,
    measured,
)
from lora_inspect.algebra.metadata import MetadataConflict, input_records, made_metadata, made_record
from lora_inspect.algebra.plan import SumPlan
from lora_inspect.algebra.ranks import choose_ranks
from lora_inspect.errors import RefusedError
from lora_inspect.files.temp_files import remove_leftovers
from lora_inspect.progress import Progress, silent
from lora_inspect.sentences import Result


@dataclass(frozen=True, slots=True)
class WorstModule:
    """The module with the largest relative error of its trim."""

    module: str
    error: float


@dataclass(frozen=True, slots=True)
class OfferedTrim:
    """The output that a rule would give: its largest rank and its bytes."""

    energy: float
    rank: int
    bytes: int


@dataclass(frozen=True, slots=True, repr=False)
class SumResult(Result):
    """The account of a sum, made or planned.

    `output` is None where nothing was named. `inputs` have the name, the SHA-256 and the settings of each file.
    `left_out` are reasons by module or key. `ranks` count modules by rank. `error` is the relative error of the trims,
    of all modules together, `energy` is 1 - error², and `worst` the module with the largest error. `rounding` is the
    relative error of rounding to `dtype`, None where nothing was written. `order_matters` are weights of the base that
    another order of the adapters would leave different. `offer` is the trim that an exact sum could have. `notes` are
    sentences on the inputs.
    """

    verb: str
    output: str | None
    is_made: bool
    inputs: tuple[dict[str, Any], ...]
    modules: int
    left_out: dict[str, str]
    ranks: dict[int, int]
    dtype: str
    bytes: int
    energy: float
    error: float
    rounding: float | None
    worst: WorstModule | None
    order_matters: tuple[str, ...]
    seconds: float
    notes: tuple[str, ...] = ()
    offer: OfferedTrim | None = None

    def to_dict(self) -> dict[str, Any]:
        """The record that `--json` prints."""
        return {
            "schema": f"lora-inspect/{self.verb}/1",
            "output": self.output,
            "dry_run": not self.is_made,
            "inputs": [{"path": one["path"], **{k: one[k] for k in ("sha256", "settings")}} for one in self.inputs],
            "modules": self.modules,
            "left_out": self.left_out,
            "ranks": {str(rank): count for rank, count in self.ranks.items()},
            "dtype": self.dtype,
            "bytes": self.bytes,
            "energy": self.energy,
            "error": self.error,
            "rounding": self.rounding,
            "worst": self.worst and {"module": self.worst.module, "error": self.worst.error},
            "order_matters": list(self.order_matters),
            "seconds": self.seconds,
        }


class _Account:
    """The facts of the modules that were made so far, and the metadata that they give."""

    def __init__(self, plan: SumPlan, verb: str) -> None:
        self._plan, self._verb = plan, verb
        self.inputs = input_records(plan.inputs)
        self.modules: list[ModuleAccount] = []

    def of(self, making: Iterable[MadeModule]) -> Iterator[MadeModule]:
        """Pass the modules on as they are made."""
        for one in making:
            self.modules.append(one.account)
            yield one
        self.check()

    def check(self) -> None:
        """Raises LoraInspectError where nothing is left of any module."""
        if any(one.rank or one.has_differences for one in self.modules):
            return
        size = self._plan.rule.size
        if size is not None and any(one.norm for one in self.modules):
            raise RefusedError(
                self._plan.inputs.first.checkpoint.path,
                f"no rank of any module has room in --size {size:,}",
                "give a larger size",
            )
        raise RefusedError(
            self._plan.inputs.first.checkpoint.path,
            "no module is left, as the changes cancel each other or are zero",
            "change a multiplier",
        )

    def metadata(self) -> dict[str, str]:
        """The metadata of an output that has these modules."""
        plan = self._plan
        record = made_record(self._verb, self.inputs, plan.rule, plan.making.dtype, file_error(self.modules))
        ranks = {one.rank for one in self.modules if one.rank}
        return made_metadata(plan.adapters, record, ranks, set(map(plan.output.alpha_of, ranks)), plan.is_stabilised)


def write_sum(plan: SumPlan, verb: str, force: bool = False, progress: Progress = silent) -> SumResult:
    """Makes the planned output; `progress` counts modules, as many as the `steps` of the plan.

    Raises LoraInspectError, and leaves nothing, where a number is not finite or beyond the element type, where a size
    has no room, and where the output cannot be written.
    """
    started = time.perf_counter()
    output, rule, making = plan.output, plan.rule, plan.making
    leftovers = remove_leftovers(output.path)
    output.check(list(plan.inputs.files), force)
    account = _Account(plan, verb)
    if rule.size is None:
        ranks, modules = plan.most, made_by_rule(plan.modules, rule, making, progress)
    else:
        known = measured(plan.modules, making, progress)
        ranks = _ranks(plan, known, account)
        modules = made(known, ranks, making, progress)
    plans = output.plans(ranks, making)
    size = output.write(plans, account.of(modules), making, account.metadata, plan.inputs.files, force)
    offer = _offer(plan, account) if rule.is_exact else None
    errors = file_error(account.modules)
    found = _result(plan, verb, account, errors, size, time.perf_counter() - started)
    return replace(found, output=output.path, is_made=True, rounding=errors.rounding, offer=offer, notes=(
        *found.notes, *leftovers
    ))  # fmt: skip


def plan_result(plan: SumPlan, verb: str, progress: Progress = silent) -> SumResult:
    """The account of the output that a plan would give; nothing is written, and nothing rounded."""
    started = time.perf_counter()
    account = _Account(plan, verb)
    # The room of the header is that for the metadata before anything is made.
    metadata = account.metadata()
    known = measured(plan.modules, plan.making, progress)
    ranks = _ranks(plan, known, account)
    filled = _filled(plan, ranks)
    for one, rank, own in zip(known, filled, ranks, strict=True):
        is_kept = not one.spectrum.rounding or one.module.is_difference
        norm, lost = (0.0, 0.0) if is_kept else (one.spectrum.norm, float(one.spectrum.tails[own]))
        has_differences = bool(one.module.vectors) or one.module.is_difference
        account.modules.append(ModuleAccount(one.key, rank, has_differences, norm, lost, 0.0))
    account.check()
    most = plan.output.plans(plan.most if plan.rule.size is None else filled, plan.making)
    size = plan.output.size(plan.output.plans(filled, plan.making), metadata, most)
    return _result(plan, verb, account, file_error(account.modules), size, time.perf_counter() - started)


def _filled(plan: SumPlan, ranks: Sequence[int]) -> list[int]:
    """The ranks with those that are filled up."""
    if plan.making.initial is None:
        return list(ranks)
    return [most if one.shape else 0 for one, most in zip(plan.modules, plan.most, strict=True)]


def _ranks(plan: SumPlan, known: Sequence[MeasuredModule], account: _Account) -> list[int]:
    """The ranks of measured modules; LoraInspectError where a size has no room for what cannot be trimmed."""
    metadata = account.metadata()

    def size(ranks: Sequence[int]) -> int:
        return plan.output.size(plan.output.plans(ranks, plan.making), metadata)

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
    """The trim that keeps nearly all of an exact sum, where it makes the output smaller."""
    ranks = [one.offered for one in account.modules]
    if ranks == [one.rank for one in account.modules] or any(one.is_full for one in plan.modules):
        return None
    plans = plan.output.plans(ranks, plan.making)
    return OfferedTrim(OFFERED, max(ranks), plan.output.size(plans, account.metadata()))


def _result(plan: SumPlan, verb: str, account: _Account, errors: FileError, size: int, seconds: float) -> SumResult:
    written = [one for one in account.modules if one.rank or one.has_differences]
    gone = {one.key: "nothing is left of its change" for one in account.modules if one not in written}
    ranks = Counter(one.rank for one in written if one.rank)
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
        notes=(*plan.notes, *(MetadataConflict(plan.adapters).notes if len(plan.adapters) > 1 else ())),
    )
