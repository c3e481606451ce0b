"""Where a contribution lands in a base, and the change that it makes there."""

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

from lora_inspect.files.header import TensorInfo
from lora_inspect.reading.contribution import Contribution

if TYPE_CHECKING:
    from lora_inspect.maths.change import Change


class Place(NamedTuple):
    """Rows of a tensor of the base, all where `rows` is None, counted in the weight as (out, in, *kernel).

    `source` is the row of the contribution that lands in the first of them. `transposed` says that the base stores the
    weight as (in, out).
    """

    target: TensorInfo
    rows: tuple[int, int] | None = None
    source: int = 0
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """(out, in, *kernel) of the part of the weight that is changed."""
        whole = self.target.shape[::-1] if self.transposed else self.target.shape
        return whole if self.rows is None else (self.rows[1] - self.rows[0], *whole[1:])


class Placed(NamedTuple):
    """A contribution and its place."""

    contribution: Contribution
    place: Place

    def change(self, tensors: Mapping[str, Any], rule: str | None = None) -> "Change":
        """The change of the target as it is stored, from the contribution's tensors by role ("magnitude" for DoRA's).

        `rule` says how a multiplier applies to DoRA; None takes the spelling's own.
        """
        from lora_inspect.maths.change import OnRows
        from lora_inspect.maths.decomposed import Magnitude, decomposed

        contribution, place = self
        factors = {role: tensors[role] for role in contribution.factors}
        change = contribution.formula.change(factors, contribution.known_scale, contribution.alpha)
        if contribution.magnitude:
            spelling = contribution.magnitude.spelling
            values = Magnitude(tensors["magnitude"].reshape(-1), rule or spelling.multiplier, spelling.added_eps)
            change = decomposed(change, values, contribution.magnitude.axis, prod(place.shape[2:]))
        if place.rows:
            change = OnRows(change, *place.rows, place.source)
        return change.transposed() if place.transposed else change
