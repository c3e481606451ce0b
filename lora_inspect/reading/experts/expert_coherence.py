"""How alike the columns of B are within experts, if they lie one way or the other: a note, from which nothing is made.

Training turns the columns of one expert towards each other. In toy models of Qwen3-MoE that were trained a little the
mean |cosine| of two columns was 0.25 to 0.44 within the experts and 0.08 to 0.13 with the other packing; no file of a
real model has been looked at.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations
from math import isfinite, sqrt

from lora_inspect.files.checkpoint import Checkpoint, read_row
from lora_inspect.files.safetensors.dtypes import FP8, PLAIN_FLOATS, decode_number
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.maths.packed_factors import GROUPED_BY_EXPERT, PACKINGS
from lora_inspect.reading.experts.packed_experts import OPTION, packing_of
from lora_inspect.reading.file_reading import FileReading
from lora_inspect.reading.model.contribution import Contribution
from lora_inspect.reading.model.problem import Finding
from lora_inspect.reading.peft.config_lookup import Speakers

# What is looked at: so many parameters, rows of each and experts, spread over what there is.
_PARAMETERS, _ROWS, _EXPERTS = 4, 64, 16
# More columns, or pairs of one expert, take longer than a note is worth.
_MOST_COLUMNS, _MOST_RANK = 1 << 14, 64
# Columns are alike where the mean |cosine| is this large, and this many times as large as with the other packing.
_ALIKE, _TIMES = 0.2, 2.0


def packing_hint(reading: FileReading) -> Iterator[Finding]:
    """What the columns look like where nothing says how they lie."""
    opened = list(_open(reading))
    chosen = [opened[number] for number in _spread(len(opened), _PARAMETERS)]
    means = [mean for up, experts in chosen if (mean := _likeness(reading.checkpoint, up, experts))]
    if not means:
        return
    likeness = {packing: sum(mean[packing] for mean in means) / len(means) for packing in PACKINGS}
    other, best = sorted(PACKINGS, key=lambda packing: likeness[packing])
    if likeness[best] < max(_ALIKE, _TIMES * likeness[other]):
        return
    yield Finding(
        "expert-hint",
        f"the columns of B are alike within experts if they are packed {best}, as training makes them (mean |cosine| "
        f"{likeness[best]:.2f}, {likeness[other]:.2f} if {other}); where it is so, say it with --{OPTION} {best}",
    )


def _open(reading: FileReading) -> Iterator[tuple[TensorInfo, int]]:
    """B and the number of experts of each parameter whose packing nothing tells, not even the user."""
    speakers = Speakers(reading.configs)
    for contribution in reading.contributions:
        if (
            contribution.algorithm.packed
            and contribution.algorithm.experts > 1
            and contribution.unsettled
            and _is_small(contribution)
        ):
            config = next((found.config for found in speakers.of(contribution)), {})
            if packing_of(contribution, config, reading.checkpoint.metadata)[0] is None:
                yield contribution.factors["up"], contribution.algorithm.experts


def _is_small(contribution: Contribution) -> bool:
    up = contribution.factors["up"]
    return up.dtype in PLAIN_FLOATS | FP8 and up.shape[1] <= _MOST_COLUMNS and contribution.known_rank <= _MOST_RANK


def _likeness(checkpoint: Checkpoint, up: TensorInfo, experts: int) -> dict[str, float] | None:
    """The mean |cosine| of two columns of one expert by packing; None where a column has no direction."""
    height, width = up.shape
    size = up.nbytes // up.numel
    columns: list[list[float]] = [[] for _ in range(width)]
    for number in _spread(height, _ROWS):
        row = read_row(checkpoint, up.name, number)
        for column, values in enumerate(columns):
            values.append(float(decode_number(up.dtype, row[size * column : size * (column + 1)]) or 0.0))
    directions = [_direction(values) for values in columns]
    rank = width // experts
    found: dict[str, float] = {}
    for packing in PACKINGS:
        cosines = []
        for expert in _spread(experts, _EXPERTS):
            is_grouped = packing == GROUPED_BY_EXPERT
            own = slice(expert * rank, (expert + 1) * rank) if is_grouped else slice(expert, width, experts)
            for one, other in combinations(directions[own], 2):
                if one is None or other is None:
                    return None
                cosines.append(abs(sum(x * y for x, y in zip(one, other, strict=True))))
        found[packing] = sum(cosines) / len(cosines)
    return found


def _direction(values: Sequence[float]) -> list[float] | None:
    """The values at length 1; None where they have no length."""
    length = sqrt(sum(value * value for value in values))
    return [value / length for value in values] if length and isfinite(length) else None


def _spread(count: int, most: int) -> list[int]:
    """At most so many of the numbers below `count`, spread over them."""
    return sorted({number * count // most for number in range(most)}) if count else []
