"""What each module of an adapter is called: by its file, and in every layout of its family."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile

from lora_inspect.architectures import open_clip
from lora_inspect.architectures.correspondence import Correspondence
from lora_inspect.architectures.detection import Detection
from lora_inspect.architectures.record import Layout
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.matching.layouts import layouts_of
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.base_names import is_weight, own_paths, path_of, without_roots
from lora_inspect.reading.contribution import Module
from lora_inspect.reading.module_patterns import ModuleNames
from lora_inspect.reading.paths import MODELS, with_paths

# What the one list of blocks is called that a layout has, whatever its own name.
_BLOCKS = "blocks"
_INDEX = ".{i}"


def module_names(adapter: Adapter, base: Checkpoint) -> dict[str, ModuleNames]:
    """The names of every module of the adapter, by its key."""
    families, correspondence = layouts_of(adapter, base, list(adapter.modules.values()))
    lists = tuple(dict.fromkeys(_lists_alone(families)))
    modules = with_paths(adapter, families).modules
    unknown = {module.name.component for module in modules.values() if module.path is None}
    spelled = {component: _spelled(base, component) for component in unknown}
    return {
        key: _names(module, module.path or spelled[module.name.component].get(module.name.body), correspondence, lists)
        for key, module in modules.items()
    }


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


def _names(module: Module, own: str | None, correspondence: Correspondence, lists: Sequence[str]) -> ModuleNames:
    name = module.name
    written = tuple(dict.fromkeys((name.key, name.body)))
    if own is None:
        return ModuleNames(name.component, (), written, flat=name.body)
    is_of_model = name.component in MODELS
    relations = correspondence if is_of_model else open_clip.CORRESPONDENCE
    paths = [own, *_related(own, relations)]
    paths += [rest for path in paths if (rest := without_roots(path)[1])]
    if is_of_model:
        paths += [f"{_BLOCKS}{path[len(at) :]}" for at in lists for path in paths if path.startswith(f"{at}.")]
    return ModuleNames(name.component, tuple(dict.fromkeys(paths)), written)


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
