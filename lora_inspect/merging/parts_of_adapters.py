"""Which modules of each adapter are merged, and how strongly: what the options choose, and the settings on its path."""

from collections.abc import Sequence

from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.matching.module_map import module_names
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.ambiguous_options import Strengths
from lora_inspect.reading.chosen_modules import Choice


class Parts(NamedTuple):
    """What is merged of an adapter: all modules but those whose keys are `excluded`, each at its strength."""

    strengths: Strengths
    excluded: tuple[str, ...] = ()


def parts_of(adapters: Sequence[Adapter], base: Checkpoint, choice: Choice) -> list[Parts]:
    """The parts of each adapter; raises LoraInspectError where a setting or a pattern speaks of no module."""
    # Names are looked for where something asks for them: it takes as long as all else that is planned.
    names = {
        adapter.checkpoint.path: module_names(adapter, base)
        for adapter in adapters
        if choice.says or adapter.settings.strengths
    }
    excluded = choice.left_out(names) if choice.says else {}
    parts: list[Parts] = []
    for adapter in adapters:
        path = adapter.checkpoint.path
        without = excluded.get(path, ())
        left = {key: one for key, one in names.get(path, {}).items() if key not in without}
        parts.append(Parts(Strengths(adapter.settings, path, left, choice.leaves), tuple(without)))
    return parts
