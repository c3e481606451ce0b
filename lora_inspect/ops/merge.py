"""Folds adapters into a base, one weight after the other, streamed from disk to disk."""

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lora_inspect.files.base_folder import copy_side_files
from lora_inspect.files.input_file import Identity
from lora_inspect.files.output_names import file_output, folder_output
from lora_inspect.files.outputs import check_output, check_replaceable, new_folder
from lora_inspect.files.partial import remove_leftovers
from lora_inspect.files.writer import rewrite_tensor
from lora_inspect.matching.orientation import Orientation, in_record
from lora_inspect.maths.torch_threads import load_torch
from lora_inspect.merging.folded_weights import Folding, Written, write_folded
from lora_inspect.merging.keeping import Keeping
from lora_inspect.merging.kept import KeptAdapter, check_kept, notes_on
from lora_inspect.merging.kept import in_record as in_kept_record
from lora_inspect.merging.options import MergeOptions
from lora_inspect.merging.plan import MergePlan, plan_merge
from lora_inspect.merging.provenance import recorded
from lora_inspect.progress import Progress, silent
from lora_inspect.reading.metadata import merged_metadata

# A merge is planned and then made: what calls it finds both here.
__all__ = [
    "MergeOptions",
    "MergePlan",
    "MergeResult",
    "check_merge_output",
    "merge",
    "merge_output",
    "plan_merge",
    "planned_record",
]


@dataclass(frozen=True, slots=True)
class MergeResult:
    """What a merge did. `dtype_counts` are tensors of the output by element type.

    `decoded` are the weights that are codes in the base and floats in the output, `recoded` those that are changed and
    codes of the same format in both. `dropped` are the tensors, metadata keys and part of a config that said what
    those codes mean.

    `files_copied` and `left_behind` are what lies beside the weights of a folder, by paths relative to it.
    `unmatched` are keys without a target that were left out, `left_out` counts the modules of components that were not
    asked for, `excluded` are by adapter those that were chosen away, and `embeddings` are keys that change no weight.
    `orientations` say by weight how the base stores it, `order_matters` are the weights that another order of the
    adapters would leave different, and `dora_multiplier` is what a multiplier that is neither 0 nor 1 did to DoRA.
    `notes` are sentences on what was said without need, on what may surprise, and on what other runs have left beside
    the output. `kept` says how much of each adapter the output keeps, and `seed` by which one changed weights were
    rounded, None for the nearest number.
    """

    output: str
    modules_merged: int
    tensors_copied: int
    multipliers: dict[str, float | dict[str, float]]
    dtype_counts: dict[str, int]
    decoded: tuple[str, ...]
    recoded: tuple[str, ...]
    dropped: tuple[str, ...]
    unmatched: tuple[str, ...]
    files_copied: tuple[str, ...]
    left_behind: tuple[str, ...]
    seconds: float
    bytes: int
    orientations: dict[str, Orientation] = field(default_factory=dict, repr=False)
    left_out: dict[str, int] = field(default_factory=dict)
    excluded: dict[str, tuple[str, ...]] = field(default_factory=dict, repr=False)
    embeddings: tuple[str, ...] = ()
    order_matters: tuple[str, ...] = field(default=(), repr=False)
    dora_multiplier: str | None = None
    notes: tuple[str, ...] = ()
    kept: tuple[KeptAdapter, ...] = field(default=(), repr=False)
    seed: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """The record that `merge --json` prints."""
        record: dict[str, Any] = {
            "output": self.output,
            "modules_merged": self.modules_merged,
            "tensors_copied": self.tensors_copied,
            "multipliers": self.multipliers,
            "dtype_counts": self.dtype_counts,
            "decoded": list(self.decoded),
            "recoded": list(self.recoded),
            "dropped": list(self.dropped),
            "unmatched": list(self.unmatched),
            "files_copied": list(self.files_copied),
            "left_behind": list(self.left_behind),
            "seconds": self.seconds,
            "bytes": self.bytes,
        }
        if self.dora_multiplier:
            record["dora_multiplier"] = self.dora_multiplier
        return record | {
            "orientation": in_record(self.orientations),
            "left_out": self.left_out,
            "excluded": {path: list(keys) for path, keys in self.excluded.items()},
            "embeddings": list(self.embeddings),
            "order_matters": list(self.order_matters),
            **in_kept_record(self.kept, self.seed),
        }


def planned_record(plan: MergePlan, output: str | None) -> dict[str, Any]:
    """The record of a merge that is planned and not made, to `output` where that is known."""
    return {
        "output": output,
        "modules_merged": plan.modules,
        "tensors_copied": plan.tensors_copied,
        "multipliers": plan.multipliers,
        "decoded": list(plan.storage.decoded),
        "recoded": list(plan.storage.recoded),
        "dropped": plan.storage.said,
        "unmatched": list(plan.unmatched),
        "files_copied": list(plan.side_files.copied),
        "left_behind": list(plan.side_files.left_behind),
        "targets": {name: [fold.contribution.module.key for fold in folds] for name, folds in plan.folds.items()},
        "dry_run": True,
        "orientation": in_record(plan.orientations),
        "left_out": plan.left_out,
        "excluded": {path: list(keys) for path, keys in plan.excluded.items()},
        "embeddings": plan.embeddings,
        "order_matters": plan.order_matters,
    }


