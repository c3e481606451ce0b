"""The modules of an output in another layout of its family, each with the rows that it takes.

The correspondence of the family relates the layouts, as when a merge folds an adapter of one layout into a base of the
other. The shapes show if rows can go to a layer of another layout.

A difference of a parameter that is no weight belongs to its module, or has the parameter's own name. Wan's `modulation`
of `blocks.0` has a suffix of its own, `.diff_m`. In diffusers it is `blocks.0.scale_shift_table`, and `.diff` of that
name is the difference.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from lora_inspect.algorithms.full import ALGORITHMS
from lora_inspect.algorithms.record import BIAS, WEIGHT, Algorithm, Shapes
from lora_inspect.architectures.correspondence import Correspondence, Link
from lora_inspect.architectures.detection import Detection
from lora_inspect.architectures.patterns import pattern_of, patterns_of
from lora_inspect.architectures.record import Layout
from lora_inspect.architectures.rows import Runs
from lora_inspect.errors import AmbiguousError, DamagedError, RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.matching.orientation import Covered, covered_shape
from lora_inspect.maths.dora import INPUT
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.identify import certain_correspondence, described, with_paths
from lora_inspect.reading.keys.suffixes import MODELS
from lora_inspect.reading.model.contribution import Module
from lora_inspect.schemes.record import MODEL, ModuleName
from lora_inspect.sentences import listed


class TargetLayout(Protocol):
    """The layout of an output."""

    def links(self, path: str) -> list[Link]:
        """Return the links from the module at `path` into the layout."""

    def has(self, path: str) -> bool:
        """Return True if the module at `path` is in the layout as it is."""


class NamedLayout:
    """A layout with names of its own, of a file that may be of any of the `families`."""

    def __init__(self, families: Sequence[Detection], layout: Layout) -> None:
        self._correspondence = certain_correspondence(families)
        self._patterns = patterns_of(layout.named, ".")
        # What the tables do not list, as buffers, has its name in the layout that the file has already.
        self._is_own = all(family.layout.name == layout.name for family in families)

    def links(self, path: str) -> list[Link]:
        """Return the links to the related modules that are in the layout."""
        return [link for link in self._correspondence.links(path) if pattern_of(link.template, ".") in self._patterns]

    def has(self, path: str) -> bool:
        """Return True if the name is in the layout."""
        return self._is_own or pattern_of(path, ".") in self._patterns


class ArrangedLayout:
    """A layout for families that only fuse some modules and keep the other names."""

    def __init__(self, families: Sequence[Detection], is_fused: bool) -> None:
        self._correspondence = certain_correspondence(families)
        self._possible = tuple(family.architecture.correspondence for family in families)
        self._is_fused = is_fused

    def links(self, path: str) -> list[Link]:
        """Return the fused module of a part, or the parts of a fused one."""
        return self._links(self._correspondence, path)

    def has(self, path: str) -> bool:
        """Return True if the module is neither fused nor split in any possible family."""
        return not any(self._links(one, path) for one in self._possible)

    def _links(self, correspondence: Correspondence, path: str) -> list[Link]:
        return [
            link
            for link in correspondence.links(path)
            if link.relation.arrangement is not None and link.is_whole == self._is_fused
        ]


class OwnLayout:
    """The layout that the file has already."""

    def links(self, path: str) -> list[Link]:
        """Return no links: every module stays as it is."""
        return []

    def has(self, path: str) -> bool:
        """Return True: every module is there."""
        return True


# The difference of a weight, and by parameter those that are none of weights and biases.
_OF_WEIGHT = next(one for one in ALGORITHMS if one.parameter == WEIGHT)
_OF_OTHERS = {one.parameter: one for one in ALGORITHMS if one.parameter not in (WEIGHT, BIAS)}


def is_own_parameter(module: Module) -> bool:
    """Return True if a module of the model changes only a parameter that is neither a weight nor a bias."""
    return module.name.component in MODELS and _changed(module) in _OF_OTHERS


def by_its_name(module: Module) -> tuple[Module, str] | None:
    """Return the module as the only parameter that it changes, with its path; None for any other module.

    `blocks.0` becomes `blocks.0.modulation`.
    """
    parameter = _changed(module)
    if parameter not in _OF_OTHERS or module.path is None:
        return None
    return _changing(module, _OF_WEIGHT), f"{module.path}.{parameter}"


def of_its_owner(module: Module, path: str) -> tuple[Module, str]:
    """Return the module and the path for `path`, which is the owner's if the parameter has a suffix of its own.

    `blocks.0.modulation` becomes `blocks.0`.
    """
    owner, _, parameter = path.rpartition(".")
    if parameter not in _OF_OTHERS or any(c.algorithm.name != _OF_WEIGHT.name for c in module.contributions):
        return module, path
    return _changing(module, _OF_OTHERS[parameter]), owner


def _changed(module: Module) -> str:
    parameters = {contribution.algorithm.parameter for contribution in module.contributions}
    return parameters.pop() if len(parameters) == 1 else WEIGHT


def _changing(module: Module, algorithm: Algorithm) -> Module:
    contributions = tuple(contribution._replace(algorithm=algorithm) for contribution in module.contributions)
    return module._replace(contributions=contributions)


class Source(NamedTuple):
    """A module of the input; `runs` are its rows in the module of the output, None if it has all in their order."""

    module: Module
    runs: Runs | None = None


class OneLayer(NamedTuple):
    """A layer of one `expert`, and where its rows are in the matrix of its layers, which is (in, out) if `turned`."""

    expert: int
    runs: Runs
    turned: bool


class ManyLayers(NamedTuple):
    """A parameter of all experts, each with a matrix of `rows` rows.

    `places` are by source its expert, the number of its part of that one's matrix, and its rows there.
    """

    experts: int
    rows: int
    places: tuple[tuple[int, int, Runs], ...]


class Destination(NamedTuple):
    """A module of the output with its new name, its sources, and its number of rows if they are moved.

    `experts` gives how layers of experts are split or joined; None if they are not.
    """

    module: Module
    sources: tuple[Source, ...]
    rows: int | None = None
    experts: OneLayer | ManyLayers | None = None


class Target(NamedTuple):
    """The target of an adapter's modules: a `layout` of the `family`.

    `rename` gives a module of the model its name at a path of the layout, and `rename_encoder` renames one of a text
    encoder; `respells` is True if the suffixes become those of the names too. `title` names the target in sentences,
    and `way_out` gives the other choices of the user. `keeps` is a scheme: its modules at unknown paths keep their
    names, if it is the requested one and no layout is.
    """

    family: str
    title: str
    layout: TargetLayout
    respells: bool
    rename: Callable[[Module, str], ModuleName]
    rename_encoder: Callable[[Module], ModuleName]
    way_out: str
    keeps: str | None = None


def destinations(
    adapter: Adapter, target: Target | None, families: Sequence[Detection] = ()
) -> tuple[Destination, ...]:
    """Return the modules of the output at the `target`, or as they are in the input without one.

    Raises LoraInspectError for a module without a counterpart, for one whose family is open, or if two have one name.
    """
    if target is None:
        return tuple(Destination(module, (Source(module),)) for module in adapter.modules.values())
    named = with_paths(adapter, families)
    _check_paths(named, target, families)
    moved: dict[tuple[str, str], list[_Moved]] = defaultdict(list)
    try:
        for module in named.modules.values():
            for one in _moves(module, target, adapter):
                name, path = one.module.name, one.module.path
                moved[name.component, path if name.component == MODEL and path else name.key].append(one)
    except RefusedError as error:
        if len({one.architecture.name for one in families}) < 2:
            raise
        # In one of the families it may have a place.
        raise AmbiguousError(
            adapter.checkpoint.path,
            error.problem,
            f"choose {described(families)}, the first of them with --architecture {families[0].architecture.name}",
        ) from None
    found = tuple(_joined(together, target, adapter) for together in moved.values())
    _check_names(found, adapter)
    return found


def _check_paths(adapter: Adapter, target: Target, families: Sequence[Detection]) -> None:
    """Raise LoraInspectError for the first module of the model without a path, unless it keeps its name.

    It is ambiguous if it has one in some of the `families`.
    """
    for key, module in adapter.modules.items():
        if module.name.component not in MODELS or module.path is not None or module.name.scheme == target.keeps:
            continue
        alone = adapter._replace(modules={key: module})
        placed = [family for family in families if with_paths(alone, [family]).modules[key].path is not None]
        if placed:
            choices = dict.fromkeys(family.architecture.name for family in placed)
            raise AmbiguousError(
                adapter.checkpoint.path,
                f"{module.name.key} is ambiguous: it may be a module of {described(placed)}, and its place in "
                f"{target.title} depends on which",
                f"choose one with --architecture {listed(list(choices), 'or')}",
            )
        raise RefusedError(
            adapter.checkpoint.path,
            f"{module.name.key} is no module of {target.family}, so lora-inspect does not know its place in "
            f"{target.title}",
            target.way_out,
        )


class _Moved(NamedTuple):
    """One module on its way into another one, by the link that leads there; None if only its name changes."""

    module: Module
    source: Module
    link: Link | None


def _moves(module: Module, target: Target, adapter: Adapter) -> Iterator[_Moved]:
    """Yield the targets of a module: one, several, or none."""
    if module.name.component not in MODELS:
        yield _Moved(module._replace(name=target.rename_encoder(module), respelled=target.respells), module, None)
        return
    path = module.path
    if path is None:
        yield _Moved(module._replace(respelled=target.respells), module, None)
        return
    links = target.layout.links(path)
    if (parameter := by_its_name(module)) and (target.respells or target.layout.links(parameter[1])):
        module, path = parameter
        links = target.layout.links(path)
    if not links and not target.layout.has(path):
        raise RefusedError(
            adapter.checkpoint.path,
            f"{path} of {target.family} has no known counterpart in {target.title}",
            target.way_out,
        )
    for link in links:
        own, there = (module, link.path) if target.respells else of_its_owner(module, link.path)
        yield _Moved(_renamed(own, there, target), own, None if link.relation.arrangement is None else link)
    if not links:
        yield _Moved(_renamed(module, path, target), module, None)


def _renamed(module: Module, path: str, target: Target) -> Module:
    return module._replace(name=target.rename(module, path), path=path, respelled=target.respells)


def _check_names(found: Sequence[Destination], adapter: Adapter) -> None:
    """Raise LoraInspectError if two modules of the output have one name."""
    sources: dict[str, Module] = {}
    for destination in found:
        own = destination.sources[0].module
        other = sources.setdefault(destination.module.name.key, own)
        if other is not own:
            raise RefusedError(
                adapter.checkpoint.path,
                f"{other.name.key} and {own.name.key} would both get the name {destination.module.name.key}",
                "write one of them to a separate file first",
            )


def _joined(moved: Sequence[_Moved], target: Target, adapter: Adapter) -> Destination:
    """Return one module of the output from all its sources."""
    first, *others = moved
    if not others and first.link is None:  # it only gets another name
        return Destination(first.module, (Source(first.source),))
    links = [one.link for one in moved if one.link]
    parts = {link.part for link in links if link.is_whole}
    names = {one.module.name.key for one in moved}
    if others and (len(parts) < len(moved) or len(names) > 1):
        raise RefusedError(
            adapter.checkpoint.path,
            f"{first.source.name.key} and {others[0].source.name.key} both belong to {first.module.path} in "
            f"{target.title}",
            "write one of them to a separate file first",
        )
    for one in moved:
        _check_agreement(one.source, adapter)
    rows, runs = _arranged(links, [covered_shape(one.source) for one in moved]) or (None, ())
    if rows is None:
        shapes = " and ".join(f"{one.source.name.key} {list(covered_shape(one.source))}" for one in moved)
        raise RefusedError(
            adapter.checkpoint.path,
            f"the (out, in) of {shapes} do not show their rows in {first.module.path}",
            f"{target.way_out}, or add the other modules of that layer",
        )
    sources = tuple(Source(one.source, found) for one, found in zip(moved, runs, strict=True))
    alpha = next((one.source.alpha for one in moved if one.source.alpha), None)
    return Destination(first.module._replace(alpha=alpha), sources, rows)


def _check_agreement(module: Module, adapter: Adapter) -> None:
    """Raise LoraInspectError if the tensors of a module are of layers of several shapes."""
    covered = covered_shape(module)
    for whole in (contribution for contribution in module.contributions if contribution.rows is None):
        own = covered_shape(module._replace(contributions=(whole,)))
        if any(None not in sizes and len(set(sizes)) > 1 for sizes in zip(own, covered, strict=True)):
            raise DamagedError(
                adapter.checkpoint.path,
                f"{module.name.key} mixes tensors of a layer of {list(covered)} as (out, in) with tensors of "
                f"one of {list(own)}",
                "fetch the file again, or re-save it with the program that trained it",
            )


def _arranged(links: Sequence[Link], sizes: Sequence[Covered]) -> tuple[int, list[Runs]] | None:
    """Return the number of rows of the links' target and the place of each source's rows in it.

    `sizes` are the (out, in) of the sources. None if these do not determine it, or contradict each other.
    """
    columns = {inputs for _, inputs in sizes if inputs is not None}
    known = [rows for rows, _ in sizes if rows is not None]
    arrangement = links[0].relation.arrangement
    if arrangement is None or len(columns) != 1 or len(known) < len(sizes):
        return None
    (inputs,) = columns
    if not links[0].is_whole:
        runs = arrangement.runs(known[0], inputs)
        own = runs and runs[links[0].part].inverted
        return (own.rows, [own]) if own else None
    told = {arrangement.rows(link.part, rows, inputs) for link, rows in zip(links, known, strict=True)} - {None}
    whole = told.pop() if len(told) == 1 else None
    runs = None if whole is None else arrangement.runs(whole, inputs)
    if whole is None or runs is None:
        return None
    found = [runs[link.part] for link in links]
    return (whole, found) if [one.rows for one in found] == known else None


def are_movable(algorithm: Algorithm, shapes: Shapes) -> bool:
    """Return True if each factor has the rows of the change, or is multiplied by one that has, without a kernel."""
    products = {role: other for role, other in algorithm.rows.items() if other}
    has_kernel = any(len(shapes[role]) > 2 for pair in products.items() for role in pair if role in shapes)
    return not has_kernel and shapes.keys() <= algorithm.rows.keys() | set(products.values())


def are_magnitudes_movable(destination: Destination) -> bool:
    """Return True if the sources' magnitudes form one of the layer: of outputs, of all rows, spelled alike.

    A magnitude of inputs is over all rows, so that only a layer of the same rows in another order keeps it.
    """
    rows = destination.rows
    own = [(c, source.runs) for source in destination.sources for c in source.module.contributions]
    bearing = [(c.magnitude, c.shape[0], runs) for c, runs in own if c.magnitude]
    if rows is None or not bearing:
        return True
    if any(magnitude.axis == INPUT for magnitude, _, _ in bearing):
        return len(bearing) == 1 and bearing[0][1] == rows
    covered = sum(runs.rows if runs else rows for _, _, runs in bearing)
    is_alike = len({magnitude.spelling for magnitude, _, _ in bearing}) == 1
    return is_alike and covered == rows and len(bearing) == sum(c.algorithm.decomposes for c, _ in own)
