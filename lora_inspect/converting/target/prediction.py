"""The adapter that a conversion will write, predicted from names and numbers for programs' rules."""

from collections.abc import Iterator, Sequence
from typing import Any

from lora_inspect import algorithms, schemes
from lora_inspect.algorithms.record import WEIGHT, Algorithm
from lora_inspect.converting.options import ConvertOptions
from lora_inspect.converting.target.key_names import ALPHA, FACTORS, alpha_key, carrier_of, factor_key, magnitude_place
from lora_inspect.converting.target.target_layout import Destination, are_magnitudes_movable, are_movable
from lora_inspect.converting.target.target_program import due_norms, written_algorithm
from lora_inspect.errors import RefusedError
from lora_inspect.fast_namedtuple import make_record
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.maths.dora import OUTPUT, SPELLINGS
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.keys.groups import ModuleGroups, group_equal, likeness_by
from lora_inspect.reading.model.contribution import Contribution, Magnitude, Module
from lora_inspect.reading.peft.peft_config import EMBEDDED_KEY


def predict_output(adapter: Adapter, destinations: Sequence[Destination], options: ConvertOptions) -> Adapter | None:
    """Return the output of the `adapter` before it is written, or None if headers do not determine it.

    They do not if a config will give the scale, or if layers of experts move. The tensors have their output names, but
    no bytes in a file. LoRA that is still to be computed has the ranks 1 and 2 in turn, so that no verdict depends on
    equal ranks. Raises LoraInspectError if rows have to be moved that cannot be.
    """
    if any(carrier_of(one.module) not in (ALPHA, FACTORS) or one.experts for one in destinations):
        return None
    kinds = _Kinds(adapter, options)
    placed = [(one.module, kinds.place_of(one)) for one in destinations]
    firsts = _of_one_rank(kinds.firsts, options) if options.uniform else kinds.firsts
    tensors: dict[str, TensorInfo] = {}
    modules = {module.name.key: _like(firsts[place], module, tensors) for module, place in placed}
    tensors |= {key: adapter.checkpoint.tensors[key] for key in adapter.other_keys}
    metadata = {key: value for key, value in adapter.checkpoint.metadata.items() if key != EMBEDDED_KEY}
    checkpoint = adapter.checkpoint._replace(tensors=tensors, metadata=metadata, config=None, config_path=None)
    likeness = likeness_by(place for _, place in placed)
    return adapter._replace(checkpoint=checkpoint, modules=ModuleGroups(modules, likeness), flags=())


class _Kinds:
    """The kinds of predicted modules by their `firsts`; each other module differs from one of these only in names."""

    def __init__(self, adapter: Adapter, options: ConvertOptions) -> None:
        self._adapter, self._options = adapter, options
        modules = group_equal(adapter.modules)
        self._numbers = dict(zip(modules, modules.likeness.numbers, strict=True))
        self._known: dict[tuple[Any, ...], int] = {}
        self._open_ranks = 0
        self.firsts: list[Module] = []

    def place_of(self, destination: Destination) -> int:
        """Return the place of its kind among the firsts; raise LoraInspectError if its rows cannot be moved."""
        traits, rank = self._traits(destination), self._next_open_rank(destination)
        if traits and rank:
            traits += (rank,)
        if traits in self._known:
            return self._known[traits]
        if not _is_arrangeable(destination, self._options):
            raise RefusedError(self._adapter.checkpoint.path, "the rows of some layer cannot be split or joined")
        self.firsts.append(_module(destination, self._options, rank))
        place = len(self.firsts) - 1
        if traits and _is_plainly_named(destination.sources[0].module):
            self._known[traits] = place
        return place

    def _next_open_rank(self, destination: Destination) -> int | None:
        """Return a rank for the LoRA that is computed for the layer, in turn 1 and 2; None if none is."""
        options = self._options
        if options.algorithm is None and options.base is None:
            return None
        origins = (one for source in destination.sources for one in source.module.contributions)
        if not any(_has_open_rank(one, _written(one, options), options) for one in origins):
            return None
        self._open_ranks += 1
        return 2 - self._open_ranks % 2

    def _traits(self, destination: Destination) -> tuple[Any, ...]:
        """Return all that decides a module that only gets another name, but for name and path; empty for any other."""
        if destination.rows is not None:  # as of all with several sources
            return ()
        module, source = destination.module, destination.sources[0].module
        key = source.name.key
        traits: list[Any] = [self._numbers[key], module.name == source.name, *module.name[:3]]
        for contribution in source.contributions:
            magnitude = contribution.magnitude
            traits += id(contribution.algorithm), magnitude and magnitude.info[1:3]
            for info in contribution.factors.values():
                traits += info.name.removeprefix(key), info.dtype
        return tuple(traits)


