"""What a merge says of an adapter of one expert of a pipeline on a base of another one."""

from collections.abc import Collection, Iterable, Iterator

from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.identify import adapter_candidates, base_candidates
from lora_inspect.reading.pipeline import pipeline_expert


def other_expert_notes(base: Checkpoint, adapters: Iterable[Adapter], only: Collection[str]) -> Iterator[str]:
    """A sentence for each adapter that is called otherwise than the base; names are no proof, so that it is no error.

    `only` are the components that are merged, all without any.
    """
    theirs = pipeline_expert(base, (), base_candidates(base))
    if theirs is None or theirs.name is None:
        return
    for adapter in adapters:
        components = {module.name.component for module in adapter.modules.values()}
        ours = pipeline_expert(adapter.checkpoint, components, adapter_candidates(adapter), only)
        if ours and ours.name and ours.name != theirs.name:
            yield (
                f"{adapter.checkpoint.path} is called an adapter of the {ours.name} expert ({ours.where}), and "
                f"{base.path} the {theirs.name} one ({theirs.where}): their modules have the same names, so it is "
                "merged all the same"
            )
