"""`lora-inspect merge` in several jobs: `--shard` and `--finish`, or the processes of torchrun.

With torchrun, each process merges its shards and the first one prints for all.
"""

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from lora_inspect.cli import terminal
from lora_inspect.cli.complete_outputs import set_complete_outputs
from lora_inspect.cli.progress_bar import in_bytes, progress_bar
from lora_inspect.cli.terminal import failure, sentence_of, show_defect
from lora_inspect.files.shard_staging import PartsFolder
from lora_inspect.maths.torch_threads import load_torch
from lora_inspect.merging.jobs.processes import Elsewhere, all_ranks
from lora_inspect.merging.plan import MergePlan
from lora_inspect.merging.result import MergeResult, planned_record
from lora_inspect.ops.merge_jobs import (
    ProcessShare,
    ShardResult,
    finish_bytes,
    finish_merge,
    merge_by_ranks,
    merge_shard,
    shard_bytes,
    shard_record,
    shared_output,
)
from lora_inspect.progress import Progress
from lora_inspect.sentences import counted, some
from lora_inspect.torchrun import Rank

# What prints the record of a merge, made or planned.
Tell = Callable[[dict[str, Any], MergeResult | None], None]
_SHOWN = 3


def run_shard(
    plan: MergePlan,
    output: str | None,
    share: ProcessShare | None,
    force: bool,
    dry_run: bool,
    as_json: bool,
    tell: Tell,
) -> None:
    """Make the shards of one job, or without a `share` the whole output, and print the result."""
    if dry_run:
        if output is not None:
            output = shared_output(plan, output, force, share.of if share else 1)
        tell({**planned_record(plan, output), **shard_record(plan, share)}, None)
        return
    assert output is not None  # the option asks for it where there is no dry run
    if share is None:
        with progress_bar("Finishing", finish_bytes(plan), in_bytes) as progress:
            merged = finish_merge(plan, output, force, progress)
        set_complete_outputs([merged.output])
        note_beyond(plan.notes, merged.notes)
        tell(merged.to_dict(), merged)
        return
    with ExitStack() as shown:
        progress = shown.enter_context(progress_bar(f"Merging {share}", shard_bytes(plan, share), in_bytes))

        def end(size: int) -> AbstractContextManager[Progress]:
            shown.close()
            return progress_bar("Finishing", size, in_bytes)

        result = merge_shard(plan, output, share, force, progress, end)
    parts = PartsFolder(result.output)
    set_complete_outputs([result.output] if result.merged else map(parts.file, result.made))
    note_beyond(plan.notes, result.notes)
    if as_json:
        terminal.json_text(result.to_dict())
        return
    _print(result)
    if result.merged:
        tell(result.merged.to_dict(), result.merged)


def note_beyond(told: Sequence[str], notes: Sequence[str]) -> None:
    """Print the notes of a result except the first ones, which were `told` with the plan."""
    for note in notes[len(told) :]:
        terminal.note(note)


def _print(result: ShardResult) -> None:
    there = f", {len(result.held)} existed already" if result.held else ""
    terminal.line(f"job {result.share}: made {counted(len(result.made), 'shard')} in {result.seconds:.1f} s{there}")
    if result.left:
        terminal.line(
            f"{result.parts}: {counted(len(result.left), 'shard')} left for other jobs ({some(result.left, _SHOWN)}); "
            f"the job that makes the last one writes {result.output}"
        )
    elif not result.merged:
        terminal.line(f"all shards are there, and another job writes {result.output}")


def run_processes(
    rank: Rank,
    planned: Callable[[], MergePlan],
    output: str,
    force: bool,
    tell: Callable[[MergePlan, MergeResult], None],
    as_json: bool,
) -> None:
    """Merge as one of several processes.

    If one of them fails, the first one prints it and all end in the same way.
    """
    load_torch()
    with all_ranks(rank, _sentence_of) as ranks:
        try:
            plan = ranks.together(planned)
            note_beyond([], plan.notes)
            merged = merge_by_ranks(ranks, plan, output, force, lambda size: progress_bar("Merging", size, in_bytes))
            if merged:
                set_complete_outputs([merged.output])
                note_beyond(plan.notes, merged.notes)
                tell(plan, merged)
        except Elsewhere as ended:
            ranks.reported()
            sys.exit(ended.status)
        except Exception as error:  # the other processes wait to hear of it, whatever it is
            show_defect(error)
            failed = failure(None, error)
            if as_json:
                terminal.json_failure(failed)
            terminal.error(failed.says)
            ranks.reported()
            sys.exit(failed.status)


def _sentence_of(error: Exception) -> str:
    show_defect(error)
    return sentence_of(error)
