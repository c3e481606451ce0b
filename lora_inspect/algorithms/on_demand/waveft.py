"""WaveFT of PEFT: a change with a wavelet transform that is zero except for the stored numbers.

W' = W + scaling · the inverse transform, of one level, of the numbers of `waveft_spectrum`, or without `use_idwt` the
numbers themselves. Their places are not stored: PEFT draws them by the `random_loc_seed` of its `adapter_config.json`.
Its forward and its merge are the same, and it has no multipliers. This file computes only the shortest wavelets, among
them PEFT's default.

Sources: Bilican et al. 2025, and the `WaveFTLayer` of PEFT 0.21: its `get_delta_weight` and `waverec2d` pass the detail
of the columns through the filter of the rows and the other way round.
"""

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from lora_inspect.algorithms.config_fields import is_number, is_seed, is_switch, read_fields
from lora_inspect.algorithms.drawn_entries import misfit
from lora_inspect.algorithms.record import Algorithm, Formula, Shapes, Surroundings, Tensors
from lora_inspect.maths.change import Change
from lora_inspect.maths.entries import Scattered

if TYPE_CHECKING:
    from torch import Tensor

# Daubechies's lowpass filters of 2 and 4 taps, of which the second is the symlet of that length, too.
_HAAR = (0.5**0.5, 0.5**0.5)
_FOUR = tuple(number / 32**0.5 for number in (1 + 3**0.5, 3 + 3**0.5, 3 - 3**0.5, 1 - 3**0.5))
LOWPASS: dict[str, tuple[float, ...]] = {"db1": _HAAR, "db2": _FOUR, "sym2": _FOUR}


def check(shapes: Shapes) -> str | None:
    """Return the problem with the shape of the spectrum (count,), or None."""
    spectrum = shapes["spectrum"]
    return f"waveft_spectrum {list(spectrum)} is not a row of numbers" if len(spectrum) != 1 or 0 in spectrum else None


def settings(around: Surroundings) -> dict[str, Any] | str:
    """Return the factor, the seed and the filter from the config, None for no transform, or an error text."""
    fields = {"scaling": is_number, "random_loc_seed": is_seed, "use_idwt": is_switch}
    found = read_fields(around.config, fields, "its change")
    if isinstance(found, str):
        return found
    if not found.pop("use_idwt"):
        return {**found, "lowpass": None}
    family = around.config and around.config.get("wavelet_family")
    if not isinstance(family, str) or family not in LOWPASS:
        return (
            f"its adapter_config.json gives no wavelet_family that lora-inspect supports ({', '.join(LOWPASS)}); "
            "merge it with the version of PEFT that trained it"
        )
    return {**found, "lowpass": LOWPASS[family]}


def change(
    tensors: Tensors,
    scale: float,
    alpha: float | None,
    *,
    scaling: float,
    random_loc_seed: int,
    lowpass: tuple[float, ...] | None,
    weight: tuple[int, ...],
) -> "Change":
    """Return the transform of the stored numbers at the entries that the seed draws."""
    from lora_inspect.algorithms.drawn_entries import drawn_places

    spectrum, shape = tensors["spectrum"], (weight[0], prod(weight[1:]))
    at = drawn_places(len(spectrum), shape, random_loc_seed)
    if lowpass is None:
        return Scattered(*at, spectrum, scaling)
    return synthesis(spectrum, at, shape, lowpass, scaling)


ALGORITHM = Algorithm(
    name="waveft",
    title="WaveFT",
    equation="W + scaling · inverse wavelet transform of the spectrum at drawn places",
    writers="PEFT",
    dialects={"peft": {"spectrum": ".waveft_spectrum"}},
    marks=("spectrum",),
    formula=Formula(check, lambda shapes: (None, None), misfit, rank=lambda shapes: None, change=change, sized=True),
    blends=False,
    has_alpha=False,
    peft_type="WAVEFT",
    settings=settings,
)


class _Axis:
    """The output positions of the coefficients at `at` along an axis of `size`, and a mark for the details."""

    def __init__(self, at: "Tensor", size: int, taps: int) -> None:
        # The transform is of an even length, and loses what the filter reaches beyond the ends.
        self._size, self._lost = size, taps - 2
        length = size + self._lost + (size + self._lost) % 2
        at = at + (length - size) // 2
        self.is_detail = at >= length // 2
        self._first = 2 * (at % (length // 2)) - self._lost

    def tap(self, number: int) -> "tuple[Tensor, Tensor]":
        """Return the positions that a tap reaches, and a mask of the ones that exist."""
        reached = self._first + number
        return reached, (reached >= 0) & (reached < self._size)


def synthesis(
    values: "Tensor", at: "tuple[Tensor, Tensor]", shape: tuple[int, int], lowpass: Sequence[float], scale: float
) -> Change:
    """Return scale · the inverse transform of `values` (count,) at the rows and columns `at` of a weight of `shape`.

    The filter `lowpass` is that of the synthesis; the other filter has its taps reversed, with alternating signs.
    """
    import torch

    taps = range(len(lowpass))
    highpass = [(-1) ** tap * lowpass[-1 - tap] for tap in taps]
    down, across = _Axis(at[0], shape[0], len(lowpass)), _Axis(at[1], shape[1], len(lowpass))
    rows, columns, parts = [], [], []
    for first in taps:
        row, has_row = down.tap(first)
        along = values.new_tensor([lowpass[first], highpass[first]])[across.is_detail.long()]
        for second in taps:
            column, has_column = across.tap(second)
            other = values.new_tensor([lowpass[second], highpass[second]])[down.is_detail.long()]
            inside = has_row & has_column
            rows.append(row[inside])
            columns.append(column[inside])
            parts.append((values * along * other)[inside])
    return Scattered(torch.cat(rows), torch.cat(columns), torch.cat(parts), scale)