def _is_plainly_named(module: Module) -> bool:
    """Return True if the key of each factor is the module's name and a suffix in a registry."""
    return all(
        info.name.removeprefix(module.name.key) in contribution.algorithm.suffixes
        for contribution in module.contributions
        for info in contribution.factors.values()
    )


def _like(first: Module, module: Module, tensors: dict[str, TensorInfo]) -> Module:
    """Return the `first` of a kind under the name of the `module`, and add its tensors to the `tensors`."""
    name = module.name
    if name == first.name:
        tensors |= {info.name: info for info in first.tensors}
        return first
    key, length = name.key, len(first.name.key)

    def named(info: TensorInfo) -> TensorInfo:
        own = key + info.name[length:]
        found = tensors[own] = make_record(TensorInfo, (own, *info[1:]))
        return found

    alpha = first.alpha and named(first.alpha)
    contributions = []
    for _, algorithm, factors, magnitude, *others in first.contributions:
        of_module = {role: named(info) for role, info in factors.items()}
        norms = magnitude and magnitude._replace(info=named(magnitude.info))
        contributions.append(make_record(Contribution, (name, algorithm, of_module, norms, *others)))
    return make_record(Module, (name, tuple(contributions), alpha, None, module.path, module.respelled))


def _of_one_rank(modules: Sequence[Module], options: ConvertOptions) -> list[Module]:
    """Return the modules at one scale and one rank; the factors keep the shapes that they had."""
    own = [contribution for module in modules for contribution in module.contributions]
    rank = options.rank_of_all(one.rank for one in own)
    is_one = options.unit_scale or len({one.scale for one in own}) > 1
    found = []
    for module in modules:
        scales = [(one, 1.0 if is_one else one.scale) for one in module.contributions]
        ranked = [
            one if one.rank is None or scale is None else one._replace(rank=rank, scale=scale, alpha=scale * rank)
            for one, scale in scales
        ]
        found.append(module._replace(contributions=tuple(ranked)))
    return found


def _is_arrangeable(destination: Destination, options: ConvertOptions) -> bool:
    """Return True if the rows of its sources can be joined or split as the layer needs."""
    if destination.rows is None:
        return True
    own = [c for source in destination.sources for c in source.module.contributions]
    moved = [c for c in own if _written(c, options) is c.algorithm and not _becomes_near(c, options)]
    keeps = any(_keeps_magnitude(c, c.algorithm, options) for c in moved)
    return all(are_movable(c.algorithm, c.shapes) for c in moved) and (not keeps or are_magnitudes_movable(destination))


def _becomes_near(origin: Contribution, options: ConvertOptions) -> bool:
    """Return True if the true change, computed with the base, will replace it."""
    return origin.magnitude is not None and bool(options.base) and not options.keep_dora


def _has_open_rank(origin: Contribution, algorithm: Algorithm, options: ConvertOptions) -> bool:
    """Return True if it becomes LoRA of a rank that headers do not tell."""
    return algorithm.has_alpha and (algorithm is not origin.algorithm or _becomes_near(origin, options))


