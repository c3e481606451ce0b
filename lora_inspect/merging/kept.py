"""What the numbers of the output keep of each adapter, and when that is too little."""

from collections.abc import Sequence
from typing import Any

from lora_inspect.errors import LoraInspectError
from lora_inspect.escape import shortened
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.safetensors.dtypes import BITS
from lora_inspect.merging.rounding import NEAREST, OPTION, STOCHASTIC
from lora_inspect.sentences import counted, listed

# A share below the first is told, one below the second refused.
TOLD, REFUSED = 0.9, 0.5
# So many of the weights with the least shares are recorded, and named in a sentence.
_RECORDED, _NAMED = 10, 3
# What of a user's words keeps more than numbers of so many bits.
_FINER = {8: "bf16", 16: "fp32"}


class KeptWeight(NamedTuple):
    """The share of an adapter in one weight, whose numbers are written in `dtype`."""

    name: str
    share: float
    dtype: str


class KeptAdapter(NamedTuple):
    """How much of an adapter is in the weights that were written: its `share`, None where that cannot be told.

    `noise` is what rounding adds to the weights that it changes, over the change, `why` says what keeps the share from
    being told, `is_sampled` whether rows were left out. `worst` are the weights with the least shares, which are told.
    """

    path: str
    share: float | None
    noise: float | None
    why: str
    is_sampled: bool
    worst: tuple[KeptWeight, ...]

    @property
    def in_words(self) -> str:
        """The share, with a mark where it is that of a sample, or why there is none."""
        if self.share is None:
            return f"no share, as {self.why},"
        return f"{'~' if self.is_sampled else ''}{self.share:.2f}"


def worst_of(weights: Sequence[KeptWeight]) -> tuple[KeptWeight, ...]:
    """Those with less than should be, the least first."""
    return tuple(sorted((one for one in weights if one.share < TOLD), key=lambda one: one.share)[:_RECORDED])


def in_record(kept: Sequence[KeptAdapter], seed: int | None) -> dict[str, Any]:
    """What `merge --json` says of it; the noise where rounding was stochastic, by the `seed`."""
    record: dict[str, Any] = {
        "kept": {one.path: _rounded(one.share) for one in kept},
        "kept_worst": {one.path: {weight.name: _rounded(weight.share) for weight in one.worst} for one in kept},
        "kept_of_a_sample": [one.path for one in kept if one.is_sampled],
        "rounding": NEAREST if seed is None else STOCHASTIC,
    }
    if seed is None:
        return record
    return record | {"seed": seed, "noise": {one.path: _rounded(one.noise) for one in kept}}


def in_summary(kept: Sequence[KeptAdapter], seed: int | None) -> str:
    """A line of the shares, and of the noise where rounding was stochastic."""
    line = f"kept: {', '.join(f'{one.in_words} of {one.path}' for one in kept)}"
    if seed is None:
        return line
    noise = ", ".join(f"{one.noise:.2g} times the change of {one.path}" for one in kept if one.noise is not None)
    return f"{line}; rounded stochastically by seed {seed}{f', whose noise is {noise}' if noise else ''}"


def check_kept(kept: Sequence[KeptAdapter], seed: int | None) -> None:
    """Raises LoraInspectError where so little of an adapter would be in the output that it is another model."""
    lost = [one for one in kept if one.share is not None and one.share < REFUSED]
    if lost:
        least = min(lost, key=lambda one: one.share or 0.0)
        also = f", and of {counted(len(lost) - 1, 'other adapter')} no more than half" if len(lost) > 1 else ""
        raise LoraInspectError(
            f"{least.path}: the output would keep {least.in_words} of it{also}: {_because(least)}; "
            f"{', '.join(_ways_out(least, seed))}, or take what is left with --accept-loss."
        )


def notes_on(kept: Sequence[KeptAdapter], seed: int | None) -> list[str]:
    """A sentence on each adapter of which a part is lost."""
    return [
        f"{one.path}: the output keeps {one.in_words} of it: {_because(one)}; to keep more, "
        f"{', or '.join(_ways_out(one, seed))}."
        for one in kept
        if one.share is not None and one.share < TOLD
    ]


def _because(one: KeptAdapter) -> str:
    """Where the least of it is left, and what does that."""
    named = [f"{shortened(weight.name)} ({weight.share:.2f})" for weight in one.worst[:_NAMED]]
    types = listed(list(dict.fromkeys(weight.dtype for weight in one.worst)))
    where = f", least in {listed(named)}" if named else ""
    return f"its change is small beside the steps of {types or 'the numbers'}{where}"


def _ways_out(one: KeptAdapter, seed: int | None) -> list[str]:
    bits = min((BITS[weight.dtype] for weight in one.worst), default=16)
    finer = next((name for most, name in _FINER.items() if bits <= most), None)
    ways = [f"write finer numbers with --touched-dtype {finer} or --dtype {finer}"] if finer else []
    return ways if seed is not None else [*ways, f"keep its mean with {OPTION}"]


def _rounded(value: float | None) -> float | None:
    """To what single precision tells of it."""
    return None if value is None else round(value, 6)
