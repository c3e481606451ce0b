"""The canonical dotted path of every module: as it is written, or what alone can be meant by an underscored name."""

from collections.abc import Sequence
from typing import Any

from lora_inspect.architectures.detection import Detection
from lora_inspect.caching import Remembered
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.keys.groups import alike
from lora_inspect.reading.keys.written_paths import path_of, table_of
from lora_inspect.reading.model import contribution

# The paths of the files that were read last, by the names of their modules and those of the layouts.
_MOST_NAMES = 2_000
_paths: Remembered[Any, list[str | None]] = Remembered(16)


def with_paths(adapter: Adapter, families: Sequence[Detection]) -> Adapter:
    """The adapter with the path of each module, which may be of any of the `families`; None where that stays open."""
    names = tuple([module.name for module in adapter.modules.values()])
    own = tuple(family.layout.named for family in families)
    others = tuple(layout.named for family in families for layout in family.architecture.layouts)
    paths = _paths.get((names, own, others)) if len(names) <= _MOST_NAMES else None
    if paths is None:
        tables = [list(map(table_of, layouts)) for layouts in (own, others)]
        paths = [path_of(name, *tables) for name in names]
        if len(names) <= _MOST_NAMES:
            _paths.put((names, own, others), paths)
    modules = contribution.with_paths(adapter.modules.values(), paths)
    return adapter._replace(modules=alike(adapter.modules).with_values(modules))
