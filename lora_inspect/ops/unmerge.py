"""Removal of the adapters from a merged model, as far as the original numbers are proved."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from lora_inspect.errors import AmbiguousError, RefusedError
from lora_inspect.files.base_folder import copy_side_files
from lora_inspect.files.checkpoint import Checkpoint, open_checkpoint
from lora_inspect.files.input_file import Identity, InputFile
from lora_inspect.files.outputs import check_output, check_replaceable, file_output, folder_output, new_file, new_folder
from lora_inspect.files.safetensors.writer import TensorPlan, Writer, copy_bytes, in_file_order
from lora_inspect.files.temp_files import remove_leftovers
from lora_inspect.maths.torch_threads import load_torch
from lora_inspect.merging.fold_chain import Fold
from lora_inspect.merging.options import UnmergeRequest
from lora_inspect.merging.plan import MergePlan, plan_merge
from lora_inspect.merging.record import (
    RESIZED,
    SEED,
    base_record,
    last_record,
    recorded_adapters,
    recorded_cast,
    recorded_options,
)
from lora_inspect.progress import Progress, silent
from lora_inspect.reading.metadata.merge_record import MergedBase, hashes_of, undone_metadata
from lora_inspect.reading.model.settings import Settings
from lora_inspect.sentences import Result, some

if TYPE_CHECKING:
    from lora_inspect.merging.unmerged_weights import Account

_SHOWN = 3
_NOTHING_ASKED = UnmergeRequest()


@dataclass(frozen=True, slots=True)
class UnmergePlan:
    """The plan of a removal: the merged model, and the merge to take back.

    `merge` is the plan of the merge, with the merged model instead of the base if that is not at hand; else `base` is
    the base. `options` are those of the removal. `is_drawn` is true if the merge rounded stochastically. `folded_in`
    are the recorded element types of its computations.
    """

    merged: Checkpoint
    merge: MergePlan
    options: UnmergeRequest
    base: Checkpoint | None = None
    is_drawn: bool = False
    folded_in: Mapping[str, str] = field(default_factory=dict)

    @property
    def folds(self) -> dict[str, list[Fold]]:
        """The folds that changed each weight."""
        at_work = {name: [fold for fold in folds if fold.multiplier] for name, folds in self.merge.folds.items()}
        return {name: folds for name, folds in at_work.items() if folds}

    @property
    def inputs(self) -> dict[str, Identity]:
        """Every file that is read, by path."""
        return self.merge.inputs | self.merged.inputs

    @property
    def bytes(self) -> int:
        """The bytes that `unmerge` reports to its progress: all tensors, and the base's files if it is given."""
        return self.merge.bytes + (self.base.bytes if self.base else 0)


