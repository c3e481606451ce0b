"""The best factors of the differences of two models, in the ranks that a rule gives, and the error of both.

The error of a trim is the norm of the rest of the difference, by the certificate of the range finder; that of rounding
is measured on the factors as they are written. No rank is spent on directions that the rounding of the
models can have made.
"""

import hashlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy
from numpy.typing import NDArray

from lora_inspect.algebra.changes import written_in
from lora_inspect.algebra.combination import filled, stored
from lora_inspect.algebra.extracting.extracted_modules import Extracted, Part
from lora_inspect.algebra.extracting.model_pair import Noise, difference_blocks, noise_of
from lora_inspect.algebra.linear.factors import Array, Factors
from lora_inspect.algebra.linear.module_threads import made_in_order
from lora_inspect.algebra.linear.range_finder import Found, find_range
from lora_inspect.algebra.linear.ranks import RankRule, Spectrum, choose_ranks
from lora_inspect.algebra.output.output_modules import MadeModule, Making
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.safetensors.dtypes import BITS
from lora_inspect.progress import Progress

# From this share of the expected noise on, the rest of a difference is taken for noise of both models.
_NOISY = 0.85
# The ranks that a file of a given size is begun with, over equal ranks for all modules.
_MORE = 2.0
# The most bytes of factors that are kept until the ranks are known; the others are computed twice.
_KEPT_BYTES = 128 << 20


@dataclass(frozen=True, slots=True)
class Directions:
    """The directions of one difference: `up` (rows, rank) @ `down` (rank, columns), and the rest of it.

    `values` are the singular values of the product, falling. `norm` is that of the difference, `rest` at least that of
    the difference without the product, and `noise` that of rounding only, as an estimate. `is_noise` says that no
    further direction is more than noise. Without factors, `up` and `down` are None.
    """

    module: Extracted
    values: Array
    norm: float
    rest: float
    noise: float
    is_noise: bool
    up: Array | None = None
    down: Array | None = None

    @property
    def rank(self) -> int:
        """The number of directions."""
        return len(self.values)

    def error(self, rank: int) -> float:
        """Return at least the norm of the difference without the first directions, `rank` of them."""
        return min(math.hypot(self.rest, *self.values[rank:].tolist()), self.norm)

    def to(self, rank: int) -> "Directions":
        """Return the first directions only."""
        if rank == self.rank:
            return self
        up, down = (None if self.up is None else self.up[:, :rank]), (None if self.down is None else self.down[:rank])
        return replace(self, values=self.values[:rank], rest=self.error(rank), up=up, down=down)


class WrittenModule(NamedTuple):
    """A module as it is written, with the norms of its difference, of the error of its rank, and of the noise in it.

    `rank` counts the directions of the difference, which zeros may fill up. `is_noise` says that no further direction
    is more than noise.
    """

    made: MadeModule
    rank: int
    norm: float
    error: float
    noise: float
    is_noise: bool


def rank_bytes(module: Extracted, dtype: str) -> int:
    """Return the bytes of one rank of a module in the file."""
    return (module.shape[0] + math.prod(module.shape[1:])) * BITS[dtype] // 8


def written_by_rule(
    modules: Sequence[Extracted], rule: RankRule, making: Making, progress: Progress
) -> Iterator[WrittenModule]:
    """Yield the modules at the ranks of a rule without a size, in order; `progress` receives 1 for each.

    Raises LoraInspectError for NaN, infinity, and numbers beyond the type.
    """

    def make(module: Extracted) -> WrittenModule:
        return _written(_directions(module, rule), making)

    progress(0)
    for one in made_in_order(make, modules):
        progress(1)
        yield one


def written_in_one_rank(
    modules: Sequence[Extracted], rule: RankRule, making: Making, progress: Progress
) -> tuple[Making, Iterator[WrittenModule]]:
    """Return `making` with the largest rank that a rule without a size gives, and the modules filled up to it.

    `progress` receives 1 for each measured module. Raises LoraInspectError as `written_by_rule`.
    """
    kept = _Kept()
    directions = list[Directions]()
    progress(0)
    for number, one in enumerate(made_in_order(lambda module: _directions(module, rule), modules)):
        progress(1)
        directions.append(kept.after(number, one))
    in_one_rank = replace(making, common=max((one.rank for one in directions), default=0))

    def make(one: Directions) -> WrittenModule:
        return _written(_directions(one.module, rule) if one.rank and one.up is None else one, in_one_rank)

    return in_one_rank, made_in_order(make, directions)