def merge(plan: MergePlan, output: str, force: bool = False, progress: Progress = silent) -> MergeResult:
    """Writes the merged base: a file for a single-file base, a folder with the same names for any other.

    Where `output` is a folder, a file goes into it under the name of the base. `progress` is told the bytes of each
    tensor that is done. Raises LoraInspectError, and leaves nothing, when a result is not finite, when the output keeps
    too little of an adapter, or when it cannot be written.
    """
    started = time.perf_counter()
    output = merge_output(plan, output)
    leftovers = remove_leftovers(output)
    check_merge_output(plan, output, force)
    record = recorded(plan, progress, beside=load_torch)
    seed = plan.options.seed
    keeping = Keeping([adapter.checkpoint.path for adapter, _ in plan.adapters])
    folding = Folding(plan.folds, plan.storage, plan.options.dora_rule, seed, keeping)
    kept: list[KeptAdapter] = []

    def accept() -> None:
        kept.extend(keeping.adapters())
        if not plan.options.accept_loss:
            check_kept(kept, seed)

    if plan.base.root is not None:
        with new_folder(output, plan.inputs, force) as folder:
            counts = _write_folder(plan, folder, folding, record, progress, accept)
    else:
        counts, _ = _write_file(plan, plan.base.files[0], output, folding, record, progress, plan.inputs, force, accept)
    return MergeResult(
        output=output,
        modules_merged=plan.modules,
        tensors_copied=plan.tensors_copied,
        multipliers=plan.multipliers,
        dtype_counts=dict(counts),
        decoded=tuple(plan.storage.decoded),
        recoded=tuple(plan.storage.recoded),
        dropped=tuple(plan.storage.said),
        unmatched=plan.unmatched,
        files_copied=tuple(plan.side_files.copied),
        left_behind=plan.side_files.left_behind,
        seconds=round(time.perf_counter() - started, 3),
        bytes=_size(output),
        orientations=plan.orientations,
        left_out=plan.left_out,
        excluded=plan.excluded,
        embeddings=tuple(plan.embeddings),
        order_matters=tuple(plan.order_matters),
        dora_multiplier=", ".join(sorted(plan.dora_rules)) or None,
        notes=(*plan.notes, *leftovers, *notes_on(kept, seed)),
        kept=tuple(kept),
        seed=seed,
    )


def merge_output(plan: MergePlan, named: str) -> str:
    """The path that `merge` writes for what the user `named`; raises LoraInspectError where that is no output of it."""
    if plan.base.root is None:
        return file_output(named, plan.base.name, plan.inputs)
    what = "a folder" if os.path.isdir(plan.base.path) else "a part of a sharded set"
    return folder_output(named, f"{plan.base.path} is {what}", plan.inputs)


def check_merge_output(plan: MergePlan, output: str, force: bool) -> None:
    """Raises LoraInspectError where `merge` would refuse to write to the path `output`."""
    is_folder = plan.base.root is not None
    check_output(output, plan.inputs, force, folder=is_folder)
    if is_folder:
        weights = [os.path.basename(file) for file in plan.base.files]
        check_replaceable(output, [*weights, *plan.side_files.copied], plan.side_files.folders)


def _write_folder(
    plan: MergePlan, folder: str, folding: Folding, record: str, progress: Progress, accept: Callable[[], None]
) -> Counter[str]:
    counts: Counter[str] = Counter()
    late: dict[str, bytes] = {}
    written = {file: os.path.join(folder, os.path.basename(file)) for file in plan.base.files}
    for file, output in written.items():
        own = _write_file(plan, file, output, folding, record, progress)
        counts += own.counts
        late |= own.late
    accept()
    for name, content in late.items():
        rewrite_tensor(written[plan.base.tensors[name].file], name, content)
    weight_bytes = sum(folding.output(info).nbytes for info in plan.written)
    dropped, rewritten = plan.storage.dropped, plan.storage.side_files
    copy_side_files(plan.base, plan.side_files, folder, weight_bytes, progress, dropped, rewritten, plan.renamed)
    return counts


def _write_file(
    plan: MergePlan,
    file: str,
    output: str,
    folding: Folding,
    record: str,
    progress: Progress,
    inputs: Mapping[str, Identity] | None = None,
    force: bool = False,
    accept: Callable[[], None] = lambda: None,
) -> Written:
    infos = [info for info in plan.written if info.file == file]
    described = plan.storage.metadata.get(file, plan.base.file_metadata[file])
    metadata = merged_metadata(described, record)
    return write_folded(output, infos, folding, metadata, progress, inputs, force, accept)


def _size(path: str) -> int:
    if os.path.isfile(path):
        return os.path.getsize(path)
    return sum(os.path.getsize(os.path.join(parent, name)) for parent, _, names in os.walk(path) for name in names)
