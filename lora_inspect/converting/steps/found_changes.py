"""Which parameters of a base the modules of an adapter change, with all that each folds there."""

from collections import defaultdict

from lora_inspect.converting.steps.whole_changes import Folded, WholeChange, whole_place
from lora_inspect.converting.target.asked_full import changes_otherwise
from lora_inspect.errors import LoraInspectError
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.matching.match import Matching
from lora_inspect.matching.placement import Place, Placed
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.base.base_codecs import BaseCodecs

# By module and parameter.
WholeChanges = dict[str, dict[str, WholeChange]]


def find_changes(adapter: Adapter, base: Checkpoint, matching: Matching) -> WholeChanges:
    """The changes of all modules that change a parameter otherwise than by a difference.

    Raises LoraInspectError where the base lacks one.
    """
    wanted = {module.name.key for module in adapter.modules.values() if changes_otherwise(module)}
    lacking = {module.name.key for module in matching.unmatched} | {c.module.key for c in matching.absent}
    if missing := [key for key in adapter.modules if key in wanted & lacking]:
        raise LoraInspectError(
            f"{adapter.checkpoint.path}: {len(missing)} modules change what {base.path} lacks ({missing[0]}); name the "
            "base that the adapter was trained on."
        )
    base_codecs = BaseCodecs(base)
    found: dict[str, dict[str, dict[Place, list[Placed]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for placed in (one for own in matching.targets.values() for one in own):
        key = placed.contribution.module.key
        if key in wanted:
            found[key][placed.contribution.algorithm.parameter][whole_place(placed)].append(placed)
    return {
        key: {parameter: _whole(own, base_codecs) for parameter, own in parameters.items()}
        for key, parameters in found.items()
    }


def _whole(places: dict[Place, list[Placed]], base_codecs: BaseCodecs) -> WholeChange:
    folded = tuple(Folded(base_codecs.of(place.target), tuple(own), place) for place, own in places.items())
    seen = (placed.place.seen for own in places.values() for placed in own if placed.place.seen)
    return WholeChange(folded, {info.name: base_codecs.of(info) for info in seen})
