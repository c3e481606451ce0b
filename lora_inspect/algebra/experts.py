"""The changes of all experts of a layer with stacked factors: a sum for every expert, all of one rank.

The singular values of a module are those of its experts together. At rank k, every expert loses the values after its
k-th, so the j-th value of the module is the root of the sum of squares of the j-th values of all experts.
"""

from collections.abc import Sequence

import numpy

from lora_inspect.algebra.alignment import Term
from lora_inspect.algebra.linear.core import Core
from lora_inspect.algebra.linear.factors import Array, Factors, joined
from lora_inspect.algebra.numpy_tensors import read_tensors, refuse_not_finite
from lora_inspect.errors import RefusedError
from lora_inspect.reading.model.contribution import Contribution


class ExpertChanges:
    """The sum of the terms of one module, expert by expert.

    Raises LoraInspectError for terms of other numbers or sizes of experts, and for a number that is not finite.
    """

    def __init__(self, terms: Sequence[Term]) -> None:
        self.check(terms)
        read = [_factors_of(term) for term in terms]
        self.changes = [joined(list(own)) for own in zip(*read, strict=True)]
        try:
            self._cores = [Core(change) for change in self.changes]
        except FloatingPointError:
            refuse_not_finite(terms)
            raise
        count = max(len(core.values) for core in self._cores)
        squares = sum(numpy.square(numpy.pad(core.values, (0, count - len(core.values)))) for core in self._cores)
        self.values: Array = numpy.sqrt(squares)

    @property
    def largest(self) -> Array:
        """The singular values of the expert with the largest one."""
        return max((core.values for core in self._cores), key=lambda values: float(values[0]))

    @property
    def rounding_rank(self) -> int:
        """The largest of the experts' numbers of singular values that are more than rounding."""
        return max(core.rounding_rank for core in self._cores)

    def trimmed(self, rank: int) -> list[Factors]:
        """Return the nearest change of a rank of each expert; a smaller one is filled up with zeros."""
        found = []
        for core, change in zip(self._cores, self.changes, strict=True):
            own = min(rank, core.rounding_rank)
            trim = core.trim(own).of(change)
            up, down = (numpy.pad(trim.up, ((0, 0), (0, rank - own))), numpy.pad(trim.down, ((0, rank - own), (0, 0))))
            found.append(Factors.of(up, down, change.shape))
        return found

    @staticmethod
    def check(terms: Sequence[Term]) -> None:
        """Raise LoraInspectError for terms of other numbers, sizes or orders of experts."""
        first = terms[0].contribution
        for term in terms[1:]:
            other = term.contribution
            kinds = {
                (one.algorithm.name, one.algorithm.experts, one.settings.get("along"), widths(one))
                for one in (first, other)
            }
            if len(kinds) > 1:
                raise RefusedError(
                    term.adapter.checkpoint.path,
                    f"{other.module.key} has experts of another number, size or order than "
                    f"{first.module.key} in {terms[0].adapter.checkpoint.path}",
                    "name adapters of one model, or take the experts apart with convert --layout single-experts",
                )


def widths(contribution: Contribution) -> tuple[int, int]:
    """Return the sizes of one expert's matrix that up and down are along."""
    up, down = (contribution.shapes[role] for role in ("up", "down"))
    return up[-2] if len(up) == 3 else up[0], down[-1]


def _factors_of(term: Term) -> list[Factors]:
    """Return the factors of each expert at the multiplier of the term."""
    from lora_inspect.maths.change import ExpertProducts

    contribution = term.contribution
    settings = {name: value for name, value in contribution.settings.items() if name != "along"}
    change = contribution.formula.change(read_tensors(contribution), 1.0, contribution.alpha, **settings, turned=False)
    assert isinstance(change, ExpertProducts)
    weight = contribution.known_scale * term.multiplier
    ups, downs = numpy.asarray(change.up), numpy.asarray(change.down)
    shape = ups.shape[1], downs.shape[2]
    return [Factors.of(up, down, shape, weight) for up, down in zip(ups, downs, strict=True)]
