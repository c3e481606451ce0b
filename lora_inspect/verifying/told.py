"""The shares that are told, by adapter, and what kind of share each is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.merging.fold_chain import Fold
from lora_inspect.verifying.measure import Weighed
from lora_inspect.verifying.rows import PartShare
from lora_inspect.verifying.shares import TOLERANCE

RIGHT, MISSING, DOUBLED, OPPOSITE, SCALED = "right", "missing", "doubled", "opposite", "scaled"
# A share so near to 0 is none, and one so near to 2 is twice the change.
NONE = 2 * TOLERANCE


class Unit(NamedTuple):
    """A share that is told: of an adapter in a weight, or of one of its modules on some rows of that."""

    label: str
    weight: str
    found: PartShare

    @property
    def tolerance(self) -> float:
        """How far from 1 the share may be."""
        return max(TOLERANCE, self.found.noise)

    @property
    def share(self) -> float:
        """The share."""
        return self.found.share or 0.0

    @property
    def folds(self) -> Sequence[Fold]:
        """What is folded there."""
        return self.found.part.folds

    @property
    def kind(self) -> str:
        """Which of the kinds of share it is."""
        return next(kind for kind, fits in _KINDS if fits(self))


_KINDS: tuple[tuple[str, Callable[[Unit], bool]], ...] = (
    (RIGHT, lambda unit: abs(unit.share - 1) <= unit.tolerance),
    (MISSING, lambda unit: abs(unit.share) <= max(NONE, unit.tolerance)),
    (DOUBLED, lambda unit: abs(unit.share - 2) <= max(NONE, unit.tolerance)),
    (OPPOSITE, lambda unit: unit.share < 0),
    (SCALED, lambda unit: True),
)


@dataclass(frozen=True, slots=True)
class Told:
    """The units of one adapter, and why shares of it are not told, by weight.

    `otherwise` are the weights that have another change of it, or have it in some rows alone.
    """

    adapter: str
    units: list[Unit] = field(default_factory=list)
    untold: dict[str, str] = field(default_factory=dict)
    otherwise: list[str] = field(default_factory=list)

    @property
    def is_right(self) -> bool:
        """Whether every share that is told is right."""
        return not self.otherwise and all(unit.kind == RIGHT for unit in self.units)

    def of(self, kind: str) -> list[Unit]:
        """The units of one kind."""
        return [unit for unit in self.units if unit.kind == kind]


def told_of(weights: Sequence[Weighed], adapters: Sequence[str]) -> list[Told]:
    """What is told of each of the adapters, but in weights whose change is another one, or not there in some rows."""
    found = {adapter: Told(adapter) for adapter in adapters}
    for weight in weights:
        for number, term in enumerate(weight.terms):
            own = found[term.adapter]
            if why := weight.shares.why[number]:
                own.untold[weight.name] = why
            if weight.instead or weight.rows.missing[number]:
                own.otherwise.append(weight.name)
                continue
            parts = weight.rows.parts[number]
            for part in parts:
                if part.share is not None:
                    label = weight.name if len(parts) == 1 else f"{weight.name} [{part.part.module}]"
                    own.units.append(Unit(label, weight.name, part))
    return list(found.values())
