"""Which modules the output has in another layout of its family, and whose rows each of them is made of.

What relates the layouts is the correspondence of the family, as where a merge folds an adapter of one layout into a
base of the other.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lora_inspect import schemes
from lora_inspect.architectures.correspondence import Correspondence, Link
from lora_inspect.architectures.detection import Detection
from lora_inspect.architectures.patterns import pattern_of, patterns_of
from lora_inspect.architectures.record import Architecture, Layout
from lora_inspect.architectures.rows import Runs
from lora_inspect.errors import LoraInspectError
from lora_inspect.listing import listed
from lora_inspect.matching.orientation import Covered, covered_shape
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.base_names import EXPERTS
from lora_inspect.reading.contribution import Module
from lora_inspect.reading.identify import adapter_candidates, certain_correspondence, described
from lora_inspect.reading.paths import with_paths
from lora_inspect.schemes.comfyui import COMFYUI
from lora_inspect.schemes.diffusers import DIFFUSERS
from lora_inspect.schemes.record import MODEL, ModuleName

# Layouts that have names of their own, and what modules are in a family that only fuses some of them.
NAMED = (ORIGINAL, OF_DIFFUSERS) = ("original", "diffusers")
ARRANGED = (FUSED, SPLIT) = ("fused", "split")
LAYOUTS = (*NAMED, *ARRANGED)


class Source(NamedTuple):
    """A module of the input; `runs` are its rows in the module of the output, None where it has all in their order."""

    module: Module
    runs: Runs | None = None


class OneLayer(NamedTuple):
    """A layer of one `expert`, and where its rows are in the matrix of its layers, which is (in, out) if `turned`."""

    expert: int
    runs: Runs
    turned: bool


class ManyLayers(NamedTuple):
    """A parameter of all experts, each with a matrix of so many `rows`.

    `places` are by source its expert, the number of its part of that one's matrix, and its rows there.
    """

    experts: int
    rows: int
    places: tuple[tuple[int, int, Runs], ...]


class Destination(NamedTuple):
    """A module of the output as it is named there, what it is made of, and its number of rows where they are moved.

    `experts` says how layers of experts are taken apart or put together; None where they are not.
    """

    module: Module
    sources: tuple[Source, ...]
    rows: int | None = None
    experts: OneLayer | ManyLayers | None = None


def destinations(adapter: Adapter, layout: str | None) -> tuple[Destination, ...]:
    """The modules of the output in the layout called `layout`; without any as they are in the input.

    Raises LoraInspectError where the family is unknown, or relates no layouts, and for a module without a counterpart.
    """
    if layout is None:
        return tuple(Destination(module, (Source(module),)) for module in adapter.modules.values())
    families = adapter_candidates(adapter)
    target = _target(adapter, families, layout)
    named = with_paths(adapter, families)
    moved: dict[tuple[str, str], list[_Moved]] = defaultdict(list)
    for module in named.modules.values():
        for one in _moves(module, target, adapter):
            name, path = one.module.name, one.module.path
            moved[name.component, path if name.component == MODEL and path else name.key].append(one)
    return tuple(_joined(found, adapter) for found in moved.values())


class _Target(NamedTuple):
    """The layout that is asked for: `paths` are the patterns of its modules where it has names of its own.

    `possible` are the correspondences of all families that the file may be of.
    """

    family: Architecture
    name: str
    layout: Layout | None
    correspondence: Correspondence
    possible: tuple[Correspondence, ...]
    paths: frozenset[str] = frozenset()

    def links(self, path: str) -> list[Link]:
        """What leads from the module at `path` into the layout."""
        return self._links(self.correspondence, path)

    def has(self, path: str) -> bool:
        """Whether the layout has a module at `path`.

        One without names of its own has what is there, but for what is fused or split in a family that it may be of.
        """
        if self.layout is None:
            return not any(self._links(one, path) for one in self.possible)
        return pattern_of(path, ".") in self.paths

    def _links(self, correspondence: Correspondence, path: str) -> list[Link]:
        links = correspondence.links(path)
        if self.layout is None:
            return [
                link
                for link in links
                if link.relation.arrangement is not None and link.is_whole == (self.name == FUSED)
            ]
        return [link for link in links if self.has(link.path)]


class _Moved(NamedTuple):
    """One module on its way into another one, by the link that leads there; None where only its name changes."""

    module: Module
    source: Module
    link: Link | None


def _target(adapter: Adapter, families: Sequence[Detection], layout: str) -> _Target:
    file = adapter.checkpoint.path
    if not families:
        raise LoraInspectError(
            f"{file}: the names and shapes of its modules are of no model family that is known here, so --layout has "
            "nothing to go by; leave it out."
        )
    correspondence = certain_correspondence(families)
    family = families[0].architecture
    named = {one.name: one for one in family.layouts if one.name in NAMED}
    choices: Sequence[str] = list(named) if len(named) > 1 else ARRANGED
    if not correspondence.relations:
        raise LoraInspectError(
            f"{file}: it is of {described(families)}, of which no other layout is known here; leave --layout out."
        )
    if layout not in choices:
        raise LoraInspectError(
            f"{file}: it is of {described(families)}, whose layouts are {listed(choices, 'and')}; choose one of them."
        )
    found = named.get(layout)
    possible = tuple(one.architecture.correspondence for one in families)
    paths = patterns_of(found.paths, ".") if found else frozenset[str]()
    return _Target(family, layout, found, correspondence, possible, paths)


def _moves(module: Module, target: _Target, adapter: Adapter) -> Iterator[_Moved]:
    """Where a module goes: into one or into several of the target layout, or nowhere."""
    if module.name.component in EXPERTS and target.name == ORIGINAL:
        raise LoraInspectError(
            f"{adapter.checkpoint.path}: {module.name.key} is of a second expert, which the names of the "
            f"{target.name} layout do not tell from the first; write its modules to a file of their own, named "
            "as those of the first."
        )
    if module.name.component != MODEL:
        yield _Moved(module, module, None)
        return
    if module.path is None:
        raise LoraInspectError(
            f"{adapter.checkpoint.path}: {module.name.key} is no module of {target.family.title}, so what it is in "
            f"the {target.name} layout is unknown; leave --layout out."
        )
    links = target.links(module.path)
    if not links and not target.has(module.path):
        raise LoraInspectError(
            f"{adapter.checkpoint.path}: {module.path} of {target.family.title} has no counterpart in the "
            f"{target.name} layout that is known here; leave --layout out."
        )
    for link in links:
        yield _Moved(_renamed(module, link.path, target), module, None if link.relation.arrangement is None else link)
    if not links:
        yield _Moved(_renamed(module, module.path, target), module, None)


def _renamed(module: Module, path: str, target: _Target) -> Module:
    """The module under the name that the readers of its scheme have for `path` in the target layout."""
    name = module.name
    scheme, prefix = schemes.by_name(name.scheme), name.prefix
    if target.layout is None:
        return module._replace(name=name._replace(body=scheme.module(path, "")), path=path)
    if scheme.flat and prefix.rstrip("_") in {layout.kohya_prefix.rstrip("_") for layout in target.family.layouts}:
        prefix = target.layout.kohya_prefix
    elif scheme in (COMFYUI, DIFFUSERS) or not scheme.suffixes:
        # ComfyUI's generic names are those of its own model, which has the original layout.
        scheme = DIFFUSERS if target.layout.name == OF_DIFFUSERS else COMFYUI
        prefix = f"{target.family.pipeline_name}." if scheme is DIFFUSERS else "diffusion_model."
    body = scheme.module(path, "")
    return module._replace(name=ModuleName(scheme.name, name.component, prefix, body, scheme.flat), path=path)


def _joined(moved: Sequence[_Moved], adapter: Adapter) -> Destination:
    """One module of the output from all that goes into it."""
    first, *others = moved
    links = [one.link for one in moved if one.link]
    parts = {link.part for link in links if link.is_whole}
    names = {one.module.name.key for one in moved}
    if others and (len(parts) < len(moved) or len(names) > 1):
        raise LoraInspectError(
            f"{adapter.checkpoint.path}: {first.source.name.key} and {others[0].source.name.key} are both of "
            f"{first.module.path} in the layout that is asked for; write one of them to a file of its own first."
        )
    if not links:
        return Destination(first.module, (Source(first.source),))
    for one in moved:
        _check_agreement(one.source, adapter)
    rows, runs = _arranged(links, [covered_shape(one.source) for one in moved]) or (None, ())
    if rows is None:
        shapes = " and ".join(f"{one.source.name.key} {list(covered_shape(one.source))}" for one in moved)
        raise LoraInspectError(
            f"{adapter.checkpoint.path}: the (out, in) of {shapes} do not tell which rows of {first.module.path} they "
            "are; leave --layout out, or add the modules beside them."
        )
    sources = tuple(Source(one.source, found) for one, found in zip(moved, runs, strict=True))
    alpha = next((one.source.alpha for one in moved if one.source.alpha), None)
    return Destination(first.module._replace(alpha=alpha), sources, rows)


def _check_agreement(module: Module, adapter: Adapter) -> None:
    """Raises LoraInspectError where the tensors of a module are of layers of several shapes."""
    covered = covered_shape(module)
    for whole in (contribution for contribution in module.contributions if contribution.rows is None):
        own = covered_shape(module._replace(contributions=(whole,)))
        if any(None not in sizes and len(set(sizes)) > 1 for sizes in zip(own, covered, strict=True)):
            raise LoraInspectError(
                f"{adapter.checkpoint.path}: {module.name.key} has tensors of a layer of {list(covered)} as (out, in) "
                f"and of one of {list(own)}; fetch the file again, or write it anew with the program that trained it."
            )


def _arranged(links: Sequence[Link], sizes: Sequence[Covered]) -> tuple[int, list[Runs]] | None:
    """How many rows the module has that the links lead to, and where those of each source are in it.

    `sizes` are the (out, in) of the sources. None where these do not tell it, or contradict each other.
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
