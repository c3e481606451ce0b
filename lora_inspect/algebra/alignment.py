"""The modules of several adapters under the names of one output: which contributions each of them is the sum of.

The output has the names of the first adapter, in its layout, or those of a program or a naming scheme. A fused layer of
one file and its split parts in another are the same rows of one module.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence

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
from lora_inspect.reading.identify import adapter_candidates, described, may_be_one, with_paths
from lora_inspect.reading.model.contribution import Contribution, Module
from lora_inspect.schemes.record import ModuleName
from lora_inspect.sentences import listed


class Term(NamedTuple):
    """A contribution times a number, in a module of the output.

    Each of `moves` says which rows of the weight before are which ones of the next, of so many rows: a slice is part of
    its layer, and a layer of one file may be part of one in the output. Without any the rows stay as they are.
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
    """The modules of the output in the order of the first adapter, behind them those that only others have.

    `options` name the program or the scheme of the output, if it is not to have the first adapter's names. Raises
    LoraInspectError where two adapters are of different families, and for a module without a place in the output.
    """
    families = _families([one.adapter for one in inputs])
    found: dict[str, list[tuple[MultipliedAdapter, Destination]]] = defaultdict(list)
    for place, one in enumerate(inputs):
        kept = {key: module for key, module in one.adapter.modules.items() if key in one.multipliers}
        adapter = one.adapter._replace(modules=kept)
        for destination in _destinations(adapter, place, inputs[0].adapter, families[place], options):
            found[destination.module.name.key].append((one, destination))
    return [_output_module(destined) for destined in found.values()]


def _output_module(destined: Sequence[tuple[MultipliedAdapter, Destination]]) -> OutputModule:
    rows = {destination.rows for _, destination in destined} - {None}
    if len(rows) > 1:
        (first, one), (second, other) = destined[0], destined[-1]
        raise RefusedError(
            second.adapter.checkpoint.path,
            f"{other.module.name.key} has {other.rows} rows, but in {first.adapter.checkpoint.path} {one.rows}",
            "combine adapters of one model",
        )
    terms = [
        Term(one.adapter, contribution, one.multipliers[source.module.name.key], tuple(moves))
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
    """The families of each adapter that every other one may be of too; LoraInspectError where there is none."""
    candidates = [adapter_candidates(adapter) for adapter in adapters]
    known = [(one, found) for one, found in zip(adapters, candidates, strict=True) if found]
    for adapter, found in known[1:]:
        first, theirs = known[0]
        if not may_be_one(theirs, found):
            raise RefusedError(
                adapter.checkpoint.path,
                f"it is of {described(found)}, but {first.checkpoint.path} is of {described(theirs)}",
                "combine adapters of one model",
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
    return destinations(adapter, _FirstNames(first, adapter, families).target, families)


class _FirstLayout:
    """The layout of the first adapter: the modules that it has before those that it could have.

    A family may have a fused layer and its parts in one layout, as different models of it have one or the other.
    """

    def __init__(self, layout: TargetLayout, paths: Collection[str]) -> None:
        self._layout, self._paths = layout, paths

    def links(self, path: str) -> list[Link]:
        """The links from the module at `path` to modules of the first adapter, else into its layout."""
        if path in self._paths:
            return []
        links = self._layout.links(path)
        known = [link for link in links if link.path in self._paths]
        return known or ([] if self._layout.has(path) else links)

    def has(self, path: str) -> bool:
        """Whether the name is one of the first adapter's, or of its layout."""
        return path in self._paths or self._layout.has(path)


class _FirstNames:
    """The names that modules of one adapter have in the first one, and would have there if it had them."""

    def __init__(self, first: Adapter, adapter: Adapter, families: Sequence[Detection]) -> None:
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
            layout=_FirstLayout(layout, {path for _, path in self._known}),
            respells=False,
            rename=self._rename,
            rename_encoder=lambda module: self._rename(module, module.path or module.name.body),
            way_out="choose names with --to",
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
        """The name of a module of a component that the first adapter lacks: as it is, if the scheme is the same."""
        own = sorted({scheme for scheme, _, _ in self._usual.values()})
        if module.name.scheme not in own:
            raise RefusedError(
                self._adapter.checkpoint.path,
                f"{module.name.key} is of the {module.name.component}, of which {self._first.checkpoint.path} has "
                f"nothing, so its name in {listed(own, 'and')} names is not known",
                "choose names with --to",
            )
        return module.name
