"""Where a contribution lands in a base, and the change that it makes there."""

from collections.abc import Mapping
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

from lora_inspect.algorithms.record import SEEN
from lora_inspect.architectures.rows import Runs
from lora_inspect.errors import LoraInspectError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.reading.model.contribution import Contribution
from lora_inspect.reading.peft.residual_adapters import PISSA

if TYPE_CHECKING:
    from lora_inspect.maths.change import Change


class Place(NamedTuple):
    """Rows of a tensor of the base, and which rows of a contribution land in them; all in their order without `runs`.

    Rows are counted in the weight as (out, in, *kernel). `transposed` says that the base stores it as (in, out). Where
    the weight is a `block` of the rows of the tensor as it is stored, that is the first one and how many they are.
    `seen` is the weight of the layer that the change of its bias depends on.
    """

    target: TensorInfo
    runs: Runs | None = None
    transposed: bool = False
    block: tuple[int, int] | None = None
    seen: TensorInfo | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """(out, in, *kernel) of the part of the weight that is changed."""
        stored = (self.block[1], *self.target.shape[1:]) if self.block else self.target.shape
        whole = stored[::-1] if self.transposed else stored
        return whole if self.runs is None else (self.runs.rows, *whole[1:])


class Placed(NamedTuple):
    """A contribution and its place; `rows` are those that all of its places have together, None for one place."""

    contribution: Contribution
    place: Place
    rows: int | None = None

    @property
    def whole(self) -> tuple[int, ...]:
        """(out, in, *kernel) of what the contribution changes in all of its places together."""
        return (self.rows, *self.place.shape[1:]) if self.rows and self.place.shape else self.place.shape

    @property
    def is_alone(self) -> bool:
        """Whether all rows of the contribution land here."""
        return self.rows is None or (bool(self.place.shape) and self.place.shape[0] == self.rows)

    def change(self, tensors: Mapping[str, Any], rule: str | None = None) -> "Change":
        """The change of the target as it is stored, from the contribution's tensors by role ("magnitude" for DoRA's).

        `rule` says how a multiplier applies to DoRA; None takes the spelling's own. Raises LoraInspectError where
        numbers in the tensors stand for what is outside the target.
        """
        from lora_inspect.maths.dora_fold import decomposed, magnitude_of

        contribution, place, _ = self
        roles = [*contribution.operands, *([SEEN] if place.seen else [])]
        factors = {role: tensors[role] for role in roles}
        self._check_inside(factors)
        formula = contribution.formula
        settings = {**contribution.settings, "weight": self.whole} if formula.sized else contribution.settings
        change = formula.change(factors, contribution.known_scale, contribution.alpha, **settings)
        if contribution.magnitude:
            spelling = contribution.magnitude.spelling
            values = magnitude_of(spelling, tensors["magnitude"].reshape(-1), rule)
            change = decomposed(change, values, contribution.magnitude.axis, prod(place.shape[2:]))
        return self._on_target(change)

    @property
    def has_residual(self) -> bool:
        """Whether a part of the target was moved into the factors and is still in the target."""
        return bool(self.contribution.residual) and not self.contribution.on_residual

    def residual(self) -> "Change":
        """What takes the part out of the target that was moved into the factors, once it has seen the target."""
        from lora_inspect.maths.residual import Residual, orthogonal_factors, principal_factors

        rank = self.contribution.known_rank
        if self.contribution.residual == PISSA:
            # Whatever the scale is, the factors were made for the product with it.
            return self._on_target(Residual(partial(principal_factors, rank=rank), 1.0))
        return self._on_target(Residual(partial(orthogonal_factors, rank=rank), self.contribution.known_scale))

    def _on_target(self, change: "Change") -> "Change":
        from lora_inspect.maths.change import OnBlock, OnRows

        place = self.place
        if place.runs:
            change = OnRows(change, tuple(place.runs.each()))
        change = change.transposed() if place.transposed else change
        return OnBlock(change, *place.block) if place.block else change

    def _check_inside(self, factors: Mapping[str, Any]) -> None:
        contribution = self.contribution
        outside = contribution.formula.outside
        if outside and (wrong := outside(factors, self.whole, **contribution.settings)):
            first = next(iter(contribution.factors.values()))
            raise LoraInspectError(
                f"{first.file}: {contribution.module.key} {wrong}, and {self.place.target.name} is {list(self.whole)}; "
                "the adapter is for another model or size, or the file is damaged."
            )

    def check_groups(self) -> None:
        """Raises LoraInspectError where the place begins or ends within rows that belong together."""
        contribution, place, _ = self
        together, runs = contribution.formula.together(contribution.shapes), place.runs
        if runs is None or (runs.times == 1 and runs.rows == contribution.shape[0]):
            return
        if not any((stop - start) % together or source % together for start, stop, source in runs.each()):
            return
        first = next(iter(contribution.factors.values()))
        raise LoraInspectError(
            f"{first.file}: {contribution.module.key} ({contribution.algorithm.title}) changes groups of {together} "
            f"rows, which {place.target.name} has in another order or only in part; use a base in the adapter's layout."
        )
