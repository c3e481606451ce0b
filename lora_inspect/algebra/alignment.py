"""The modules of several adapters under the names of one output: which contributions each of them is the sum of.

The output has the names of the first adapter, in its layout, or those of a program or a naming scheme. A fused layer of
one file and its split parts in another are the same rows of one module.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

from lora_inspect import schemes
from lora_inspect.architectures.correspondence import Link
from lora_inspect.architectures.detection import Detection
from lora_inspect.architectures.rows import Runs
from lora_inspect.converting.options import ConvertOptions
from lora_inspect.converting.target.target_layout import (
    Destination,
    NamedLayout,
    OwnLayout,
    Target,
    TargetLayout,
    destinations,
)
from lora_inspect.converting.target.target_names import targets, with_scheme
from lora_inspect.converting.target.target_program import for_program
from lora_inspect.errors import RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.matching.orientation import covered_shape
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.identify import (
    adapter_candidates,
    certain_correspondence,
    described,
    may_be_one,
    with_paths,
)
from lora_inspect.reading.model.contribution import Contribution, Module
from lora_inspect.schemes.record import ModuleName
from lora_inspect.sentences import listed


class Term(NamedTuple):
    """A contribution times a number, in a module of the output.

    Each of `moves` maps rows of the weight before to rows of the next one, and has the number of its rows. A slice is
    part of its layer, and a layer of one file may be part of one in the output. Without any the rows stay as they are.
    """

    adapter: Adapter
    contribution: Contribution
    multiplier: float
    moves: tuple[tuple[Runs, int], ...] = ()


class OutputModule(NamedTuple):
    """A module of the output and the terms of its sum."""

    module: Module
    terms: tuple[Term, ...]


class MultipliedAdapter(NamedTuple):
    """An adapter with the multiplier of each of its modules, by the module's key; modules left out have none."""

    adapter: Adapter
    multipliers: Mapping[str, float]


def aligned(inputs: Sequence[MultipliedAdapter], options: ConvertOptions) -> list[OutputModule]:
    """Return the modules of the output: first those of the first adapter in its order, then the others.

    `options` name the program or the scheme of the output, if it is not to have the first adapter's names. Raises
    LoraInspectError if two adapters are of different families, and for a module without a place in the output.
    """
    families = _families([one.adapter for one in inputs])
    found: dict[str, list[tuple[MultipliedAdapter, Destination]]] = defaultdict(list)
    for place, one in enumerate(inputs):
        kept = {key: module for key, module in one.adapter.modules.items() if key in one.multipliers}
        adapter = one.adapter._replace(modules=kept)
        for destination in _destinations(adapter, place, inputs[0].adapter, families[place], options):
            found[destination.module.name.key].append((one, destination))
    return [_output_module(destined) for destined in found.values()]


def aligned_in_parts(inputs: Sequence[MultipliedAdapter]) -> list[OutputModule]:
    """Align as `aligned` does, in the finest layout: a fused layer is split if another adapter has its parts.

    The names are those of the adapter with the fewest layers to split, the first of them; modules of components that it
    lacks keep their own. So no number depends on the order of the adapters. In adapters of no known family an
    underscored name matches the dotted one with the same letters. Raises LoraInspectError if two adapters are of
    different families, and for a module with no known place in the others.
    """
    families = _families([one.adapter for one in inputs])
    named: list[Adapter] = []
    for one, own in zip(inputs, families, strict=True):
        kept = {key: module for key, module in one.adapter.modules.items() if key in one.multipliers}
        named.append(with_paths(one.adapter._replace(modules=kept), own))
    if not any(families):
        return _aligned_by_letters(inputs, named)
    splits = _splits(named, families)
    reference = min(range(len(named)), key=lambda number: len(splits.keys() & _paths_of(named[number])))
    found: dict[str, list[tuple[MultipliedAdapter, Destination]]] = defaultdict(list)
    for place in (reference, *(other for other in range(len(inputs)) if other != reference)):
        names = _FirstNames(named[reference], named[place], families[place], splits, for_output=False)
        target = None if place == reference and not splits else names.target
        for destination in destinations(named[place], target, families[place]):
            found[destination.module.name.key].append((inputs[place], destination))
    return [_output_module(destined) for destined in found.values()]