def written_in_size(
    modules: Sequence[Extracted],
    rule: RankRule,
    making: Making,
    file_size: Callable[[Sequence[int]], int],
    progress: Progress,
) -> tuple[list[int], Iterator[WrittenModule]]:
    """Return the ranks of a file of at most a size, and its modules; `progress` receives 1 for each measured one.

    The search for directions ends when no module has all its known ones in the file. Raises LoraInspectError as
    `written_by_rule`, and ValueError if nothing fits.
    """
    sides = [min(module.shape[0], math.prod(module.shape[1:])) for module in modules]
    caps = [min(side, rule.max_rank or side) for side in sides]
    each = (rule.size or 0) / max(1, sum(rank_bytes(module, making.dtype) for module in modules))
    found: dict[int, Directions] = {}
    sizes = asked = {number: min(cap, max(1, math.ceil(_MORE * each))) for number, cap in enumerate(caps)}
    kept = _Kept()
    progress(0)
    while True:
        measure = _measurer(modules, asked)
        for number, one in zip(asked, made_in_order(measure, list(asked)), strict=True):
            if number not in found:
                progress(1)
            found[number] = kept.after(number, one)
        spectra = [
            Spectrum(one.values, one.rank, rank_bytes(one.module, making.dtype)) for _, one in sorted(found.items())
        ]
        ranks = choose_ranks(spectra, rule, file_size)
        asked = {
            number: min(cap, 2 * found[number].rank)
            for number, cap in enumerate(caps)
            if ranks[number] == found[number].rank < cap and not found[number].is_noise
        }
        if not asked:
            break
        sizes = sizes | asked

    def make(number: int) -> WrittenModule:
        one = found[number]
        if ranks[number] and one.up is None:
            one = _directions(one.module, RankRule(rank=sizes[number]))
        return _written(one.to(ranks[number]), making)

    return ranks, made_in_order(make, range(len(modules)))


def _measurer(modules: Sequence[Extracted], asked: dict[int, int]) -> Callable[[int], Directions]:
    def measure(number: int) -> Directions:
        return _directions(modules[number], RankRule(rank=asked[number]))

    return measure


class _Kept:
    """The number of bytes of the factors that are kept, up to a limit."""

    def __init__(self) -> None:
        self._bytes: dict[int, int] = {}

    def after(self, number: int, one: Directions) -> Directions:
        """Return the directions of a module, without their factors where these are too much."""
        self._bytes.pop(number, None)
        size = 0 if one.up is None or one.down is None else one.up.nbytes + one.down.nbytes
        if sum(self._bytes.values()) + size > _KEPT_BYTES:
            return replace(one, up=None, down=None)
        self._bytes[number] = size
        return one


def _directions(module: Extracted, rule: RankRule) -> Directions:
    """Return the directions of a module's difference that a rule asks for, as far as they are more than noise."""
    shape = sum(_rows_of(part) for part in module.parts), math.prod(module.parts[0].tensor.shape[1:])
    noises = [noise_of(part.tensor) for part in module.parts]
    noise = Noise(*(math.sqrt(sum(one[at] ** 2 for one in noises) / len(noises)) for at in (0, 1)))
    seed = int.from_bytes(hashlib.sha256(module.key.encode()).digest()[:8], "little")
    rank = rule.rank if rule.max_error is not None or rule.energy is not None else (rule.rank or rule.max_rank)
    passes = itertools.count()
    found = find_range(
        lambda: _blocks(module.parts, next(passes) > 0),
        shape,
        rank,
        seed,
        max_error=rule.max_error,
        energy=rule.energy,
        max_rank=None if rank is not None else rule.max_rank,
        noise=noise.tuned,
    )
    norm = math.sqrt(found.squared_norm)
    rest = found.relative_error * norm
    # The noise of the base is in the difference unless the tuned model began with the base as it is stored.
    is_of_both = rest >= _NOISY * noise.both * math.sqrt(shape[0] * shape[1]) > 0.0
    edge = (noise.both if is_of_both else noise.tuned) * (math.sqrt(shape[0]) + math.sqrt(shape[1]) + 1.0)
    kept = int(numpy.count_nonzero(found.values[: found.rank] > edge))
    limit = min(shape if rank is None else (*shape, rank))
    is_noise = kept < found.rank or _stopped(found, rule, limit)
    up, down = _in_place(module, found)
    own = Directions(
        module,
        found.values[: found.rank],
        norm,
        rest,
        (noise.both if is_of_both else noise.tuned) * math.sqrt(shape[0] * shape[1]),
        is_noise,
        up,
        down,
    )
    return own.to(kept)