def _keeps_magnitude(origin: Contribution, algorithm: Algorithm, options: ConvertOptions) -> bool:
    is_kept = algorithm.decomposes and not (_becomes_near(origin, options) or options.drop_magnitude)
    return is_kept and origin.magnitude is not None


def _module(destination: Destination, options: ConvertOptions, open_rank: int | None) -> Module:
    """Return the module of the output; `open_rank` is the rank of LoRA whose rank headers do not tell."""
    module = destination.module
    own = [c for source in destination.sources for c in source.module.contributions]
    # Parts that are put together become one change of each kind.
    rows = destination.rows
    found = {one.algorithm.name: one for one in (_contribution(module, c, rows, options, open_rank) for c in own)}
    contributions = tuple(found.values())
    has_alpha = carrier_of(module) == ALPHA and any(_has_alpha(module, one) for one in contributions)
    alpha = TensorInfo(alpha_key(module), "F32", (), "", 0, 4) if has_alpha else None
    return module._replace(contributions=contributions, alpha=alpha, rslora_flag=None)


def _has_alpha(module: Module, contribution: Contribution) -> bool:
    """Return True if an alpha is written: one that scales, an existing one, or one for renamed whole factors."""
    algorithm = contribution.algorithm
    is_asked = module.respelled and algorithm.settings is None
    return algorithm.has_alpha and (contribution.rank is not None or module.alpha is not None or is_asked)


def _contribution(
    module: Module, origin: Contribution, rows: int | None, options: ConvertOptions, open_rank: int | None
) -> Contribution:
    algorithm = _written(origin, options)
    factors = {
        role: info._replace(
            name=factor_key(module, origin, algorithm, role),
            shape=(rows, *info.shape[1:]) if rows is not None and role in algorithm.rows else info.shape,
        )
        for role, info in _roles(origin, algorithm)
    }
    is_scaled = algorithm is origin.algorithm or algorithm.has_alpha
    scale = origin.scale if carrier_of(module) == ALPHA and is_scaled else 1.0
    is_kept = _keeps_magnitude(origin, algorithm, options)
    rank = origin.rank if algorithm is origin.algorithm else None
    if _has_open_rank(origin, algorithm, options):
        rank = open_rank
    return origin._replace(
        module=module.name,
        algorithm=algorithm,
        factors=factors,
        rows=None,
        rank=rank,
        magnitude=_magnitude(module, origin, rows, options) if is_kept else None,
        alpha=scale * rank if rank and scale is not None else origin.alpha,
        scale=scale,
        rslora=False,
    )


def _written(origin: Contribution, options: ConvertOptions) -> Algorithm:
    writing = schemes.by_name(options.scheme).writing if options.scheme else None
    algorithm = written_algorithm(origin, writing, options)
    instead = writing.instead.get(algorithm.name) if writing else None
    return algorithms.by_name(instead) if instead else algorithm


def _roles(origin: Contribution, algorithm: Algorithm) -> Iterator[tuple[str, TensorInfo]]:
    """Yield the roles of the future factors, of whatever shape."""
    if algorithm is origin.algorithm:
        yield from origin.factors.items()
        return
    info = next(iter(origin.factors.values()))
    out, inputs = (size or 1 for size in (*origin.features,))
    shapes = {"down": (1, inputs), "up": (out, 1)}
    whole = (out, inputs) if algorithm.parameter == WEIGHT else (out,)
    yield from ((role, info._replace(shape=shapes.get(role, whole))) for role in algorithm.marks or ("down", "up"))


def _magnitude(module: Module, origin: Contribution, rows: int | None, options: ConvertOptions) -> Magnitude | None:
    magnitude = origin.magnitude
    if magnitude is None:
        return None
    key, suffix, shape = magnitude_place(module, origin, magnitude, rows)
    norms = (due_norms(options) if magnitude.axis == OUTPUT else None) or magnitude.spelling.norms
    spelling = SPELLINGS[suffix]._replace(norms=norms)
    return Magnitude(magnitude.info._replace(name=key, shape=shape), spelling, magnitude.axis)
