"""The canonical dotted path of every module: as it is written, or what alone can be meant by an underscored name."""

from collections.abc import Sequence

from lora_inspect.architectures.detection import Detection
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.written_paths import MODELS, path_of, table_of

# What a path is of stands beside the paths.
__all__ = ["MODELS", "with_paths"]


def with_paths(adapter: Adapter, families: Sequence[Detection]) -> Adapter:
    """The adapter with the path of each module, which may be of any of the `families`; None where that stays open."""
    tables = [table_of(family.layout.named) for family in families]
    others = [table_of(layout.named) for family in families for layout in family.architecture.layouts]
    modules = {
        key: module._replace(path=path_of(module.name, tables, others)) for key, module in adapter.modules.items()
    }
    return adapter._replace(modules=modules)
