"""`torchrun -m lora_inspect merge`: what each of its processes does, and what the first one prints for all."""

import sys
from collections.abc import Callable

from lora_inspect.cli import terminal
from lora_inspect.cli.failures import sentence_of, show_defect
from lora_inspect.cli.merge_jobs import note_beyond
from lora_inspect.cli.progress_bar import in_bytes, progress_bar
from lora_inspect.maths.torch_threads import load_torch
from lora_inspect.merging.plan import MergePlan
from lora_inspect.merging.processes import Elsewhere, all_ranks
from lora_inspect.merging.result import MergeResult
from lora_inspect.ops.merge_jobs import merge_by_ranks
from lora_inspect.torchrun import Rank


def run(
    rank: Rank,
    planned: Callable[[], MergePlan],
    output: str,
    force: bool,
    tell: Callable[[MergePlan, MergeResult], None],
) -> None:
    """Merges as one of several processes; where one of them fails, the first one says so and all end with 1."""
    load_torch()
    with all_ranks(rank, _sentence_of) as ranks:
        try:
            plan = ranks.together(planned)
            note_beyond([], plan.notes)
            merged = merge_by_ranks(ranks, plan, output, force, lambda size: progress_bar("Merging", size, in_bytes))
            if merged:
                note_beyond(plan.notes, merged.notes)
                tell(plan, merged)
        except Elsewhere:
            ranks.told()
            sys.exit(1)
        except Exception as error:  # the other processes wait to hear of it, whatever it is
            terminal.error(_sentence_of(error))
            ranks.told()
            sys.exit(1)


def _sentence_of(error: Exception) -> str:
    show_defect(error)
    return sentence_of(error)
