"""A merge into a sharded base by several jobs, or by the processes that torchrun started.

Each makes some of the shards; the last job, or the first process, finishes.
"""

import json
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

from lora_inspect.errors import CouldNotWorkError, LoraInspectError, NotFoundError, WouldOverwriteError
from lora_inspect.files.temp_files import without_slash
from lora_inspect.merging.fold import OutputFiles
from lora_inspect.merging.jobs.processes import Processes
from lora_inspect.merging.jobs.shards import SharedMerge, bytes_of, difference, files_of_share
from lora_inspect.merging.options import ProcessShare
from lora_inspect.merging.output_path import check_merge_output, merge_output, shared_output
from lora_inspect.merging.plan import MergePlan
from lora_inspect.merging.result import MergeResult
from lora_inspect.progress import Progress, silent
from lora_inspect.sentences import Result

__all__ = [
    "ProcessShare",
    "ShardResult",
    "finish_bytes",
    "finish_merge",
    "merge_shard",
    "shard_bytes",
    "shard_record",
    "shared_output",
]


@dataclass(frozen=True, slots=True, repr=False)
class ShardResult(Result):
    """The result of one job: the shards that it `made`, and those of its part that were already there (`held`).

    `left` are the shards of all jobs that are missing in the folder `parts`. `merged` is the result of the merge if
    this job finished it. If no shard is left and there is no result, another job finishes it.
    """

    output: str
    share: ProcessShare
    parts: str
    made: tuple[str, ...]
    held: tuple[str, ...]
    left: tuple[str, ...]
    merged: MergeResult | None
    notes: tuple[str, ...]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the record that `merge --shard --json` prints: that of the merge, or null, and the job's."""
        return {
            "schema": "lora-inspect/merge-shard/1",
            "output": self.output,
            "shard": str(self.share),
            "parts": self.parts,
            "made": list(self.made),
            "held": list(self.held),
            "left": list(self.left),
            "merged": self.merged and self.merged.to_dict(),
            "seconds": self.seconds,
        }


def shard_record(plan: MergePlan, share: ProcessShare | None) -> dict[str, Any]:
    """Return a dry run's record of the shards of one job, or of all jobs without a `share`."""
    files = files_of_share(plan, share) if share else plan.base.files
    return {"shard": share and str(share), "shards": [os.path.basename(file) for file in files]}


def shard_bytes(plan: MergePlan, share: ProcessShare) -> int:
    """Return the bytes that `merge_shard` reports to its progress."""
    return sum(bytes_of(plan, file) for file in files_of_share(plan, share))


def finish_bytes(plan: MergePlan) -> int:
    """Return the bytes that the end of a merge reports to its progress: all shards are read, and the rest is copied."""
    return plan.side_files.bytes + OutputFiles(plan).weight_bytes


# Makes a progress function from the total of bytes.
Watch = Callable[[int], AbstractContextManager[Progress]]


def merge_shard(
    plan: MergePlan,
    named: str,
    share: ProcessShare,
    force: bool = False,
    progress: Progress = silent,
    watch_end: Watch | None = None,
) -> ShardResult:
    """Make the missing shards of one job, and the output if no other shard is missing then.

    `watch_end` makes the progress function for the end of the merge, if it comes to that. Raises LoraInspectError as
    `merge` does, or if a present shard is of another merge; complete shards stay in OUT.parts.
    """
    output = _free_output(plan, named, force, share.of)
    shared = SharedMerge(plan, output)
    check_merge_output(plan, output, force)  # another run of this job may have finished since
    shared.claim()
    names = [os.path.basename(file) for file in files_of_share(plan, share)]
    with shared.providing() as provide:
        held = [name for name in names if provide(name, progress)]
    left = shared.left()
    merged = None
    if not left:
        with watch_end(finish_bytes(plan)) if watch_end else nullcontext(silent) as ending:
            merged = shared.finish(force, ending)
    return ShardResult(
        output=output,
        share=share,
        parts=shared.parts.path,
        made=tuple(name for name in names if name not in held),
        held=tuple(held),
        left=tuple(left),
        merged=merged,
        notes=merged.notes if merged else (*plan.notes, *shared.leftovers),
        seconds=round(shared.seconds, 3),
    )


def _free_output(plan: MergePlan, named: str, force: bool, jobs: int = 1) -> str:
    """Return the output of the jobs, as `shared_output` does.

    An existing output may be of this merge, if a process died while it removed the parts. Then it removes them before
    it raises the error that the output exists.
    """
    try:
        return shared_output(plan, named, force, jobs)
    except WouldOverwriteError:
        with suppress(LoraInspectError):  # parts of another merge are none of our business
            shared = SharedMerge(plan, without_slash(merge_output(plan, named)))
            if shared.is_done():
                shared.parts.remove()
            shared.parts.remove_empty()
        raise


def finish_merge(plan: MergePlan, named: str, force: bool = False, progress: Progress = silent) -> MergeResult:
    """Assemble the output from the shards of all jobs; `progress` counts up to `finish_bytes`.

    Raises LoraInspectError, and leaves the shards as they are, if one of them is missing, and as `merge` does.
    """
    output = _free_output(plan, named, force)
    shared = SharedMerge(plan, output)
    if not shared.parts.is_there():
        raise NotFoundError(shared.parts.path, "there is no such folder", "make the shards with --shard first")
    merged = shared.finish(force, progress)
    if merged is None:
        raise CouldNotWorkError(output, "another process is finishing it", "wait for that process")
    return merged


def merge_by_ranks(ranks: Processes, plan: MergePlan, named: str, force: bool, watch: Watch) -> MergeResult | None:
    """Make the output together; return the result in the first process, None in the others.

    `watch` makes a progress function from the total of bytes; it counts the bytes of all processes. If one process
    fails, the first raises LoraInspectError and the others raise Elsewhere. There is no output then, and complete
    shards stay in OUT.parts for the next run.
    """

    shared = ranks.together(lambda: SharedMerge(plan, shared_output(plan, named, force)))
    # Before the claim, which would call the other process another merge.
    ranks.equal(json.dumps(shared.made_of), lambda first: _other_plan(json.loads(first), shared.made_of))
    ranks.together(shared.claim)
    files = files_of_share(plan, ProcessShare(ranks.rank.number + 1, ranks.rank.of))
    with watch(sum(bytes_of(plan, file) for file in plan.base.files)) as of_all:
        progress = ranks.progress(of_all)

        def make() -> None:
            with shared.providing() as provide:
                for file in files:
                    provide(os.path.basename(file), progress)

        ranks.together(make, of_all)

    def finish() -> MergeResult | None:
        merged = shared.finish(force) if ranks.rank.is_first else None
        if ranks.rank.is_first and merged is None:
            raise CouldNotWorkError(shared.parts.output, "another process is finishing it", "wait for that process")
        return merged

    return ranks.together(finish)


def _other_plan(first: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """Return the sentence for a process with another plan than the first one."""
    said = difference(first, own)
    return f"its plan differs from that of the first process: {said}; let all machines see the same files."
