"""Folds adapters into a sharded base by several jobs, each of which makes some of the shards; the last one finishes."""

import os
import time
from dataclasses import dataclass
from typing import Any

from lora_inspect.errors import LoraInspectError
from lora_inspect.files.partial import remove_leftovers, without_slash
from lora_inspect.listing import counted
from lora_inspect.merging.dealing import Share, taken
from lora_inspect.merging.output_place import check_merge_output, merge_output
from lora_inspect.merging.plan import MergePlan
from lora_inspect.merging.result import MergeResult, result_of
from lora_inspect.merging.shared_merge import SharedMerge, bytes_of
from lora_inspect.progress import Progress, silent
from lora_inspect.stores.address import is_remote

__all__ = ["ShardResult", "Share", "finish_merge", "merge_shard", "shard_bytes", "shard_output", "shard_record"]


@dataclass(frozen=True, slots=True)
class ShardResult:
    """What one job did: the shards that it `made`, and those of its share that were `held`, as they were there already.

    `left` are the shards of all jobs that are not there yet, in the folder `parts`. `merged` is the result of the
    merge, where this job finished it: where none is left and there is none, another one does so.
    """

    output: str
    share: Share
    parts: str
    made: tuple[str, ...]
    held: tuple[str, ...]
    left: tuple[str, ...]
    merged: MergeResult | None
    notes: tuple[str, ...]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The record that `merge --shard --json` prints: that of the merge, or null, beside what the job did."""
        return {
            "output": self.output,
            "shard": str(self.share),
            "parts": self.parts,
            "made": list(self.made),
            "held": list(self.held),
            "left": list(self.left),
            "merged": self.merged and self.merged.to_dict(),
            "seconds": self.seconds,
        }


def shard_output(plan: MergePlan, named: str, force: bool, share: Share | None = None) -> str:
    """The folder that all jobs together write for what the user `named`.

    Raises LoraInspectError where a base cannot be shared by so many, and where `merge` would not write there.
    """
    base = plan.base
    if is_remote(named):
        raise LoraInspectError(
            f"{named}: jobs know of each other by files beside the output, which has to be in a folder that all of "
            "them see; name one, and copy it to the store when it is there."
        )
    if base.root is None:
        raise LoraInspectError(
            f"{base.path}: it is one file, and shards are what jobs share; merge it without --shard."
        )
    if share and share.of > len(base.files):
        raise LoraInspectError(
            f"{base.path}: it has {counted(len(base.files), 'shard')}, and no more jobs than that can share it; give "
            f"--shard I/{len(base.files)}."
        )
    output = without_slash(merge_output(plan, named))
    if os.path.realpath(output).startswith(os.path.join(os.path.realpath(base.root), "")):
        raise LoraInspectError(
            f"{output}: it is in the folder of the base, of which each job takes all for a part of the base; choose a "
            "place outside."
        )
    check_merge_output(plan, output, force)
    return output


def shard_record(plan: MergePlan, share: Share | None) -> dict[str, Any]:
    """What a dry run says beside the plan: the shards of one job, or of all where there is no `share`."""
    files = taken(share, _sizes(plan)) if share else plan.base.files
    return {"shard": share and str(share), "shards": [os.path.basename(file) for file in files]}


def shard_bytes(plan: MergePlan, share: Share) -> int:
    """What `merge_shard` tells its progress of."""
    return sum(bytes_of(plan, file) for file in taken(share, _sizes(plan)))


def merge_shard(
    plan: MergePlan, named: str, share: Share, force: bool = False, progress: Progress = silent
) -> ShardResult:
    """Makes the shards of one job that are not there yet, and the output where no other shard is missing then.

    Raises LoraInspectError, and leaves what is whole in OUT.parts, as `merge` does, and where a shard that is there is
    of another merge.
    """
    started = time.perf_counter()
    output = shard_output(plan, named, force, share)
    leftovers = remove_leftovers(output)
    shared = SharedMerge(plan, output)
    shared.parts.make()
    names = [os.path.basename(file) for file in taken(share, _sizes(plan))]
    held = [name for name in names if shared.provide(name, progress)]
    left = shared.left()
    merged = None if left else _finished(plan, output, shared, force, leftovers, started)
    return ShardResult(
        output=output,
        share=share,
        parts=shared.parts.path,
        made=tuple(name for name in names if name not in held),
        held=tuple(held),
        left=tuple(left),
        merged=merged,
        notes=merged.notes if merged else (*plan.notes, *leftovers),
        seconds=round(time.perf_counter() - started, 3),
    )


def finish_merge(plan: MergePlan, named: str, force: bool = False, progress: Progress = silent) -> MergeResult:
    """Makes the output of the shards of all jobs; `progress` is told the bytes of what lies beside the weights.

    Raises LoraInspectError, and leaves the shards as they are, where one of them is missing, and as `merge` does.
    """
    started = time.perf_counter()
    output = shard_output(plan, named, force)
    leftovers = remove_leftovers(output)
    shared = SharedMerge(plan, output)
    if not shared.parts.is_there():
        raise LoraInspectError(f"{shared.parts.path}: there is no such folder; make the shards with --shard first.")
    merged = _finished(plan, output, shared, force, leftovers, started, progress)
    if merged is None:
        raise LoraInspectError(f"{output}: another process finishes it just now; wait for that.")
    return merged


def _finished(
    plan: MergePlan,
    output: str,
    shared: SharedMerge,
    force: bool,
    leftovers: tuple[str, ...],
    started: float,
    progress: Progress = silent,
) -> MergeResult | None:
    done = shared.finish(force, progress)
    if done is None:
        return None
    notes = (*leftovers, *done.notes)
    return result_of(plan, output, done.counts, done.kept, notes, time.perf_counter() - started)


def _sizes(plan: MergePlan) -> dict[str, int]:
    return {file: plan.base.inputs[file].bytes for file in plan.base.files}