def _aligned_by_letters(inputs: Sequence[MultipliedAdapter], adapters: Sequence[Adapter]) -> list[OutputModule]:
    """Return the modules of adapters of no known family; an underscored name matches the dotted one."""
    found: dict[tuple[str, str], list[tuple[MultipliedAdapter, Destination]]] = defaultdict(list)
    names: dict[tuple[str, str], ModuleName] = {}
    for one, adapter in zip(inputs, adapters, strict=True):
        for destination in destinations(adapter, None):
            module = destination.module
            letters = module.name.component, module.name.body.replace(".", "_")
            name = names.setdefault(letters, module.name)
            found[letters].append((one, destination._replace(module=module._replace(name=name))))
    return [_output_module(destined) for destined in found.values()]


def _splits(adapters: Sequence[Adapter], families: Sequence[Sequence[Detection]]) -> dict[str, list[Link]]:
    """Return the links from each fused layer of an adapter to its parts if another adapter has some of them."""
    paths = [_paths_of(adapter) for adapter in adapters]
    known = set[str]().union(*paths)
    found: dict[str, list[Link]] = {}
    for own, detected in zip(paths, families, strict=True):
        correspondence = certain_correspondence(detected)
        for path in own - found.keys():
            links = [link for link in correspondence.links(path) if _is_part(link)]
            relation = next((link.relation for link in links if link.path in known), None)
            if relation:
                found[path] = [link for link in links if link.relation == relation]
    return found


def _is_part(link: Link) -> bool:
    return link.relation.arrangement is not None and not link.is_whole and len(link.relation.parts) > 1


def _paths_of(adapter: Adapter) -> set[str]:
    return {module.path for module in adapter.modules.values() if module.path is not None}


def _output_module(destined: Sequence[tuple[MultipliedAdapter, Destination]]) -> OutputModule:
    rows = {destination.rows for _, destination in destined} - {None}
    if len(rows) > 1:
        (first, one), (second, other) = destined[0], destined[-1]
        raise RefusedError(
            second.adapter.checkpoint.path,
            f"{other.module.name.key} has {other.rows} rows, but in {first.adapter.checkpoint.path} {one.rows}",
            "name adapters of one model",
        )
    terms = [
        Term(one.adapter, contribution, one.multipliers[contribution.module.key], tuple(moves))
        for one, destination in destined
        for source in destination.sources
        for contribution in source.module.changes
        for moves in ([*_in_layer(source.module, contribution), *_in_output(source.runs, destination.rows)],)
    ]
    return OutputModule(destined[0][1].module, tuple(terms))


def _in_layer(module: Module, contribution: Contribution) -> list[tuple[Runs, int]]:
    rows, _ = covered_shape(module)
    if contribution.rows is None or rows is None:
        return []
    start, stop = contribution.rows
    return [(Runs(start, stop - start), rows)]


def _in_output(runs: Runs | None, rows: int | None) -> list[tuple[Runs, int]]:
    return [] if runs is None or rows is None else [(runs, rows)]


def _families(adapters: Sequence[Adapter]) -> list[tuple[Detection, ...]]:
    """Return the families of each adapter that every other one may be of too; LoraInspectError if there is none."""
    candidates = [adapter_candidates(adapter) for adapter in adapters]
    known = [(one, found) for one, found in zip(adapters, candidates, strict=True) if found]
    for adapter, found in known[1:]:
        first, theirs = known[0]
        if not may_be_one(theirs, found):
            raise RefusedError(
                adapter.checkpoint.path,
                f"it is of {described(found)}, but {first.checkpoint.path} is of {described(theirs)}",
                "name adapters of one model",
            )
    names = [{one.architecture.name for one in found} for _, found in known]
    common = set.intersection(*names) if names else set()
    return [tuple(one for one in found if one.architecture.name in common) for found in candidates]


def _destinations(
    adapter: Adapter, place: int, first: Adapter, families: Sequence[Detection], options: ConvertOptions
) -> tuple[Destination, ...]:
    if options.scheme or options.program:
        asked = with_scheme(adapter, for_program(adapter, adapter, options))
        return targets(adapter, adapter, None, None, asked)
    if place == 0:
        return destinations(adapter, None)
    if not families:
        adapter = _with_dots(adapter, first)
    return destinations(adapter, _FirstNames(first, adapter, families).target, families)


