"""The true change of every parameter that a module changes, as a base tells it: what a merge would fold, all of it."""

from collections.abc import Iterator, Mapping
from functools import partial
from math import lcm, prod

import torch
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from lora_inspect.algorithms.record import SEEN
from lora_inspect.converting.steps.own_weight import BLOCK_ELEMENTS, take_rows
from lora_inspect.converting.steps.scaled_factors import read_factor
from lora_inspect.errors import LoraInspectError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.safetensors.dtypes import PLAIN_FLOATS
from lora_inspect.matching.placement import Place, Placed
from lora_inspect.maths.change import Change, settled
from lora_inspect.maths.tensors import RowBlocks, first_non_finite, load, load_whole
from lora_inspect.reading.base.base_codecs import CodedWeight, decoder
from lora_inspect.reading.model.contribution import Contribution


class Folded(NamedTuple):
    """A tensor of the base, all that one module folds into it in that order, and the rows that are the module's."""

    weight: CodedWeight
    changes: tuple[Placed, ...]
    place: Place


class WholeChange(NamedTuple):
    """All that a module changes of one parameter, in every tensor where the base has it.

    `codecs` are those of other weights that a change depends on, by name.
    """

    folded: tuple[Folded, ...]
    codecs: Mapping[str, CodedWeight]

    @property
    def first(self) -> Contribution:
        """What is folded first."""
        return self.folded[0].changes[0].contribution

    @property
    def shape(self) -> tuple[int, ...]:
        """(out, in, *kernel) of the parameter, (out,) of a vector."""
        shapes = [one.place.shape for one in self.folded]
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def matrix(self) -> torch.Tensor:
        """W' - W as (out, in·kernel), in float64; raises LoraInspectError where it is not finite."""
        found = torch.zeros(self.shape[0], prod(self.shape[1:]), dtype=torch.float64, device="cpu")
        try:
            for one in self.folded:
                for first, rows in self._differences(one):
                    take_rows(found, rows, first, one.place)
        except LinAlgError as error:
            raise self._no_numbers("meets a matrix that cannot be inverted or taken apart") from error
        if first_non_finite(found.float()) is not None:
            raise self._no_numbers("is not finite, or beyond float32")
        return found

    def _no_numbers(self, what: str) -> LoraInspectError:
        file = next(iter(self.first.factors.values())).file
        return LoraInspectError(
            f"{file}: the change that {self.first.module.key} makes to {self.folded[0].place.target.name} {what}; "
            "repair the file that holds such numbers."
        )

    def _differences(self, one: Folded) -> Iterator[tuple[int, torch.Tensor]]:
        """(first row, difference) of the tensor as it is stored."""
        read = partial(_read, one.weight, one.changes[0].place)
        links = settled([(self._change(placed), 1.0) for placed in one.changes], read)
        for first, rows in read(lcm(1, *(change.together for change, _ in links))):
            changed = rows.clone()
            for change, multiplier in links:
                change.fold(changed, first, multiplier)
            yield first, changed.sub_(rows)

    def _change(self, placed: Placed) -> Change:
        contribution, place, _ = placed
        positions = contribution.algorithm.positions
        tensors = {
            role: load_whole(info) if role in positions else read_factor(info).values
            for role, info in contribution.operands.items()
        }
        if contribution.magnitude:
            tensors["magnitude"] = load(contribution.magnitude.info).double()
        if place.seen and contribution.formula.seen:
            seen = self.codecs[place.seen.name]
            tensors[SEEN] = contribution.formula.seen(tensors, _read(seen, Place(seen.info), 1))
        return placed.change(tensors)


def _read(weight: CodedWeight, place: Place, together: int) -> Iterator[tuple[int, torch.Tensor]]:
    """A weight in float64, in blocks of rows of its own memory."""
    decode = None if weight.info.dtype in PLAIN_FLOATS else decoder(weight)
    for first, rows in RowBlocks(BLOCK_ELEMENTS).read(place.target, together, decode):
        yield first, rows.double() if rows.dtype != torch.float64 else rows.clone()


def whole_place(placed: Placed) -> Place:
    """The rows of a tensor that are the module's: of slices all of them together, which is the whole tensor."""
    return placed.place if placed.contribution.rows is None else placed.place._replace(runs=None)
