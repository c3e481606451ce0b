"""Which base weight each contribution changes: the base's own names, spelled as the adapter spells them."""

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field

from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.matching.expert_landing import Turns, stands_turned, turned
from lora_inspect.matching.landing import land, layers_of
from lora_inspect.matching.layouts import layouts_of
from lora_inspect.matching.module_map import Home, find_homes
from lora_inspect.matching.orientation import Orientation, orient
from lora_inspect.matching.orientation_answers import UNANSWERED, Answers
from lora_inspect.matching.placement import Placed
from lora_inspect.matching.target_weight import check_place
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.base.base_codecs import BaseCodecs
from lora_inspect.reading.model.contribution import Contribution, Module
from lora_inspect.reading.pipeline import chosen


@dataclass(frozen=True, slots=True)
class Matching:
    """Contributions by the name of the base tensor that they change, each with its place there.

    `unmatched` are the modules without a target, `partial` is what is there of those that the base has in part, and
    `lacking` are the layers of those that change what their layer has not.
    `left_out` are those of components that were not asked for, `absent` the contributions whose layer is there without
    the parameter that they change. `orientations` say by target how each Linear weight is stored, and what decided it.
    """

    targets: dict[str, list[Placed]]
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
    """Finds the targets of every module of the adapter, of the components `only` where some are named.

    Modules whose keys are in `without` are not looked at.

    `transposed` says by globs how the base stores those square weights that the evidence leaves open. Raises
    LoraInspectError where a module fits two of the base or a tensor of another shape or kind, where it cannot be exact
    in the base's layout, or where an orientation stays open.
    """
    modules, left_out = chosen(adapter, only, without)
    families, correspondence = layouts_of(adapter, base, modules)
    homes = find_homes(adapter, base, modules, correspondence)
    layers = [layer for home in homes.complete for layer in layers_of(home, base)]
    orientations = orient(layers, base, [family.layout for family in families], transposed)
    targets: dict[str, list[Placed]] = defaultdict(list)
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
            placed = Placed(own, place, landing.rows)
            check_place(placed, adapter, base, base_codecs)
            targets[place.target.name].append(placed)
    return Matching(dict(targets), homes.homeless, homes.partial, left_out, tuple(absent), orientations, homes.lacking)
