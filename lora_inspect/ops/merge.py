"""The merge of adapters into a base, one weight after the other, streamed from disk to disk."""

import os
import time
from collections import Counter
from collections.abc import Callable

from lora_inspect.files.delivery import delivered
from lora_inspect.files.outputs import new_folder
from lora_inspect.files.pending_output import PendingOutput
from lora_inspect.files.safetensors.writer import rewrite_tensor
from lora_inspect.files.shard_staging import PartsFolder
from lora_inspect.files.temp_files import remove_leftovers
from lora_inspect.maths.torch_threads import load_torch
from lora_inspect.merging.fold import OutputFiles
from lora_inspect.merging.options import MergeOptions
from lora_inspect.merging.output_path import check_merge_output, merge_bytes, merge_output
from lora_inspect.merging.plan import MergePlan, plan_merge
from lora_inspect.merging.record import recorded
from lora_inspect.merging.result import MergeResult, planned_record, result_of
from lora_inspect.merging.retention import AdapterRetention, Retention, check_kept, kept_of
from lora_inspect.progress import PartialProgress, Progress, silent

# A merge is planned and then made: what calls it finds both here.
__all__ = [
    "MergeOptions",
    "MergePlan",
    "MergeResult",
    "check_merge_output",
    "merge",
    "merge_bytes",
    "merge_output",
    "plan_merge",
    "planned_record",
]


def merge(plan: MergePlan, output: str, force: bool = False, progress: Progress = silent) -> MergeResult:
    """Write the merged base: a file for a single-file base, a folder with the same names for any other.

    If `output` is a folder, a file goes into it under the name of the base. `progress` counts up to `merge_bytes`.
    Raises LoraInspectError, and leaves nothing, if a result is not finite, if the output keeps too little of an
    adapter, or if it cannot be written.
    """
    started = time.perf_counter()
    output = merge_output(plan, output)
    leftovers = (*remove_leftovers(output), *PartsFolder(output).notes())
    check_merge_output(plan, output, force)
    record = recorded(plan, progress, beside=load_torch)
    paths = [adapter.checkpoint.path for adapter, _ in plan.adapters]
    keeping = Retention(paths)
    files = OutputFiles(plan, keeping)
    kept: list[AdapterRetention] = []

    def accept() -> None:
        kept.extend(kept_of(paths, keeping.observed()))
        if not plan.options.allow_loss:
            check_kept(kept, plan.options.seed)

    sent = PartialProgress(progress, merge_bytes(plan, output) - plan.bytes)
    sent.work = files.weight_bytes + plan.side_files.bytes
    with delivered(output, plan.inputs, force, sent.done) as delivery:
        if plan.base.root is not None:
            with new_folder(delivery.path, plan.inputs, force) as folder:
                counts = _write_folder(plan, folder, files, record, progress, accept, delivery)
        else:
            counts = _write_file(plan, files, record, progress, force, accept, delivery)
    sent.finish()
    return result_of(plan, output, counts, kept, leftovers, time.perf_counter() - started, delivery.bytes)


def _write_file(
    plan: MergePlan,
    files: OutputFiles,
    record: str,
    progress: Progress,
    force: bool,
    accept: Callable[[], None],
    delivery: PendingOutput,
) -> Counter[str]:
    file, output, borrowing = plan.base.files[0], delivery.path, delivery.borrowing()
    counts, *_ = files.write(file, output, record, progress, plan.inputs, force, accept, borrowing)
    delivery.send(output, borrowing)
    return counts


def _write_folder(
    plan: MergePlan,
    folder: str,
    files: OutputFiles,
    record: str,
    progress: Progress,
    accept: Callable[[], None],
    delivery: PendingOutput,
) -> Counter[str]:
    counts: Counter[str] = Counter()
    late: dict[str, bytes] = {}
    written = {file: os.path.join(folder, os.path.basename(file)) for file in plan.base.files}
    awaited = plan.storage.awaited
    for file, output in written.items():
        borrowing = None if file in awaited else delivery.borrowing()
        own = files.write(file, output, record, progress, borrowing=borrowing)
        counts += own.counts
        late |= own.late
        if file not in awaited:
            delivery.send(output, borrowing)
    accept()
    for name, content in late.items():
        rewrite_tensor(written[plan.base.tensors[name].file], name, content)
    files.copy_side_files(folder, progress)
    return counts
