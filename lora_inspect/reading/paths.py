"""The canonical dotted path of every module: as it is written, or what alone can be meant by an underscored name.

No underscore is guessed to be a dot: the paths of the families that the file may be of are written with underscores,
and a name is looked up among them.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cache

from lora_inspect.architectures.detection import Detection
from lora_inspect.architectures.patterns import fill, pattern_of
from lora_inspect.architectures.text_encoders import PATHS as ENCODER_PATHS
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.base_names import EXPERTS
from lora_inspect.schemes.record import MODEL, ModuleName

_MODELS = (MODEL, *EXPERTS)


def with_paths(adapter: Adapter, families: Sequence[Detection]) -> Adapter:
    """The adapter with the path of each module, which may be of any of the `families`; None where that stays open."""
    layouts = [family.layout.paths for family in families]
    others = [layout.paths for family in families for layout in family.architecture.layouts]
    modules = {
        key: module._replace(path=path_of(module.name, layouts, others)) for key, module in adapter.modules.items()
    }
    return adapter._replace(modules=modules)


def path_of(name: ModuleName, *layouts: Iterable[tuple[str, ...]]) -> str | None:
    """The dotted path of a module: the one that is spelled so in the first of the groups of layouts with any such."""
    if not name.flat:
        return name.body
    groups = layouts if name.component in _MODELS else ((ENCODER_PATHS,),)
    for group in groups:
        found = {path for paths in group for path in _spelled(paths, name.body)}
        if found:
            return found.pop() if len(found) == 1 else None
    return None


def _spelled(paths: tuple[str, ...], body: str) -> Iterable[str]:
    """The paths of a layout, with indices, that are `body` where their dots are underscores."""
    candidates = _by_pattern(paths).get(pattern_of(body, "_"), ())
    return (path for template in candidates if (path := fill(template.replace(".", "_"), template, body)))


@cache
def _by_pattern(paths: tuple[str, ...]) -> dict[str, list[str]]:
    table: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        table[pattern_of(path, "_")].append(path)
    return dict(table)