@dataclass(frozen=True, slots=True, repr=False)
class UnmergeResult(Result):
    """The account of a restored model.

    `entries` counts the numbers of all weights that the merge changed. `proved` of them are as they were in the base:
    no other number of the type could have become the merged one. `unproved` counts the others by weight, with the
    largest possible distance of each from the base. With the base at hand all are its own; `unchecked` are then the
    tensors for which nothing shows that they became those of the merged model.
    """

    output: str
    adapters: list[str]
    weights: int
    tensors_copied: int
    entries: int
    proved: int
    unproved: dict[str, dict[str, float]]
    unchecked: list[str]
    seconds: float
    bytes: int
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the record that `unmerge --json` prints."""
        return {
            "schema": "lora-inspect/unmerge/1",
            "output": self.output,
            "undone": list(self.adapters),
            "weights": self.weights,
            "tensors_copied": self.tensors_copied,
            "entries": self.entries,
            "proved": self.proved,
            "unproved": self.unproved,
            "unchecked": self.unchecked,
            "seconds": self.seconds,
            "bytes": self.bytes,
        }


def plan_unmerge(
    merged_path: str, adapters: Sequence[tuple[str, Settings]], asked: UnmergeRequest = _NOTHING_ASKED
) -> UnmergePlan:
    """Plan the removal from the record of the merge.

    Raises LoraInspectError if the adapters, or the base, are not the recorded ones, or if a change cannot be removed
    without the base.
    """
    merged = open_checkpoint(merged_path)
    record = last_record(merged)
    options = recorded_options(record, merged_path)
    named = recorded_adapters(record, merged_path, adapters)
    known = record.base
    assert known is not None  # last_record raises where there is none
    is_drawn = SEED in record.options
    if asked.base is not None:
        base = open_checkpoint(asked.base)
        _check_base(base, known, merged)
        return UnmergePlan(merged, plan_merge(asked.base, named, options), asked, base, is_drawn, record.folded_in)
    if cast := recorded_cast(record):
        raise RefusedError(
            merged_path,
            f"the merge cast weights of {known.file} to {cast}, which lost their earlier values",
            "name it with --base",
        )
    if resized := record.options.get(RESIZED):
        raise RefusedError(
            merged_path,
            f"{resized[0]} got the rows of an adapter in the place of its own, which are lost",
            f"name {known.file} with --base",
        )
    if is_drawn:
        raise AmbiguousError(
            merged_path,
            "it was rounded stochastically, so each number may come from several earlier ones",
            f"name {known.file} with --base",
        )
    as_stored = replace(options, dtype=None, changed_dtype=None)
    plan = UnmergePlan(merged, plan_merge(merged_path, named, as_stored), asked, folded_in=record.folded_in)
    _check_possible(plan, known)
    return plan


def unmerge(plan: UnmergePlan, output: str, force: bool = False, progress: Progress = silent) -> UnmergeResult:
    """Write the model without the adapters: a file for a file, a folder with the same names for any other.

    Raises LoraInspectError, and leaves nothing, if the merged model contradicts its record, or if numbers are ambiguous
    and not allowed to be.
    """
    started = time.perf_counter()
    output = unmerge_output(plan, output)
    leftovers = remove_leftovers(output)
    check_unmerge_output(plan, output, force)
    load_torch()
    from lora_inspect.merging.unmerged_weights import AgainstBase, FromMerged

    beyond_rules = {*plan.merge.storage.rewritten, *plan.merge.resized, *(plan.folds if plan.is_drawn else ())}
    restored = FromMerged(plan.folds, plan.folded_in)
    held = AgainstBase(plan.merged, plan.folds, beyond_rules, plan.folded_in)
    source = plan.merge.base
    if plan.base:
        held.check(source.tensors.values(), progress)

    def write(file: str, target: str, force: bool = False) -> None:
        inputs = plan.inputs if target == output else None
        if plan.base:
            with InputFile(file, source.inputs[file]) as opened, new_file(target, inputs, force) as descriptor:
                copy_bytes(opened, 0, source.inputs[file].bytes, descriptor, 0, progress)
            return
        infos = {info.name: info for info in source.tensors.values() if info.file == file}
        plans = in_file_order(TensorPlan(info.name, info.dtype, info.shape) for info in infos.values())
        metadata = undone_metadata(source.file_metadata[file], plan.options.allow_ambiguous)
        with Writer(target, plans, metadata, inputs, force) as writer:
            progress(0)
            restored.write(writer, [infos[one.name] for one in plans], progress)
            if target == output:
                _check_accepted(restored.accounts, plan)

    if source.root is None:
        write(source.files[0], output, force)
    else:
        with new_folder(output, plan.inputs, force) as folder:
            for file in source.files:
                write(file, os.path.join(folder, os.path.basename(file)))
            _check_accepted(restored.accounts, plan)
            total = sum(info.nbytes for info in source.tensors.values())
            copy_side_files(source, plan.merge.side_files, folder, total, progress)
    return _result(plan, output, restored.accounts, held.unchecked, started, leftovers)


def planned_unmerge(plan: UnmergePlan, output: str | None) -> dict[str, Any]:
    """Return the planned removal, as `--dry-run --json` prints it."""
    return {
        "schema": "lora-inspect/unmerge-plan/1",
        "dry_run": True,
        "output": output,
        "undone": [adapter.checkpoint.path for adapter, _ in plan.merge.adapters],
        "weights": len(plan.folds),
        "tensors_copied": len(plan.merge.base.tensors) - len(plan.folds),
    }


def unmerge_output(plan: UnmergePlan, named: str) -> str:
    """Return the output's path for the user's `named` one; LoraInspectError if it can be none."""
    source = plan.merge.base
    if source.root is None:
        return file_output(named, source.name, plan.inputs)
    return folder_output(named, f"{source.path} is a folder or a part of a sharded set", plan.inputs)


def check_unmerge_output(plan: UnmergePlan, output: str, force: bool) -> None:
    """Raise LoraInspectError if `unmerge` would refuse to write to the path `output`."""
    source = plan.merge.base
    check_output(output, plan.inputs, force, folder=source.root is not None)
    if source.root is not None:
        weights = [os.path.basename(file) for file in source.files]
        check_replaceable(output, [*weights, *plan.merge.side_files.copied], plan.merge.side_files.folders)


def _check_base(base: Checkpoint, known: MergedBase, merged: Checkpoint) -> None:
    """Raise LoraInspectError if a base is not the recorded one."""
    found = base_record(base, with_hash=bool(known.sha256))
    same = found["bytes"] == known.bytes and found["header"] == known.header
    if not same or (known.sha256 and sorted(hashes_of(found["sha256"]).values()) != sorted(known.sha256.values())):
        what = "header or size" if not same else "content"
        raise RefusedError(
            base.path, f"its {what} is not that of {known.file}, the base of {merged.path}", "name that base"
        )


def _check_possible(plan: UnmergePlan, known: MergedBase) -> None:
    """Raise LoraInspectError if a change cannot be taken out, or if the weight is codes."""
    from lora_inspect.merging.unmerged_weights import is_plain, why_not

    for name, folds in plan.folds.items():
        info = plan.merged.tensors[name]
        if not is_plain(info) or name in plan.merge.storage.coded:
            raise RefusedError(
                plan.merged.path,
                f"{name} is stored as {info.dtype} codes, and their earlier values are unknown",
                f"name {known.file} with --base",
            )
        if info.dtype not in known.dtypes:
            raise RefusedError(
                plan.merged.path,
                f"{name} is {info.dtype}, but no tensor of {known.file} was, so it was cast since",
                f"fetch the merged model again, or name {known.file} with --base",
            )
        for fold in folds:
            if why := why_not(fold):
                raise RefusedError(
                    fold.adapter.checkpoint.path,
                    f"unmerge cannot take {fold.contribution.module.key} out of {name}, as {why}",
                    f"name {known.file} with --base",
                )


def _check_accepted(accounts: "dict[str, Account]", plan: UnmergePlan) -> None:
    doubtful = [name for name, account in accounts.items() if account.proved < account.entries]
    if plan.options.allow_ambiguous or not doubtful:
        return
    entries = sum(account.entries for account in accounts.values())
    left = entries - sum(account.proved for account in accounts.values())
    raise AmbiguousError(
        plan.merged.path,
        f"{left:,} of {entries:,} changed numbers ({left / entries:.2%}) may have had other values before "
        f"({some(doubtful, _SHOWN)})",
        "restore all with --base, or write the nearest ones with --allow-ambiguous",
    )


def _result(
    plan: UnmergePlan,
    output: str,
    accounts: "dict[str, Account]",
    unchecked: list[str],
    started: float,
    notes: Sequence[str],
) -> UnmergeResult:
    entries = sum(plan.merge.base.tensors[name].numel for name in plan.folds)
    return UnmergeResult(
        output=output,
        adapters=[adapter.checkpoint.path for adapter, _ in plan.merge.adapters],
        weights=len(plan.folds),
        tensors_copied=len(plan.merge.base.tensors) - len(plan.folds),
        entries=entries,
        proved=entries if plan.base else sum(account.proved for account in accounts.values()),
        unproved={
            name: {"entries": account.entries - account.proved, "off_by": account.off_by}
            for name, account in accounts.items()
            if account.proved < account.entries
        },
        unchecked=unchecked,
        seconds=round(time.perf_counter() - started, 3),
        bytes=sum(info.nbytes for info in plan.merge.base.tensors.values()),
        notes=tuple(notes),
    )
