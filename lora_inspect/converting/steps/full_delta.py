"""The step that writes all changes of a module as differences of its parameters.

A difference is the true change of a parameter by its base: everything that a merge would fold there. It is computed
while it is written.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from math import prod

import torch
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from lora_inspect.architectures.rows import Runs
from lora_inspect.converting.growth import Growth
from lora_inspect.converting.output.output_tensors import SpelledModule
from lora_inspect.converting.steps.dora_delta import BLOCK_ELEMENTS, DeltaCache, take_rows
from lora_inspect.converting.steps.part import Part, read_operands
from lora_inspect.converting.target.key_names import factor_key
from lora_inspect.converting.target.target_algorithm import DIFFERENCES, changes_otherwise
from lora_inspect.converting.target.target_layout import Destination
from lora_inspect.errors import DamagedError, LoraInspectError, RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.files.safetensors.writer import Computed, Content, TensorPlan
from lora_inspect.matching.match import Matching
from lora_inspect.matching.placement import Place, Placement
from lora_inspect.maths.change import Change, deltas
from lora_inspect.maths.tensors import RowBlocks, first_non_finite, to_bytes
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.base.base_codecs import BaseCodecs, CodedWeight
from lora_inspect.reading.model.contribution import Contribution


class Folded(NamedTuple):
    """A tensor of the base, all that one module folds into it in that order, and the rows that are the module's."""

    weight: CodedWeight
    changes: tuple[Placement, ...]
    place: Place


class FullDelta(NamedTuple):
    """All that a module changes of one parameter, in every tensor where the base has it.

    `codecs` are those of other weights that a change depends on, by name.
    """

    folded: tuple[Folded, ...]
    codecs: Mapping[str, CodedWeight]

    @property
    def first(self) -> Contribution:
        """Return the first contribution that is folded."""
        return self.folded[0].changes[0].contribution

    @property
    def shape(self) -> tuple[int, ...]:
        """(out, in, *kernel) of the parameter, (out,) of a vector."""
        shapes = [one.place.shape for one in self.folded]
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def matrix(self) -> torch.Tensor:
        """Return W' - W as (out, in·kernel), in float64; raise LoraInspectError if it is not finite."""
        found = torch.zeros(self.shape[0], prod(self.shape[1:]), dtype=torch.float64, device="cpu")
        try:
            for one in self.folded:
                for first, rows in self._differences(one):
                    take_rows(found, rows, first, one.place)
        except LinAlgError as error:
            raise self._no_numbers("involves a matrix that lora-inspect cannot invert or decompose") from error
        if first_non_finite(found.float()) is not None:
            raise self._no_numbers("is not finite, or beyond float32")
        return found

    def remembered(self, cache: DeltaCache, runs: Runs | None) -> torch.Tensor:
        """Return the `matrix`, cached if `runs` take some of the rows of a weight."""
        is_part = runs is not None and len(self.shape) > 1
        key = self.first.module.key, self.first.algorithm.parameter
        return cache.of(key, self.matrix) if is_part else self.matrix()

    def _no_numbers(self, what: str) -> LoraInspectError:
        file = next(iter(self.first.factors.values())).file
        return DamagedError(
            file,
            f"the change that {self.first.module.key} makes to {self.folded[0].place.target.name} {what}",
            "repair the file that holds such numbers",
        )

    def _differences(self, one: Folded) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield (first row, difference) of the tensor as it is stored."""
        read = partial(_read, one.weight, one.changes[0].place)
        return deltas([(self._change(placed), 1.0) for placed in one.changes], read)

    def _change(self, placed: Placement) -> Change:
        def blocks(info: TensorInfo) -> Iterator[tuple[int, torch.Tensor]]:
            seen = self.codecs[info.name]
            return _read(seen, Place(seen.info), 1)

        return placed.read_change(partial(read_operands, dtype=torch.float64), blocks, torch.float64)


def _read(weight: CodedWeight, place: Place, together: int) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield a weight in float64, in blocks of rows of its own memory."""
    for first, rows in RowBlocks(BLOCK_ELEMENTS).read(place.target, together, weight.decode):
        yield first, rows.double() if rows.dtype != torch.float64 else rows.clone()


