"""The share of each adapter that the output keeps, gathered while its weights are written.

`check_kept` refuses an output that keeps too little. The choice of the rows to look at depends only on the weight.
"""

import struct
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_inspect.errors import RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.safetensors.dtypes import BITS
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.merging.fold_chain import Fold, working_type
from lora_inspect.merging.options import NEAREST, OPTION, STOCHASTIC
from lora_inspect.sentences import Result, counted, listed, shortened

if TYPE_CHECKING:
    from torch import Tensor

    from lora_inspect.maths.share import Estimate, RowObserver, StepSums

# A share below the first is told, one below the second refused.
TOLD, REFUSED = 0.9, 0.5
# So many of the weights with the least shares are recorded, and named in a sentence.
_RECORDED, _NAMED = 10, 3
# What of a user's words keeps more than numbers of so many bits.
_FINER = {8: "bf16", 16: "fp32"}


@dataclass(frozen=True, slots=True)
class WeightRetention:
    """The share of an adapter in one weight that is written in `dtype`."""

    name: str
    share: float
    dtype: str


@dataclass(frozen=True, slots=True, repr=False)
class AdapterRetention(Result):
    """The share of an adapter that the written weights keep: its `share`, None if that is not determined.

    `noise` is the rounding error of the changed weights over the change. `why` is the reason that the share is not
    determined; `is_sampled` is True if rows were left out. `worst` are the weights with the smallest shares.
    """

    path: str
    share: float | None
    noise: float | None
    why: str
    is_sampled: bool
    worst: tuple[WeightRetention, ...]

    @property
    def in_words(self) -> str:
        """The share, with a mark where it is that of a sample, or why there is none."""
        if self.share is None:
            return f"no share, as {self.why},"
        return f"{'~' if self.is_sampled else ''}{self.share:.2f}"


def worst_of(weights: Sequence[WeightRetention]) -> tuple[WeightRetention, ...]:
    """Return the weights with too small shares, the smallest first."""
    return tuple(sorted((one for one in weights if one.share < TOLD), key=lambda one: one.share)[:_RECORDED])


def in_record(kept: Sequence[AdapterRetention], seed: int | None) -> dict[str, Any]:
    """Return the entries of `merge --json`; with stochastic rounding by the `seed`, also the noise."""
    record: dict[str, Any] = {
        "kept": {one.path: _rounded(one.share) for one in kept},
        "kept_worst": {one.path: {weight.name: _rounded(weight.share) for weight in one.worst} for one in kept},
        "kept_of_a_sample": [one.path for one in kept if one.is_sampled],
        "rounding": NEAREST if seed is None else STOCHASTIC,
    }
    if seed is None:
        return record
    return record | {"seed": seed, "noise": {one.path: _rounded(one.noise) for one in kept}}


def in_summary(kept: Sequence[AdapterRetention], seed: int | None) -> str:
    """Return a line of the shares, and of the noise where rounding was stochastic."""
    line = f"kept: {', '.join(f'{one.in_words} of {one.path}' for one in kept)}"
    if seed is None:
        return line
    noise = ", ".join(f"{one.noise:.2g} times the change of {one.path}" for one in kept if one.noise is not None)
    return f"{line}; rounded stochastically with seed {seed}{f' (noise: {noise})' if noise else ''}"


def check_kept(kept: Sequence[AdapterRetention], seed: int | None) -> None:
    """Raise LoraInspectError if so little of an adapter would be in the output that it is another model."""
    lost = [one for one in kept if one.share is not None and one.share < REFUSED]
    if lost:
        least = min(lost, key=lambda one: one.share or 0.0)
        also = f", and no more than half of {counted(len(lost) - 1, 'other adapter')}" if len(lost) > 1 else ""
        raise RefusedError(
            least.path,
            f"the output would keep {least.in_words} of it{also}: {_because(least)}",
            f"{', '.join(_ways_out(least, seed))}, or accept the loss with --allow-loss",
        )


def notes_on(kept: Sequence[AdapterRetention], seed: int | None) -> list[str]:
    """Return a sentence on each adapter that is kept only in part."""
    return [
        f"{one.path}: the output keeps {one.in_words} of it: {_because(one)}; to keep more, "
        f"{', or '.join(_ways_out(one, seed))}."
        for one in kept
        if one.share is not None and one.share < TOLD
    ]


def _because(one: AdapterRetention) -> str:
    """Return the cause of the loss, and the weights that keep the least."""
    named = [f"{shortened(weight.name)} ({weight.share:.2f})" for weight in one.worst[:_NAMED]]
    types = listed(list(dict.fromkeys(weight.dtype for weight in one.worst)))
    where = f", least in {listed(named)}" if named else ""
    return f"its change is small compared with the steps of {types or 'the numbers'}{where}"


def _ways_out(one: AdapterRetention, seed: int | None) -> list[str]:
    bits = min((BITS[weight.dtype] for weight in one.worst), default=16)
    finer = next((name for most, name in _FINER.items() if bits <= most), None)
    ways = [f"write finer numbers with --changed-dtype {finer} or --dtype {finer}"] if finer else []
    return ways if seed is not None else [*ways, f"keep its mean with {OPTION}"]


def _rounded(value: float | None) -> float | None:
    """Return the value rounded to the accuracy of single precision."""
    return None if value is None else round(value, 6)


# Of numbers of so many bits and fewer all rows are looked at: they are what loses a change.
FEW_BITS = 8
# Of others a sixteenth is: some neighbouring rows of each group of sixteen times as many, since many small pieces take
# longer than a few. Not the same ones of each group: layers have structure in steps of powers of two.
GROUP, _STEP = 16, 7
# A weight has about so many groups where it has as many rows.
_GROUPS = 8


