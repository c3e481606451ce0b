"""The match of contributions with base weights: the base's names, in the adapter's spelling.

A weight can take a change if its codec and its shape allow it. The match also gives the rows of the tensors that a
contribution changes, and the reasons that keep it from being exact there.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from lora_inspect.algorithms import full
from lora_inspect.algorithms.lora import other_than
from lora_inspect.algorithms.record import WEIGHT
from lora_inspect.architectures import text_encoders
from lora_inspect.architectures.rows import Runs
from lora_inspect.errors import RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.matching.module_map import Home, find_homes, layouts_of
from lora_inspect.matching.orientation import UNANSWERED, Answers, Covered, Layer, Orientation, covered_shape, orient
from lora_inspect.matching.placement import Place, Placement, Turns, of_all, of_one, stands_turned, turned
from lora_inspect.maths import dora
from lora_inspect.maths.dora import INPUT
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.base.base_codecs import BaseCodecs
from lora_inspect.reading.base.base_names import BaseModule, is_weight
from lora_inspect.reading.identify import adapter_candidates, base_candidates, described, may_be_one
from lora_inspect.reading.model.contribution import Contribution, Module
from lora_inspect.reading.pipeline import chosen


def check_place(placed: Placement, adapter: Adapter, base: Checkpoint, base_codecs: BaseCodecs) -> None:
    """Raise LoraInspectError if the contribution cannot be folded into the place."""
    contribution, place, _ = placed
    target = place.target
    base_codecs.of(target)
    module = adapter.modules[contribution.module.key]
    name = module.name.key
    if contribution.rows is None:
        wrong = contribution.formula.misfit(contribution.shapes, placed.whole)
        ours = f"{name} {wrong}"
    else:
        covered = tuple(size or 0 for size in covered_shape(module))
        wrong = other_than(covered, place._replace(runs=None).shape)
        ours = f"the slices of {name} cover {list(covered)}"
    if wrong:
        raise RefusedError(
            adapter.checkpoint.path,
            f"{ours}, but {target.name} of {base.path} has {list(base.tensors[target.name].shape)}",
            _difference(adapter, base),
        )
    placed.check_groups()
    magnitude = contribution.magnitude
    # Factors of a flattened kernel do not tell how many inputs there are.
    if magnitude and magnitude.axis == INPUT and magnitude.info.numel != place.shape[1]:
        raise RefusedError(
            adapter.checkpoint.path,
            f"{magnitude.info.name} is a magnitude of {magnitude.info.numel} inputs, but {target.name} of {base.path} "
            f"has {place.shape[1]}",
            _difference(adapter, base),
        )


def _difference(adapter: Adapter, base: Checkpoint) -> str:
    """Return the reason that shapes do not match, if the names and widths show it."""
    ours, theirs = adapter_candidates(adapter), base_candidates(base)
    if ours and theirs and not may_be_one(ours, theirs):
        return f"use a base of {described(ours)}, as this one is of {described(theirs)}"
    return "use a base of the adapter's model and size"


class Landing(NamedTuple):
    """The places where a contribution lands, and their rows in total."""

    places: tuple[Place, ...]
    rows: int

    def of_expert(self, experts: int) -> tuple[int, int]:
        """Return (d1, d2) of the matrix of one expert; all experts have equally many rows."""
        return self.rows // experts, self.places[0].target.shape[1]


def layers_of(home: Home, base: Checkpoint) -> Iterator[Layer]:
    """Yield the weights of a home that are matrices or kernels which its module changes."""
    if not any(contribution.algorithm.parameter == WEIGHT for contribution in home.module.contributions):
        return
    for one in (one for one in home.found if one.expert is None and one.single is None):
        weight = base.tensors.get(one.tensor(WEIGHT))
        if weight is not None and (is_weight(weight) or _is_of_a_layer(weight, home)):
            yield Layer(home.module, weight, _covered_of(home, one, weight))


def _is_of_a_layer(parameter: TensorInfo, home: Home) -> bool:
    """Return True if a matrix without the name `.weight` belongs to a Linear layer that the module changes.

    A difference or a replacement has the orientation of the parameter if no program uses the parameter as a layer.
    """
    changes = (one for one in home.module.contributions if one.algorithm.parameter == WEIGHT)
    return text_encoders.is_open_clip_projection(parameter.name) or any(
        not one.algorithm.replaces and full.DIFFERENCE not in one.factors for one in changes
    )


def land(
    contribution: Contribution, home: Home, base: Checkpoint, orientations: dict[str, Orientation]
) -> Landing | None:
    """Return the places of a contribution; None if a layer of its home lacks the parameter that it changes.

    One that is optional lands where the parameter is there. Raises LoraInspectError where it cannot be exact there.
    """
    targets = [base.tensors.get(one.tensor(contribution.algorithm.parameter)) for one in home.found]
    known = [target for target in targets if target is not None]
    if not known or (len(known) < len(targets) and not contribution.is_optional):
        return None
    one = home.found[0]
    is_parameter = one.parameter and (one.piece is not None or contribution.shape != known[0].shape)
    if contribution.algorithm.experts or one.expert is not None or is_parameter or one.single is not None:
        return _land_on_experts(contribution, home, base)
    if home.found[0].piece is None:
        own = contribution.rows and Runs(contribution.rows[0], contribution.rows[1] - contribution.rows[0])
        place = Place(known[0], own or None, _is_transposed(contribution, known[0], orientations))
        if contribution.formula.seen:
            place = place._replace(seen=base.tensors.get(one.tensor(WEIGHT)))
            if place.seen is None:
                return None
        return Landing((place,), place.shape[0] if place.shape else 1)
    runs = _runs(home, base, orientations)
    places = (
        Place(target, own, _is_transposed(contribution, target, orientations))
        for target, own in zip(targets, runs, strict=True)
        if target is not None
    )
    landing = Landing(tuple(places), sum(each.rows for each in runs))
    _check_exact(contribution, home, landing, base)
    return landing


def _land_on_experts(contribution: Contribution, home: Home, base: Checkpoint) -> Landing:
    """Return the rows of one expert in the parameter of all of them, or the rows of all."""
    one = home.found[0]
    if one.expert is not None and not contribution.algorithm.experts:
        found = of_one(home, one.expert, base)
    elif contribution.algorithm.experts and one.expert is None:
        found = of_all(home, contribution.algorithm.experts, base)
    else:
        raise RefusedError(_other_factors(contribution, home, base))
    if found is None:
        rows, inputs = base.tensors[one.tensor(WEIGHT)].shape[-2:]
        raise RefusedError(_other_rows(home, [(rows, inputs)], base))
    landing = Landing(*found)
    _check_exact(contribution, home, landing, base)
    return landing


def _other_factors(contribution: Contribution, home: Home, base: Checkpoint) -> str:
    return (
        f"{next(iter(contribution.factors.values())).file}: {home.module.name.key} has the factors of "
        f"{contribution.algorithm.experts or 1} layers, but they do not change {home.found[0].path} of "
        f"{base.path}; put the adapter_config.json that was saved with the adapter next to it."
    )


def _is_transposed(contribution: Contribution, target: TensorInfo, decided: dict[str, Orientation]) -> bool:
    """Return True if the base stores the tensor that the contribution changes as (in, out)."""
    if contribution.algorithm.transposed is not None:
        return contribution.algorithm.transposed
    return target.name in decided and decided[target.name].transposed


def _covered_of(home: Home, one: BaseModule, weight: TensorInfo) -> Covered:
    """Return (out, in) of a weight of the base, as far as the module that changes it determines them."""
    covered = covered_shape(home.module)
    if one.piece is None:
        return covered
    for rows, inputs, *_ in (weight.shape, weight.shape[::-1]):
        runs = None if one.piece.of_whole else one.piece.arrangement.runs(rows, inputs)
        if covered[1] in (None, inputs) and (runs is None or covered[0] in (None, runs[one.piece.part].rows)):
            return rows, inputs
    return weight.shape[0], weight.shape[1]


def _runs(home: Home, base: Checkpoint, orientations: dict[str, Orientation]) -> list[Runs]:
    """Return, for each layer of a home, the mapping between its rows and the module's rows."""
    sizes = [_size(one, base, orientations) for one in home.found]
    rows, inputs = sum(rows for rows, _ in sizes), sizes[0][1]
    found: list[Runs] = []
    for one, (own_rows, _) in zip(home.found, sizes, strict=True):
        piece = one.piece
        arranged = piece.arrangement.runs(rows, inputs) if piece else None
        if piece is None or arranged is None or (piece.of_whole and arranged[piece.part].rows != own_rows):
            raise RefusedError(_other_rows(home, sizes, base))
        runs = arranged[piece.part]
        found.append(runs.inverted if piece.of_whole else runs)
    return found


