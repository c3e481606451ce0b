"""The map from each module of an adapter to those of a base that hold its rows.

A module has a name in its file, and one in every layout of each family that it may be of. The families that an adapter
and a base may both be of relate the layouts of their names.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile

from lora_inspect.algorithms.record import BIAS, WEIGHT
from lora_inspect.architectures import text_encoders
from lora_inspect.architectures.correspondence import Correspondence
from lora_inspect.architectures.detection import Detection
from lora_inspect.architectures.record import Layout
from lora_inspect.errors import AmbiguousError, RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.base.base_names import BaseModule, NameTable, is_weight, own_paths, path_of, without_roots
from lora_inspect.reading.base.model_config import gguf_correspondence, has_header
from lora_inspect.reading.identify import (
    adapter_candidates,
    base_candidates,
    common_correspondence,
    common_families,
    described,
)
from lora_inspect.reading.keys.suffixes import MODELS, Table, paths_of, table_of
from lora_inspect.reading.model.contribution import Module
from lora_inspect.reading.module_patterns import Called, ModuleNames, OpenNames
from lora_inspect.schemes.gguf import GGUF
from lora_inspect.schemes.record import ModuleName


class Home(NamedTuple):
    """A module of the adapter, and the modules of the base that it is, in the order of its rows where several are."""

    module: Module
    found: tuple[BaseModule, ...]

    @property
    def is_complete(self) -> bool:
        """True if all parts of a module that has several are found."""
        piece = self.found[0].piece
        parts = piece.parts if piece and piece.of_whole else 1
        if self.found[0].single is None:
            return len(self.found) == parts
        experts = len(self.found) // parts
        return [one.single for one in self.found] == [expert for expert in range(experts) for _ in range(parts)]


class Homes(NamedTuple):
    """The modules with a home, the `homeless` ones, and `partial` homes of homeless modules.

    `lacking` are homes of homeless modules that have no tensor that these change.
    """

    complete: list[Home]
    homeless: tuple[Module, ...]
    partial: tuple[Home, ...]
    lacking: tuple[Home, ...]


def find_homes(adapter: Adapter, base: Checkpoint, modules: Sequence[Module], correspondence: Correspondence) -> Homes:
    """Return the home of each module; the `correspondence` is that of the model, not of its text encoders.

    Raises LoraInspectError where a name means two modules of the base, and where two modules change the same rows.
    """
    kinds = {(module.name.scheme, module.name.component, module.name.prefix) for module in modules}
    tables = {
        (scheme, component, prefix): NameTable(
            base, scheme, component, prefix, correspondence if component in MODELS else text_encoders.OPEN_CLIP
        )
        for scheme, component, prefix in kinds
    }
    homes: list[Home] = []
    partial: list[Home] = []
    lacking: list[Home] = []
    taken: dict[tuple[str, int | None], list[tuple[BaseModule, Module]]] = defaultdict(list)
    unmatched: list[Module] = []
    for module in modules:
        name = module.name
        table = tables[name.scheme, name.component, name.prefix]
        found = _one_meaning(module, _of_parameter(module, table) or table.find(name), adapter, base)
        if found and not Home(module, found).is_complete:
            partial.append(Home(module, found))
            unmatched.append(module)
            continue
        if not found or not any(found[0].tensor(c.algorithm.parameter) in base.tensors for c in module.contributions):
            lacking += [Home(module, found)] if found else []
            unmatched.append(module)
            continue
        for one in found:
            here = taken[one.path, one.expert]
            if other := next((module for earlier, module in here if _share_rows(earlier, one)), None):
                raise RefusedError(_both_change(other, module, one, adapter, base))
            here.append((one, module))
        homes.append(Home(module, found))
    return Homes(homes, tuple(unmatched), tuple(partial), tuple(lacking))


def _of_parameter(module: Module, table: NameTable) -> list[BaseModule]:
    """Return the base modules with the only parameter that the module changes, if it is no weight or bias."""
    parameters = {contribution.algorithm.parameter for contribution in module.contributions}
    if len(parameters) > 1 or parameters <= {WEIGHT, BIAS}:
        return []
    (parameter,) = parameters
    return table.find_parameter(module.name, parameter)


def _one_meaning(
    module: Module, found: Iterable[BaseModule], adapter: Adapter, base: Checkpoint
) -> tuple[BaseModule, ...]:
    """Return the one matching module, or its parts in their order; empty if there is none.

    Raises LoraInspectError where several are meant.
    """
    meanings: dict[object, dict[tuple[int, int], BaseModule]] = {}
    for one in found:
        piece = one.piece
        is_part = one.single is not None or (piece is not None and piece.of_whole)
        meaning = meanings.setdefault((piece and piece.arrangement) if is_part else one, {})
        number = one.single or 0, piece.part if is_part and piece else 0
        if number in meaning:
            raise AmbiguousError(_ambiguous(module, meaning[number], one, adapter, base))
        meaning[number] = one
    if len(meanings) > 1:
        first, second, *_ = (next(iter(meaning.values())) for meaning in meanings.values())
        raise AmbiguousError(_ambiguous(module, first, second, adapter, base))
    return tuple(one for meaning in meanings.values() for _, one in sorted(meaning.items()))


def _share_rows(one: BaseModule, other: BaseModule) -> bool:
    """Return True if two adapter modules in one base module have rows in common."""
    pieces = one.piece, other.piece
    apart = all(piece is not None and not piece.of_whole for piece in pieces)
    return not apart or pieces[0] == pieces[1]


def _ambiguous(module: Module, first: BaseModule, second: BaseModule, adapter: Adapter, base: Checkpoint) -> str:
    return (
        f"{adapter.checkpoint.path}: {module.name.key} matches both {_shown(first, base)} and "
        f"{_shown(second, base)} of {base.path}; use a base that holds one of them."
    )


def _both_change(first: Module, second: Module, found: BaseModule, adapter: Adapter, base: Checkpoint) -> str:
    what = f"{_shown(found, base)} of {base.path}"
    both = f"{adapter.checkpoint.path}: {first.name.key} and {second.name.key} both change {what}"
    components = sorted({first.name.component, second.name.component})
    if len(components) == 1:
        return f"{both}; leave one of them out."
    choices = " or ".join(f"--only {component}" for component in components)
    return f"{both}, which holds one of {' and '.join(components)}; choose it with {choices}."


def _shown(found: BaseModule, base: Checkpoint) -> str:
    """Return the weight of the base's module, or the module if it has none."""
    return weight if (weight := found.tensor(WEIGHT)) in base.tensors else found.path


