"""WaveFT of PEFT: a change whose wavelet transform is zero but for the numbers that are stored.

W' = W + scaling · the inverse transform, of one level, of the numbers of `waveft_spectrum`, or without `use_idwt` the
numbers themselves. Where they belong is not stored: PEFT draws it by the `random_loc_seed` of its
`adapter_config.json`. Its forward and its merge are the same, and it has no strengths. Of the wavelets only the
shortest ones are computed here, among them the one that PEFT takes unless it is told otherwise. Sources: Bilican et al.
2025, and the `WaveFTLayer` of PEFT 0.21.
"""

from math import prod
from typing import TYPE_CHECKING, Any

from lora_inspect.algorithms.config_fields import is_number, is_seed, is_switch, read_fields
from lora_inspect.algorithms.drawn_entries import misfit
from lora_inspect.algorithms.record import Algorithm, Formula, Shapes, Surroundings, Tensors

if TYPE_CHECKING:
    from lora_inspect.maths.change import Change

# Daubechies's lowpass filters of 2 and 4 taps, of which the second is the symlet of that length, too.
_HAAR = (0.5**0.5, 0.5**0.5)
_FOUR = tuple(number / 32**0.5 for number in (1 + 3**0.5, 3 + 3**0.5, 3 - 3**0.5, 1 - 3**0.5))
LOWPASS: dict[str, tuple[float, ...]] = {"db1": _HAAR, "db2": _FOUR, "sym2": _FOUR}


def check(shapes: Shapes) -> str | None:
    """What is wrong with the shape of the spectrum (count,), or None."""
    spectrum = shapes["spectrum"]
    return f"waveft_spectrum {list(spectrum)} is no row of numbers" if len(spectrum) != 1 or 0 in spectrum else None


def settings(around: Surroundings) -> dict[str, Any] | str:
    """The factor, the seed and the filter of the config, None for no transform, or why they are not known."""
    fields = {"scaling": is_number, "random_loc_seed": is_seed, "use_idwt": is_switch}
    found = read_fields(around.config, fields, "its change")
    if isinstance(found, str):
        return found
    if not found.pop("use_idwt"):
        return {**found, "lowpass": None}
    family = around.config and around.config.get("wavelet_family")
    if not isinstance(family, str) or family not in LOWPASS:
        return (
            f"its adapter_config.json does not say that the wavelet_family is one of {', '.join(LOWPASS)}, which are "
            "those that are built; merge it with the version of PEFT that trained it"
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
    """The transform of what is stored, at the entries of the seed."""
    from lora_inspect.maths.drawn import drawn_places
    from lora_inspect.maths.entries import Scattered
    from lora_inspect.maths.wavelets import synthesis

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