def _other_rows(home: Home, sizes: Sequence[tuple[int, int]], base: Checkpoint) -> str:
    shapes = ", ".join(f"{one.path} has {list(size)}" for one, size in zip(home.found, sizes, strict=False))
    return (
        f"{base.path}: {shapes} as (out, in), but {home.module.name.key} has other rows in this layout; use a "
        "base in the adapter's layout."
    )


def _size(one: BaseModule, base: Checkpoint, orientations: dict[str, Orientation]) -> tuple[int, int]:
    """Return (out, in) of a layer's weight."""
    name = one.tensor(WEIGHT)
    shape = base.tensors[name].shape if name in base.tensors else (0, 0)
    decided = orientations.get(name)
    return (shape[1], shape[0]) if decided and decided.transposed else (shape[0], shape[1])


def _check_exact(contribution: Contribution, home: Home, landing: Landing, base: Checkpoint) -> None:
    name, file = contribution.module.key, next(iter(contribution.factors.values())).file
    paths = " and ".join(one.path for one in home.found)
    if contribution.formula.seen:
        raise RefusedError(
            file,
            f"{name} ({contribution.algorithm.title}) changes a bias depending on the weight, but {base.path} "
            f"has both in {paths}",
            "use a base in the adapter's layout",
        )
    if contribution.rows is not None:
        raise RefusedError(
            file,
            f"{name} is in slices, but {base.path} has its rows in {paths}",
            "convert the adapter first to join them",
        )
    if len(landing.places) > 1 and contribution.magnitude and contribution.magnitude.axis == dora.INPUT:
        raise RefusedError(
            file,
            f"{name} has a magnitude of inputs, and its norm covers all of its rows, but {base.path} has them "
            f"in {paths}",
            "use a base in the adapter's layout",
        )