def _stopped(found: Found, rule: RankRule, limit: int) -> bool:
    """Return True if less was found than a rule asks for, as the rest is noise."""
    if rule.max_error is None and rule.energy is None:
        return found.rank < limit
    return not found.reached and found.rank < min(limit, rule.max_rank or limit)


def _rows_of(part: Part) -> int:
    return part.tensor.shape[0] if part.rows is None else len(part.rows)


def _blocks(parts: Sequence[Part], is_known_finite: bool) -> Iterator[tuple[int, Array]]:
    """Yield the rows of all parts, one after the other, as they are stored."""
    begin = 0
    for part in parts:
        if part.rows is None:
            for first, block in difference_blocks(part.tensor, is_known_finite):
                yield begin + first, block
            begin += part.tensor.shape[0]
            continue
        for first, block in difference_blocks(part.tensor, is_known_finite):
            low, high = numpy.searchsorted(part.rows, (first, first + len(block)))
            if high > low:
                yield begin, block[part.rows[low:high] - first]
                begin += int(high - low)


def _in_place(module: Extracted, found: Found) -> tuple[Array, Array]:
    """Return the factors of the weight as (out, in): rows in their places, sides exchanged for a turned weight."""
    up, down = found.up, found.down
    if module.turned:
        up, down = down.T, up.T
    if any(part.places is not None for part in module.parts):
        placed = numpy.zeros((module.shape[0], up.shape[1]), up.dtype)
        begin = 0
        for part in module.parts:
            count = _rows_of(part)
            places = numpy.arange(begin, begin + count) if part.places is None else part.places
            placed[places] = up[begin : begin + count]
            begin += count
        up = placed
    return up, down


def _written(one: Directions, making: Making) -> WrittenModule:
    module = one.module
    made = MadeModule(module.planned, one.rank, norm=one.norm, lost=one.error(one.rank))
    if one.rank and one.up is not None and one.down is not None:
        path = module.parts[0].tensor.tuned.info.file
        found = stored(Factors.of(one.up, one.down, module.shape), making.dtype, module.key, path)
        made = replace(made, up=found.up, down=found.down, rounding=found.rounding)
    return WrittenModule(filled(made, making), one.rank, one.norm, one.error(one.rank), one.noise, one.is_noise)


class WrittenVector(NamedTuple):
    """A difference of a vector as it is written, with its norm and that of its rounding."""

    values: NDArray[numpy.generic]
    norm: float
    rounding: float


def written_vector(module: Extracted, dtype: str) -> WrittenVector:
    """Return the difference of a vector, rounded to a type; LoraInspectError for numbers beyond it."""
    whole = numpy.zeros(module.shape, numpy.float64).reshape(module.shape[0], -1)
    for part in module.parts:
        rows = numpy.concatenate([block for _, block in difference_blocks(part.tensor)])
        rows = rows if part.rows is None else rows[part.rows]
        whole[slice(None) if part.places is None else part.places] = rows
    meant: Array = whole.reshape(module.shape)
    values, written = written_in(dtype, meant, module.key, module.parts[0].tensor.tuned.info.file)
    return WrittenVector(values, float(numpy.linalg.norm(meant)), float(numpy.linalg.norm(written - meant)))


def squared_norm(parts: Sequence[Part]) -> float:
    """Return ‖tuned - base‖² of all numbers of the parts, in float64; vectors are columns."""
    blocks = _blocks(parts, is_known_finite=False)
    return math.fsum(float(numpy.square(block, dtype=numpy.float64).sum()) for _, block in blocks)
