"""Contributions with a change that depends on the base weight (DoRA, rotations), with the base rows they change."""

from collections import defaultdict
from collections.abc import Callable, Sequence

from lora_inspect.algorithms import by_name, lora
from lora_inspect.algorithms.record import Algorithm
from lora_inspect.errors import RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.matching.match import Matching
from lora_inspect.matching.placement import Place
from lora_inspect.matching.unmatched import EMBEDDINGS, HEADS, shared_embedding
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.base.base_codecs import BaseCodecs, CodedWeight
from lora_inspect.reading.model.contribution import Contribution
from lora_inspect.reading.peft.peft_config import LORA_TYPE


class BaseDependentChange(NamedTuple):
    """A contribution with a change that depends on the base, and its changed rows, each with its weight.

    `before` are the changes that its module adds to the same weight first, so that their sum is in the norm.
    """

    contribution: Contribution
    places: tuple[tuple[Place, CodedWeight], ...]
    before: tuple[Contribution, ...] = ()

    @property
    def algorithm(self) -> Algorithm:
        """Return the algorithm of the true change: the LoRA that it is, or a plain one."""
        return lora_of(self.contribution)

    @property
    def is_turned(self) -> bool:
        """Return True if its factors are those of the transposed change, as for an Embedding that was saved whole."""
        return bool(self.algorithm.transposed) and not self.contribution.algorithm.transposed

    @property
    def file(self) -> str:
        """The file that it is from."""
        return next(iter(self.contribution.factors.values())).file

    @property
    def shape(self) -> tuple[int, ...]:
        """(out, in, *kernel) of the weight that the module changes, as the base has its kernel."""
        shapes = [place.shape for place, _ in self.places]
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])


def lora_of(contribution: Contribution) -> Algorithm:
    """Return the LoRA for a true change: its own, that of an Embedding that was saved whole, or a plain one."""
    own = contribution.algorithm
    if own.peft_type == LORA_TYPE:
        return own
    is_embedding = own.replaces and contribution.module.body.rpartition(".")[2] in EMBEDDINGS
    return by_name("lora_embedding") if is_embedding else lora.ALGORITHM


def find_base_changes(
    adapter: Adapter,
    base: Checkpoint,
    matching: Matching,
    wanted: Callable[[Contribution], bool] = lambda contribution: contribution.magnitude is not None,
) -> dict[str, BaseDependentChange]:
    """Return the `wanted` contributions by module name, by default those with a magnitude.

    Raises LoraInspectError if a true change is unavailable.
    """
    places: dict[str, list[Place]] = defaultdict(list)
    for found in matching.targets.values():
        for contribution, place, _ in found:
            if wanted(contribution):
                places[contribution.module.key].append(place)
    decomposed = {c.module.key: c for c in adapter.contributions if wanted(c)}
    if missing := [key for key in decomposed if key not in places]:
        shared = shared_embedding(base) if missing[0].endswith(HEADS) else None
        way_out = (
            f"save the base with tie_word_embeddings false, as the head shares {shared}"
            if shared
            else "name the base that the adapter was trained on"
        )
        raise RefusedError(
            adapter.checkpoint.path,
            f"{len(missing)} modules have no weight in {base.path} ({missing[0]})",
            way_out,
        )
    base_codecs = BaseCodecs(base)
    base_changes = {}
    for key, contribution in decomposed.items():
        own = tuple((place, base_codecs.of(place.target)) for place in places[key])
        before = _before(contribution, adapter.modules[key].contributions)
        base_changes[key] = BaseDependentChange(contribution, own, before)
        _check_alone(base_changes[key], adapter.modules[key].contributions)
    return base_changes


def _check_alone(dependent: BaseDependentChange, of_module: Sequence[Contribution]) -> None:
    """Raise LoraInspectError if the module has another change of the kind that the true change becomes."""
    own = dependent.contribution
    if any(c.algorithm.name == dependent.algorithm.name for c in of_module if c is not own):
        raise RefusedError(
            dependent.file,
            f"{own.module.key} has {dependent.algorithm.title} next to the "
            f"{own.algorithm.title}{' with a magnitude' if own.magnitude else ''}, so the true change as plain "
            "LoRA would be a second one",
            _ways_out(own, "--keep-dora or --drop-magnitude"),
        )


def _before(contribution: Contribution, of_module: Sequence[Contribution]) -> tuple[Contribution, ...]:
    """Return the module's changes before it is decomposed; raise LoraInspectError for one not added to all rows."""
    before = tuple(of_module[: of_module.index(contribution)])
    own = "magnitude" if contribution.magnitude else contribution.algorithm.title
    if other := next((c for c in before if c.multiplies or c.rows is not None), None):
        raise RefusedError(
            next(iter(contribution.factors.values())).file,
            f"{contribution.module.key} applies {other.algorithm.title} before its {own}, so a plain LoRA of "
            "the true change would come at the wrong place",
            _ways_out(contribution, "--keep-dora"),
        )
    return before


def _ways_out(contribution: Contribution, kept: str) -> str:
    return f"choose {kept}" if contribution.magnitude else "leave --algorithm out, or merge the adapter"
