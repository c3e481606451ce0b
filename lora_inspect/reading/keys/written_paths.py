"""The dotted path that an underscored name alone can mean, of the layers of the families that a file may be of.

No underscore is guessed to be a dot: the paths of the families are written with underscores, and a name is looked up
among them.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cache

from lora_inspect.architectures.patterns import fill, pattern_of
from lora_inspect.architectures.text_encoders import PATHS as ENCODER_PATHS
from lora_inspect.reading.base.base_names import EXPERTS
from lora_inspect.schemes.record import MODEL, ModuleName

# The model of a pipeline, and its second expert.
MODELS = (MODEL, *EXPERTS)

# The paths of a layout by the patterns of their underscored spellings, each after its own.
Table = Mapping[str, Sequence[tuple[str, str]]]


def path_of(name: ModuleName, *groups: Iterable[Table]) -> str | None:
    """The dotted path of a module: the one that is spelled so in the first of the groups of layouts with any such."""
    found = paths_of(name, *groups)
    return found[0] if len(found) == 1 else None


def paths_of(name: ModuleName, *groups: Iterable[Table]) -> list[str]:
    """All dotted paths that are spelled so in the first of the groups of layouts with any such."""
    if not name.flat:
        return [name.body]
    pattern = pattern_of(name.body, "_")
    for group in groups if name.component in MODELS else ([table_of(ENCODER_PATHS)],):
        templates = {template for table in group for template in table.get(pattern, ())}
        spelled = (fill(flat, path, name.body) for flat, path in templates)
        if found := {path for path in spelled if path}:
            return sorted(found)
    return []


@cache
def table_of(paths: tuple[str, ...]) -> Table:
    """The table of a layout's paths."""
    table: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for path in paths:
        table[pattern_of(path, "_")].append((path.replace(".", "_"), path))
    return dict(table)