def looked_rows(rows: int, first: int, count: int) -> list[tuple[int, int]]:
    """Return, as (start, stop), the rows to look at among `count` from `first` on, in a weight of so many `rows`.

    Over the whole weight they are at least a sixteenth of its rows.
    """
    height = max(1, rows // (GROUP * _GROUPS))
    group = GROUP * height
    found = []
    for number in range(first // group, -(-(first + count) // group)):
        start = max(number * group, min(number * group + number * _STEP % GROUP * height, rows - height))
        begin, end = max(start, first), min(start + height, first + count, rows)
        if begin < end:
            found.append((begin, end))
    return found


class WeightWitness:
    """An observer of the blocks of one weight; several threads use it at the same time.

    `read` is the weight as it is folded, in the shape of its rows, and `dtype` the type of the output.
    """

    def __init__(self, read: TensorInfo, folds: Sequence[Fold], dtype: str) -> None:
        self.name, self.dtype = read.name, dtype
        self.adapters = list(dict.fromkeys(fold.adapter.checkpoint.path for fold in folds))
        self.is_sampled = BITS[dtype] > FEW_BITS
        self._working = working_type(read.dtype, dtype)
        self._rows, self._entries = read.shape[0] if read.shape else 1, read.numel
        self._sums: StepSums | None = None

    def look(self, rows: "Tensor", first: int) -> "RowObserver | None":
        """Look at a block before the folds; return None if no row of it is looked at."""
        from lora_inspect.maths.share import RowObserver

        spans = looked_rows(self._rows, first, len(rows)) if self.is_sampled else [(first, first + len(rows))]
        return RowObserver(spans, rows, first, len(self.adapters)) if spans else None

    def done(self, sums: "StepSums | None") -> None:
        """Keep the sums over all blocks, added in their order."""
        self._sums = sums

    def retention(self) -> "Estimate | None":
        """Return the estimate of the shares, None for a weight without entries."""
        from lora_inspect.maths.share import estimate_of

        return estimate_of(self._sums, self._entries, self._working) if self._sums else None


class ObservedWeight(NamedTuple):
    """The observation of one weight that was written in `dtype`: `kept` is over the `adapters`, given by number."""

    name: str
    dtype: str
    is_sampled: bool
    adapters: tuple[int, ...]
    kept: "Estimate"

    def in_record(self) -> list[Any]:
        """Return the record for JSON, exact to the last bit."""
        along, gram, rounding = self.kept
        sums = (along, gram, rounding.scatter, rounding.square, rounding.least)
        numbers = [number for own in sums for number in own.flatten().tolist()]
        packed = struct.pack(f"<{len(numbers)}d", *numbers)
        return [self.name, self.dtype, self.is_sampled, list(self.adapters), b64encode(packed).decode()]

    @classmethod
    def of_record(cls, record: Sequence[Any]) -> "ObservedWeight":
        """Return the observation that `in_record` gave; ValueError, TypeError or LookupError for anything else."""
        import torch

        from lora_inspect.maths.share import Estimate, Rounding

        name, dtype, is_sampled, adapters, packed = record
        count = len(adapters)
        sizes = [count, count * count, count * count, count, count]
        if dtype not in BITS or not all(type(one) is int and one >= 0 for one in adapters):
            raise ValueError(f"{record[:4]} is no weight that was seen")
        found = struct.unpack(f"<{sum(sizes)}d", b64decode(packed, validate=True))
        numbers = torch.tensor(found, dtype=torch.float64, device="cpu")
        along, gram, scatter, square, least = torch.split(numbers, sizes)
        pairs = (count, count)
        rounding = Rounding(scatter.reshape(pairs), torch.zeros_like(along), square, least)
        kept = Estimate(along, gram.reshape(pairs), rounding)
        return cls(str(name), dtype, bool(is_sampled), tuple(adapters), kept)


class Retention:
    """The share of each of the `adapters`, by path, that the output keeps over all weights looked at."""

    def __init__(self, adapters: Sequence[str]) -> None:
        self._adapters = list(adapters)
        self._witnesses: list[WeightWitness] = []

    def witness(self, read: TensorInfo, folds: Sequence[Fold], dtype: str) -> WeightWitness:
        """Return the witness of one weight; the order of the calls is the order of adding up."""
        witness = WeightWitness(read, folds, dtype)
        self._witnesses.append(witness)
        return witness

    def observed(self) -> Iterator[ObservedWeight]:
        """Yield the observation of each weight, in their order, once all are written."""
        number = {path: number for number, path in enumerate(self._adapters)}
        for one in self._witnesses:
            if kept := one.retention():
                yield ObservedWeight(
                    one.name, one.dtype, one.is_sampled, tuple(number[path] for path in one.adapters), kept
                )


def kept_of(adapters: Sequence[str], seen: Iterable[ObservedWeight]) -> list[AdapterRetention]:
    """Return the share kept of each of the `adapters`, by path, over all observed weights."""
    from lora_inspect.maths.share import REASONS, Estimate

    whole = Estimate.nothing(len(adapters))
    worst: list[tuple[WeightRetention, ...]] = [()] * len(adapters)
    sampled: set[int] = set()
    for one in seen:
        whole.add(one.kept, one.adapters)
        sampled.update(one.adapters if one.is_sampled else ())
        for number, share in zip(one.adapters, one.kept.shares(), strict=True):
            if share.reported is not None:
                worst[number] = worst_of([*worst[number], WeightRetention(one.name, share.reported, one.dtype)])
    return [
        AdapterRetention(
            path=path,
            share=share.reported,
            noise=share.noise,
            why=REASONS.get(share.why, ""),
            is_sampled=number in sampled,
            worst=worst[number],
        )
        for number, (path, share) in enumerate(zip(adapters, whole.shares(), strict=True))
    ]
