"""The modules that the difference of two models becomes, under the names of an adapter.

The difference is named as an adapter would be that changes every layer: its modules have the layers' shapes, and go
where `convert` would put them. Rows of a fused layer become modules of their own, and parts become a fused module, as
the layout of the names has it. A tensor without a place there is left out by its name.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy
from numpy.typing import NDArray

from lora_inspect import schemes
from lora_inspect.algebra.alignment import OutputModule
from lora_inspect.algebra.extracting.model_layers import Layer, ModelLayers, as_adapter, layers_of
from lora_inspect.algebra.extracting.model_pair import ModelPair, PairedTensor
from lora_inspect.algebra.options import ExtractRequest
from lora_inspect.algebra.output.output_modules import PlannedModule
from lora_inspect.algorithms.full import DIFFERENCE
from lora_inspect.algorithms.record import BIAS, WEIGHT
from lora_inspect.architectures.detection import Detection
from lora_inspect.architectures.patterns import layout_patterns, pattern_of
from lora_inspect.architectures.rows import Runs
from lora_inspect.converting.options import ConvertOptions
from lora_inspect.converting.target.key_names import factor_key
from lora_inspect.converting.target.target_layout import Destination, Target, destinations
from lora_inspect.converting.target.target_names import scheme_target
from lora_inspect.converting.target.target_program import check_loadable, for_loader, scheme_for
from lora_inspect.errors import LoraInspectError, RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.matching.module_map import module_names
from lora_inspect.programs import PROGRAMS
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.ambiguous_options import ModuleFilter
from lora_inspect.reading.model.contribution import Contribution, Module
from lora_inspect.schemes.dotted import DOTTED
from lora_inspect.schemes.kohya import KOHYA
from lora_inspect.schemes.peft import PEFT

Rows = NDArray[numpy.int64]

# The beginning of the title of an algorithm that adds differences.
_FULL = "a full "


class Part(NamedTuple):
    """Rows of a tensor, as it is stored, in their order, and their places in the output; without any all of them."""

    tensor: PairedTensor
    rows: Rows | None
    places: Rows | None


class Extracted(NamedTuple):
    """A tensor or the factors of a module in the output, made of `parts`.

    `key` is the name of the module, and of a difference that of its tensor. `shape` is (out, in, *kernel) of a weight;
    a weight that is `turned` is stored as (in, out).
    """

    output: OutputModule
    key: str
    parts: tuple[Part, ...]
    shape: tuple[int, ...]
    turned: bool = False

    @property
    def planned(self) -> PlannedModule:
        """The module as an output has it."""
        most = min(self.shape[0], prod(self.shape[1:]))
        return PlannedModule(self.output, self.shape, False, False, most, 0, {}, {})


@dataclass(frozen=True, slots=True)
class Naming:
    """The place of each tensor of two models under the names of an output.

    `adapter` is the difference under the base's names of its modules. `left_out` are tensors without a place in the
    output, with the reason, and `unasked` the names that the options leave out. `target` are the options of a
    conversion to the names.
    """

    adapter: Adapter
    scheme: str
    matrices: tuple[Extracted, ...]
    vectors: tuple[Extracted, ...]
    left_out: Mapping[str, str]
    unasked: tuple[str, ...]
    target: ConvertOptions


def named(pair: ModelPair, request: ExtractRequest) -> Naming:
    """Return the modules of the output in the order of the base.

    Raises LoraInspectError where no names are known for the family, where several fit, and for a pattern or a
    component that fits nothing.
    """
    found = layers_of(pair, request.architecture)
    left_out = dict(found.left_out)
    layers, unasked = _asked(as_adapter(pair, found, found.layers), found.layers, request)
    scheme = _scheme(as_adapter(pair, found, layers), found, request)
    target = _target(pair, scheme, found.families, request)
    if scheme != PEFT.name or found.is_image:
        for layer in (layer for layer in layers if layer.is_embedding):
            left_out[layer.tensor.name] = f"{scheme} names have no factors of an embedding"
        layers = [layer for layer in layers if not layer.is_embedding]
    adapter = as_adapter(pair, found, layers)
    matrices, vectors = _Named(adapter, found.families, scheme, request, layers, left_out).matrices_and_vectors()
    return Naming(adapter, scheme, matrices, vectors, left_out, unasked, target)


def _asked(adapter: Adapter, layers: Sequence[Layer], request: ExtractRequest) -> tuple[list[Layer], tuple[str, ...]]:
    """Return the layers that the options choose, and the names of the other tensors."""
    path = adapter.checkpoint.path
    present = sorted({layer.component for layer in layers})
    if absent := next((one for one in request.only if one not in present), None):
        raise RefusedError(path, f"it has no component {absent}", f"choose from {', '.join(present)}")
    choice = ModuleFilter(request.include, request.exclude)
    without: Collection[str] = ()
    if choice.says:
        without = set(choice.left_out({path: module_names(adapter, None)})[path])
    chosen = [
        layer for layer in layers if (not request.only or layer.component in request.only) and layer.key not in without
    ]
    kept = {layer.tensor.name for layer in chosen}
    return chosen, tuple(dict.fromkeys(one.tensor.name for one in layers if one.tensor.name not in kept))


def _scheme(adapter: Adapter, found: ModelLayers, request: ExtractRequest) -> str:
    """Return the requested scheme, or that of most programs: kohya's for images, and PEFT's for the rest."""
    if request.to in PROGRAMS:
        # Layers that no table lists do not show the family of a file of adapters.
        known = frozenset(pattern for one in found.families for pattern in layout_patterns(one.layout.paths, "."))
        listed = {key: one for key, one in adapter.modules.items() if pattern_of(one.name.body, ".") in known}
        whole = adapter._replace(modules=listed or adapter.modules)
        return scheme_for(whole, ConvertOptions(program=request.to)) or PEFT.name
    if request.to is not None:
        return request.to
    writing = KOHYA.writing
    has_kohya = writing is not None and all(writing.layout(one.architecture) is not None for one in found.families)
    return KOHYA.name if found.is_image and has_kohya else PEFT.name


def _target(pair: ModelPair, scheme: str, families: Sequence[Detection], request: ExtractRequest) -> ConvertOptions:
    """Return the options of a conversion to the requested names or program.

    Raises LoraInspectError if the rule gives each module another rank, and for llama.cpp: its files need its name of
    the model.
    """
    record = schemes.by_name(scheme)
    program = PROGRAMS.get(request.to or "")
    if record.alpha_of_all:
        raise RefusedError(
            pair.tuned.path,
            f"{request.to} files name the model as llama.cpp does, which no weights tell",
            f"extract with --to peft, then convert that with `lora-inspect convert --to {request.to}`",
        )
    target = ConvertOptions(scheme=scheme)
    if program is not None:
        target = for_loader(target, program, families)
    if (target.uniform or record.absent_alpha == "scale") and request.rank is None:
        raise RefusedError(
            pair.tuned.path,
            f"{request.to} takes one rank for all modules, but the rule gives each a rank of its own",
            "give --rank N",
        )
    return target


class _Named:
    """The modules of the difference in the names of a scheme."""

    def __init__(
        self,
        adapter: Adapter,
        families: Sequence[Detection],
        scheme: str,
        request: ExtractRequest,
        layers: Sequence[Layer],
        left_out: dict[str, str],
    ) -> None:
        program = request.to if request.to in PROGRAMS else None
        self._options = ConvertOptions(scheme=scheme, program=program)
        self._families, self._left_out = families, left_out
        self._layers = {(layer.key, layer.parameter): layer for layer in layers}
        self._scheme = schemes.by_name(scheme)
        self._adapter = adapter._replace(modules=self._loadable(adapter))

    def matrices_and_vectors(self) -> tuple[tuple[Extracted, ...], tuple[Extracted, ...]]:
        """Return the modules with factors, and the differences of vectors."""
        if not self._adapter.modules:
            return (), ()
        target = scheme_target(self._adapter, self._families, self._scheme, self._options)
        matrices, vectors = list[Extracted](), list[Extracted]()
        for destination in destinations(self._placeable(target), target, self._families):
            for contribution in destination.module.contributions:
                parameter = contribution.algorithm.parameter
                own = WEIGHT if parameter not in (WEIGHT, BIAS) else parameter
                if found := self._extracted(destination, contribution, own):
                    (vectors if DIFFERENCE in contribution.factors else matrices).append(found)
        return tuple(matrices), tuple(vectors)

    def _loadable(self, adapter: Adapter) -> dict[str, Module]:
        """Return the modules with only the contributions that programs of the names load; the others are left out."""
        refused: dict[str, str | None] = {}

        def is_loaded(one: Contribution) -> bool:
            kind = one.algorithm.name
            if kind not in refused:
                # Names of another scheme: the programs of its own ones may pass over keys that they do not know.
                foreign = one._replace(module=one.module._replace(scheme=DOTTED.name))
                module = adapter.modules[one.module.key]._replace(contributions=(foreign,))
                alone = adapter._replace(modules={one.module.key: module}, unclaimed=(), embeddings=())
                refused[kind] = _refusal(lambda: check_loadable(alone, self._scheme, self._options))
            if refused[kind]:
                self._leave_out(one, f"{self._scheme.name} names have no {one.algorithm.title.removeprefix(_FULL)}")
            return not refused[kind]

        kept = {
            key: module._replace(contributions=tuple(filter(is_loaded, module.contributions)))
            for key, module in adapter.modules.items()
        }
        return {key: module for key, module in kept.items() if module.contributions}

    def _placeable(self, target: Target) -> Adapter:
        """Return the adapter without the modules that have no place in the target, which are left out."""
        kept = {}
        for key, module in self._adapter.modules.items():
            alone = self._adapter._replace(modules={key: module})
            if _refusal(lambda alone=alone: destinations(alone, target, self._families)) is None:  # type: ignore[misc]
                kept[key] = module
                continue
            for contribution in module.contributions:
                self._leave_out(contribution, f"{target.title} have no place for it")
        return self._adapter._replace(modules=kept)

    def _leave_out(self, contribution: Contribution, reason: str) -> None:
        parameter = contribution.algorithm.parameter
        layer = self._layers[contribution.module.key, BIAS if parameter == BIAS else WEIGHT]
        self._left_out[layer.tensor.name] = reason

    def _extracted(self, destination: Destination, contribution: Contribution, parameter: str) -> Extracted | None:
        sources = [
            (self._layers[source.module.name.key, parameter], source.runs)
            for source in destination.sources
            if (source.module.name.key, parameter) in self._layers
        ]
        layer = sources[0][0]
        shape = layer.shape if destination.rows is None else (destination.rows, *layer.shape[1:])
        is_moved = len(sources) > 1 or any(runs is not None for _, runs in sources)
        embedding = contribution.algorithm.transposed is True
        if is_moved and (layer.turned or embedding):
            self._leave_out(contribution, "its rows are stored as columns")
            return None
        module, key = destination.module, destination.module.name.key
        if DIFFERENCE in contribution.factors:
            key = factor_key(module, contribution, contribution.algorithm, DIFFERENCE)
        if embedding:
            shape = layer.tensor.shape[::-1]
        parts = tuple(_part(one, runs) for one, runs in sources)
        own = module._replace(contributions=(contribution,))
        return Extracted(OutputModule(own, ()), key, parts, shape, layer.turned or embedding)


def _refusal(call: Callable[[], object]) -> str | None:
    """Return the sentence with which a call refuses; None if it does not."""
    try:
        call()
    except LoraInspectError as why:
        return str(why)
    return None


def _part(layer: Layer, runs: Runs | None) -> Part:
    """Return the rows of a layer's tensor, in their order, and where they go in the output."""
    if layer.runs is None and runs is None:
        return Part(layer.tensor, None, None)
    rows, places = _pairs(layer.runs or Runs(0, layer.tensor.shape[0]))
    if runs is not None:
        there, own = _pairs(runs)
        moved = numpy.full(int(places.max()) + 1, -1)
        moved[own] = there
        places = moved[places]
    order = numpy.argsort(rows)[places[numpy.argsort(rows)] >= 0]
    return Part(layer.tensor, rows[order], places[order])


def _pairs(runs: Runs) -> tuple[Rows, Rows]:
    """Return the rows of the one weight, and the same ones in the other."""
    one = [numpy.arange(first, last) for first, last, _ in runs.each()]
    other = [numpy.arange(source, source + last - first) for first, last, source in runs.each()]
    return numpy.concatenate(one), numpy.concatenate(other)
