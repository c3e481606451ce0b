"""What each module of an adapter is called: by its file, and in every layout of each family that it may be of."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile

from lora_inspect.architectures import open_clip
from lora_inspect.architectures.correspondence import Correspondence
from lora_inspect.architectures.detection import Detection
from lora_inspect.architectures.record import Layout
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.matching.layouts import correspondence_of, families_of
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.base.base_names import is_weight, own_paths, path_of, without_roots
from lora_inspect.reading.keys.suffixes import MODELS, Table, paths_of, table_of
from lora_inspect.reading.module_patterns import Called, ModuleNames, OpenNames
from lora_inspect.schemes.record import ModuleName

# What the one list of blocks is called that a layout has, whatever its own name.
_BLOCKS = "blocks"
_INDEX = ".{i}"


class _Naming(NamedTuple):
    """How one family calls modules, or any where none is known: its layouts, their relations, the lists that are alone.

    `tables` are those of the layout that counts first, and those of all.
    """

    tables: tuple[list[Table], ...]
    correspondence: Correspondence
    lists: tuple[str, ...]


def module_names(adapter: Adapter, base: Checkpoint) -> dict[str, ModuleNames]:
    """The names of every module of the adapter, by its key."""
    families = families_of(adapter, base)
    modules = list(adapter.modules.values())
    namings = [
        _naming(own, correspondence_of(adapter, base, modules, own)) for own in [[one] for one in families] or [[]]
    ]
    spelled = {component: _spelled(base, component) for component in {one.name.component for one in modules}}

    def names(name: ModuleName) -> ModuleNames:
        path = spelled[name.component].get(name.body) if name.flat else None
        called = [_called(name, path, naming) for naming in namings]
        differs = len({(frozenset(one.paths), one.flat) for one in called}) > 1
        by_family = zip((family.architecture for family in families), called, strict=False)
        return ModuleNames(
            component=name.component,
            paths=called[0].paths,
            written=tuple(dict.fromkeys((name.key, name.body))),
            flat=called[0].flat,
            open=OpenNames(adapter.checkpoint.path, tuple(by_family)) if differs else None,
        )

    return {key: names(module.name) for key, module in adapter.modules.items()}


def _naming(family: Sequence[Detection], correspondence: Correspondence) -> _Naming:
    first = [table_of(one.layout.named) for one in family]
    every = [table_of(layout.named) for one in family for layout in one.architecture.layouts]
    return _Naming((first, every), correspondence, tuple(dict.fromkeys(_lists_alone(family))))


def _spelled(base: Checkpoint, component: str) -> dict[str, str | None]:
    """The paths of the base's layers by their underscored spellings; None where several are spelled so."""
    found: dict[str, str | None] = {}
    for info in base.tensors.values():
        if not is_weight(info) and not open_clip.is_projection(info.name):
            continue
        for path in own_paths(path_of(info), component, base):
            flat = path.replace(".", "_")
            found[flat] = path if found.get(flat, path) == path else None
    return found


def _called(name: ModuleName, of_base: str | None, naming: _Naming) -> Called:
    """What a module is called in a family; one that this does not know has the path `of_base`, if the base tells it."""
    own = paths_of(name, *naming.tables) or ([of_base] if of_base else [])
    if not own:
        return Called((), name.body)
    is_of_model = name.component in MODELS
    relations = naming.correspondence if is_of_model else open_clip.CORRESPONDENCE
    paths = [*own, *(other for path in own for other in _related(path, relations))]
    paths += [rest for path in paths if (rest := without_roots(path)[1])]
    if is_of_model:
        paths += [f"{_BLOCKS}{path[len(at) :]}" for at in naming.lists for path in paths if path.startswith(f"{at}.")]
    return Called(tuple(dict.fromkeys(paths)))


def _related(path: str, correspondence: Correspondence) -> Iterator[str]:
    """What the module is called in other layouts: the same, or the fused one that has its rows.

    Of a fused module the parts are no names: what is said of one of them is not said of the others. What they all are
    below is one.
    """
    parts: dict[tuple[str, ...], list[list[str]]] = {}
    for link in correspondence.links(path):
        if link.is_whole or len(link.relation.parts) == 1:
            yield link.path
        else:
            parts.setdefault(link.relation.parts, []).append(link.path.split(".")[:-1])
    for parents in parts.values():
        shared = takewhile(lambda names: len(set(names)) == 1, zip(*parents, strict=False))
        if above := ".".join(names[0] for names in shared):
            yield above


def _lists_alone(families: Iterable[Detection]) -> Iterator[str]:
    """The paths of the lists of blocks of all layouts that have one alone."""
    for family in families:
        for layout in family.architecture.layouts:
            lists = list(_lists(layout))
            if len(lists) == 1:
                yield lists[0]


def _lists(layout: Layout) -> Iterable[str]:
    """The lists of blocks that are in no other list; those of the layers where the layout says none."""
    if layout.blocks:
        return [at for at, _ in layout.blocks if _INDEX not in at]
    return dict.fromkeys(path[: path.index(_INDEX)] for path in layout.paths if _INDEX in path)