def whole_place(placed: Placement) -> Place:
    """Return the place of the module's rows in a tensor: for slices the whole tensor."""
    return placed.place if placed.contribution.rows is None else placed.place._replace(runs=None)


# By module and parameter.
WholeChanges = dict[str, dict[str, FullDelta]]


def find_changes(adapter: Adapter, base: Checkpoint, matching: Matching) -> WholeChanges:
    """Return the changes of all modules that change a parameter in another way than by a difference.

    Raises LoraInspectError if the base lacks one.
    """
    wanted = {module.name.key for module in adapter.modules.values() if changes_otherwise(module)}
    lacking = {module.name.key for module in matching.unmatched} | {c.module.key for c in matching.absent}
    if missing := [key for key in adapter.modules if key in wanted & lacking]:
        raise RefusedError(
            adapter.checkpoint.path,
            f"{len(missing)} modules change parameters that {base.path} lacks ({missing[0]})",
            "name the base that the adapter was trained on",
        )
    base_codecs = BaseCodecs(base)
    found: dict[str, dict[str, dict[Place, list[Placement]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    for placed in (one for own in matching.targets.values() for one in own):
        key = placed.contribution.module.key
        if key in wanted:
            found[key][placed.contribution.algorithm.parameter][whole_place(placed)].append(placed)
    return {
        key: {parameter: _whole(own, base_codecs) for parameter, own in parameters.items()}
        for key, parameters in found.items()
    }


def _whole(places: dict[Place, list[Placement]], base_codecs: BaseCodecs) -> FullDelta:
    folded = tuple(Folded(base_codecs.of(place.target), tuple(own), place) for place, own in places.items())
    seen = (placed.place.seen for own in places.values() for placed in own if placed.place.seen)
    return FullDelta(folded, {info.name: base_codecs.of(info) for info in seen})


# A change, and which of its rows a module of the output has.
Rows = tuple[FullDelta, Runs | None]
# What rounding a number to float32 costs of it at most.
_ROUNDING = 2.0**-24


def spell_differences(target: Destination, changes: WholeChanges, cache: DeltaCache, growth: Growth) -> SpelledModule:
    """Return the module with a difference in float32 for every parameter that its sources change.

    Raises LoraInspectError if each source changes other parameters, or if the output grows too much.
    """
    own = [changes[source.module.name.key] for source in target.sources]
    if any(one.keys() != own[0].keys() for one in own):
        names = " and ".join(source.module.name.key for source in target.sources)
        first = target.sources[0].module.contributions[0]
        raise RefusedError(
            next(iter(first.factors.values())).file,
            f"{names} become one layer in the output, but some change a parameter that the others do not change",
            "keep the layout, or merge it",
        )
    parts, contents = [], []
    for parameter in own[0]:
        rows = [(one[parameter], runs) for one, (_, runs) in zip(own, target.sources, strict=True)]
        shape = (target.rows or rows[0][0].shape[0], *rows[0][0].shape[1:])
        first = rows[0][0].first
        key = factor_key(target.module, first, DIFFERENCES[parameter], "difference")
        plan = TensorPlan(key, "F32", shape)
        growth.take(plan.nbytes, f"the full difference of {first.module.key}")
        contents.append(Content(plan, Computed(partial(_computed, rows, shape, cache))))
        origin = first._replace(alpha=None, magnitude=None)
        parts.append(Part(origin, DIFFERENCES[parameter], {}, 1.0, replaced=True, error=_ROUNDING))
    return SpelledModule(target.module, tuple(parts), tuple(contents))


def _computed(rows: Sequence[Rows], shape: tuple[int, ...], cache: DeltaCache) -> bytes:
    whole = torch.zeros(shape[0], prod(shape[1:]), dtype=torch.float32, device="cpu")
    for change, runs in rows:
        matrix = change.remembered(cache, runs)
        for first, last, source in runs.each() if runs else [(0, len(matrix), 0)]:
            whole[first:last] = matrix[source : source + last - first]
    return to_bytes(whole, "F32")