def _with_dots(adapter: Adapter, first: Adapter) -> Adapter:
    """Return the adapter with names of the first one for underscored ones of a model that nobody knows.

    A name with dots is spelled with underscores in one way, which two modules rarely share.
    """
    dotted: dict[tuple[str, str], list[ModuleName]] = defaultdict(list)
    for module in first.modules.values():
        if not module.name.flat:
            dotted[module.name.component, module.name.body.replace(".", "_")].append(module.name)
    found = {}
    for key, module in adapter.modules.items():
        names = dotted.get((module.name.component, module.name.body), []) if module.name.flat else []
        found[key] = module._replace(name=names[0]) if len(names) == 1 else module
    return adapter._replace(modules=found)


class _FirstLayout:
    """The layout of the first adapter: its own modules come before the other ones of the layout.

    A family may have a fused layer and its parts in one layout, as different models of it have one or the other. The
    `splits` are the links from fused layers to the parts that take their place.
    """

    def __init__(self, layout: TargetLayout, paths: Collection[str], splits: Mapping[str, Sequence[Link]]) -> None:
        parts = {link.path for links in splits.values() for link in links}
        self._layout, self._paths, self._splits = layout, {*paths, *parts} - splits.keys(), splits

    def links(self, path: str) -> list[Link]:
        """Return the links from the module at `path` to modules of the first adapter, else into its layout."""
        if path in self._splits:
            return list(self._splits[path])
        if path in self._paths:
            return []
        links = self._layout.links(path)
        # Of a fused layer the first adapter may have some parts alone, but the others have rows as well.
        known = {link.relation for link in links if link.path in self._paths}
        return [link for link in links if link.relation in known] or ([] if self._layout.has(path) else links)

    def has(self, path: str) -> bool:
        """Return True if the name is one of the first adapter's, or of its layout."""
        return path in self._paths or self._layout.has(path)


class _FirstNames:
    """The names that modules of one adapter have in the first one, and would have there if it had them.

    Those `for_output` have to be names of one scheme. Others need no more than to be different.
    """

    def __init__(
        self,
        first: Adapter,
        adapter: Adapter,
        families: Sequence[Detection],
        splits: Mapping[str, Sequence[Link]] = MappingProxyType({}),
        for_output: bool = True,
    ) -> None:
        self._for_output = for_output
        own = [one for one in adapter_candidates(first) if one.architecture in {two.architecture for two in families}]
        self._first, self._adapter = first, adapter
        # A module of no known path has the body of its name for one.
        named = with_paths(first, own) if own else first
        self._known = {(one.name.component, one.path or one.name.body): one.name for one in named.modules.values()}
        self._usual = {
            component: Counter((name.scheme, name.prefix, name.flat) for name in names).most_common(1)[0][0]
            for component, names in self._by_component(first).items()
        }
        scheme = Counter(one.name.scheme for one in first.modules.values()).most_common(1)[0][0]
        layout = NamedLayout(families, own[0].layout) if own and families else OwnLayout()
        self.target = Target(
            family=described(families) if families else "a model of no known family",
            title=f"the names of {first.checkpoint.path}",
            layout=_FirstLayout(layout, {path for _, path in self._known}, splits),
            respells=False,
            rename=self._rename,
            rename_encoder=lambda module: self._rename(module, module.path or module.name.body),
            way_out="choose names with --to" if for_output else "leave it out with --exclude",
            keeps=scheme,
        )

    @staticmethod
    def _by_component(adapter: Adapter) -> dict[str, list[ModuleName]]:
        found: dict[str, list[ModuleName]] = defaultdict(list)
        for module in adapter.modules.values():
            found[module.name.component].append(module.name)
        return found

    def _rename(self, module: Module, path: str) -> ModuleName:
        component = module.name.component
        if known := self._known.get((component, path)):
            return known
        usual = self._usual.get(component)
        if usual is None:
            return self._of_other_component(module)
        scheme, prefix, flat = usual
        return ModuleName(scheme, component, prefix, schemes.by_name(scheme).module(path, ""), flat)

    def _of_other_component(self, module: Module) -> ModuleName:
        """Return the name of a module of a component that the first adapter lacks: unchanged, if the schemes match."""
        own = sorted({scheme for scheme, _, _ in self._usual.values()})
        if self._for_output and module.name.scheme not in own:
            raise RefusedError(
                self._adapter.checkpoint.path,
                f"{module.name.key} is of the {module.name.component}, of which {self._first.checkpoint.path} has "
                f"nothing, so its name in {listed(own, 'and')} names is not known",
                "choose names with --to",
            )
        return module.name