@dataclass(frozen=True, slots=True)
class Matching:
    """Contributions by the base tensor that they change, each with its place there.

    `unmatched` are the modules without a target. `partial` are homes of modules that the base has only in part.
    `lacking` are layers that lack the tensor that their module changes. `left_out` are modules of other components than
    requested. `absent` are contributions to a parameter that their layer lacks. `orientations` give by target the
    storage of each Linear weight, and its source.
    """

    targets: dict[str, list[Placement]]
    unmatched: tuple[Module, ...]
    partial: tuple[Home, ...] = ()
    left_out: tuple[Module, ...] = ()
    absent: tuple[Contribution, ...] = ()
    orientations: dict[str, Orientation] = field(default_factory=dict)
    lacking: tuple[Home, ...] = ()


def match(
    adapter: Adapter,
    base: Checkpoint,
    only: Collection[str] = (),
    transposed: Answers = UNANSWERED,
    without: Collection[str] = (),
) -> Matching:
    """Find the targets of every module of the adapter, only of the components `only` if some are named.

    Modules with keys in `without` are ignored.

    `transposed` gives by globs the storage of square weights that the evidence leaves open. Raises LoraInspectError if
    a module matches two of the base or a tensor of another shape or kind, if it cannot be exact in the base's layout,
    or if an orientation stays open.
    """
    modules, left_out = chosen(adapter, only, without)
    families, correspondence = layouts_of(adapter, base, modules)
    homes = find_homes(adapter, base, modules, correspondence)
    layers = [layer for home in homes.complete for layer in layers_of(home, base)]
    orientations = orient(layers, base, [family.layout for family in families], transposed)
    targets: dict[str, list[Placement]] = defaultdict(list)
    absent: list[Contribution] = []
    base_codecs = BaseCodecs(base)
    turns = Turns(base)
    landed = [
        (home, contribution, land(contribution, home, base, orientations))
        for home in homes.complete
        for contribution in home.module.changes
    ]
    for _, contribution, landing in landed:
        if landing and contribution.algorithm.packed:
            turns.see(contribution, landing.of_expert(contribution.algorithm.experts))
    for home, contribution, landing in landed:
        if landing is None:
            absent += [] if contribution.is_optional else [contribution]
            continue
        own = contribution
        if contribution.algorithm.packed:
            shape = landing.of_expert(contribution.algorithm.experts)
            own = turned(contribution, turns.of(contribution, shape, home))
        elif contribution.algorithm.experts:
            own = turned(contribution, stands_turned(home, base))
        for place in landing.places:
            placed = Placement(own, place, landing.rows)
            check_place(placed, adapter, base, base_codecs)
            targets[place.target.name].append(placed)
    return Matching(dict(targets), homes.homeless, homes.partial, left_out, tuple(absent), orientations, homes.lacking)