def layouts_of(
    adapter: Adapter, base: Checkpoint, modules: Sequence[Module]
) -> tuple[tuple[Detection, ...], Correspondence]:
    """Return the families, in the base's layout where it shows one, and the relations that hold for some `modules`."""
    families = families_of(adapter, base)
    return families, correspondence_of(adapter, base, modules, families)


def families_of(adapter: Adapter, base: Checkpoint) -> tuple[Detection, ...]:
    """Return the families of the adapter, in the base's layout if it shows one.

    Raises LoraInspectError if the settings name another family than the adapter and the base share.
    """
    ours, theirs = adapter_candidates(adapter), base_candidates(base)
    # A base may have the names of the family that this one descends from.
    descends = any(layout.borrowed for one in ours for layout in one.architecture.layouts)
    if (named := adapter.settings.architecture) and not descends:
        unsettled = adapter._replace(settings=adapter.settings._replace(architecture=None))
        known = common_families(adapter_candidates(unsettled), theirs)
        if known and named not in [family.architecture.name for family in known]:
            raise RefusedError(
                adapter.checkpoint.path,
                f"{base.path} is of {described(known)}, so the adapter is not of {named}",
                f"leave architecture={named} out",
            )
    return common_families(ours, theirs)


def correspondence_of(
    adapter: Adapter, base: Checkpoint, modules: Sequence[Module], families: Sequence[Detection]
) -> Correspondence:
    """Return the relations that hold for some `modules`, whichever of the `families` it is."""
    if adapter.scheme == GGUF.name and has_header(adapter.checkpoint):
        return gguf_correspondence(adapter.checkpoint, modules, base)
    return common_correspondence(families)


# What the one list of blocks is called that a layout has, whatever its own name.
_BLOCKS = "blocks"
_INDEX = ".{i}"


class _Naming(NamedTuple):
    """The names of modules in one family, or in any if none is known: layouts, relations, and lists of blocks.

    `tables` are the tables of the preferred layout, then of all; `lists` are the lists that are the only one of a
    layout.
    """

    tables: tuple[list[Table], ...]
    correspondence: Correspondence
    lists: tuple[str, ...]


def module_names(adapter: Adapter, base: Checkpoint | None) -> dict[str, ModuleNames]:
    """Return the names of every module of the adapter, by its key; a `base` gives the paths of an unknown family."""
    families = families_of(adapter, base) if base else adapter_candidates(adapter)
    modules = list(adapter.modules.values())
    namings = [
        _naming(own, correspondence_of(adapter, base, modules, own) if base else common_correspondence(own))
        for own in [[one] for one in families] or [[]]
    ]
    components = {one.name.component for one in modules}
    spelled = {component: _spelled(base, component) if base else {} for component in components}

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
    """Return the paths of the base's layers by their underscored spellings; None if several are spelled so."""
    found: dict[str, str | None] = {}
    for info in base.tensors.values():
        if not is_weight(info) and not text_encoders.is_open_clip_projection(info.name):
            continue
        for path in own_paths(path_of(info), component, base):
            flat = path.replace(".", "_")
            found[flat] = path if found.get(flat, path) == path else None
    return found


def _called(name: ModuleName, of_base: str | None, naming: _Naming) -> Called:
    """Return the names of a module in a family; a module unknown to it has the path `of_base`, if there is one."""
    own = paths_of(name, *naming.tables) or ([of_base] if of_base else [])
    if not own:
        return Called((), name.body)
    is_of_model = name.component in MODELS
    relations = naming.correspondence if is_of_model else text_encoders.OPEN_CLIP
    paths = [*own, *(other for path in own for other in _related(path, relations))]
    paths += [rest for path in paths if (rest := without_roots(path)[1])]
    if is_of_model:
        paths += [f"{_BLOCKS}{path[len(at) :]}" for at in naming.lists for path in paths if path.startswith(f"{at}.")]
    return Called(tuple(dict.fromkeys(paths)))


def _related(path: str, correspondence: Correspondence) -> Iterator[str]:
    """Yield the names of the module in other layouts: the same one, or the fused one that has its rows.

    The parts of a fused module are no names for it, since a fact about one part is not true of the others. The module
    that contains all of them is one.
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
    """Yield the paths of the lists of blocks of all layouts that have only one list."""
    for family in families:
        for layout in family.architecture.layouts:
            lists = list(_lists(layout))
            if len(lists) == 1:
                yield lists[0]


def _lists(layout: Layout) -> Iterable[str]:
    """Return the lists of blocks that are in no other list; those of the layers if the layout has none."""
    if layout.blocks:
        return [at for at, _ in layout.blocks if _INDEX not in at]
    return dict.fromkeys(path[: path.index(_INDEX)] for path in layout.paths if _INDEX in path)
