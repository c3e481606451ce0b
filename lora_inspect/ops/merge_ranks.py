"""Folds adapters into a sharded base by the processes that torchrun started, each of which makes some of the shards."""

import json
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from lora_inspect.errors import LoraInspectError
from lora_inspect.merging.output_path import shared_output
from lora_inspect.merging.plan import MergePlan
from lora_inspect.merging.processes import Ranks
from lora_inspect.merging.result import MergeResult
from lora_inspect.merging.shards import Share, SharedMerge, bytes_of, difference, files_of_share
from lora_inspect.progress import Progress


def merge_by_ranks(
    ranks: Ranks, plan: MergePlan, named: str, force: bool, watch: Callable[[int], AbstractContextManager[Progress]]
) -> MergeResult | None:
    """Makes the output together; the result in the first process, None in the others.

    `watch` gives, of how many bytes there are, what is told of those that all processes have done. Raises
    LoraInspectError in the first process, and Elsewhere in the others, where one of them fails: there is no output
    then, and what is whole stays in OUT.parts, for the next run.
    """

    def prepare() -> SharedMerge:
        shared = SharedMerge(plan, shared_output(plan, named, force))
        shared.parts.make()
        return shared

    shared = ranks.together(prepare)
    ranks.equal(json.dumps(shared.made_of), lambda first: _other_plan(json.loads(first), shared.made_of))
    files = files_of_share(plan, Share(ranks.rank.number + 1, ranks.rank.of))
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
            raise LoraInspectError(f"{shared.parts.output}: another process finishes it just now; wait for that.")
        return merged

    return ranks.together(finish)


def _other_plan(first: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """What a process says whose plan is not that of the first one."""
    said = difference(first, own)
    return f"its plan is not that of the first process: {said}; have all machines see the same files."
