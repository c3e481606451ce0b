"""FourierFT of PEFT: a change whose Fourier transform is zero but for the numbers that are stored.

W' = W + scaling · Re(ifft2(F)) with the numbers of `fourierft_spectrum` in F (out, in). Where they belong is not
stored: PEFT draws it by the `random_loc_seed` of its `adapter_config.json`, the same for all layers of one shape. It
computes in float32, in its forward as in its merge; here it is the type that weights are folded in. PEFT has no
strengths for it. Sources: Gao et al. 2024, and the `FourierFTLayer` of PEFT 0.21, whose draw is that of 0.14.
"""

from math import prod
from typing import TYPE_CHECKING, Any

from lora_inspect.algorithms.config_fields import is_number, is_seed, read_fields
from lora_inspect.algorithms.drawn_entries import misfit
from lora_inspect.algorithms.record import Algorithm, Formula, Shapes, Surroundings, Tensors

if TYPE_CHECKING:
    from lora_inspect.maths.change import Change


def check(shapes: Shapes) -> str | None:
    """What is wrong with the shape of the spectrum (count,), or None."""
    spectrum = shapes["spectrum"]
    return f"fourierft_spectrum {list(spectrum)} is no row of numbers" if len(spectrum) != 1 or 0 in spectrum else None


def settings(around: Surroundings) -> dict[str, Any] | str:
    """The factor and the seed of the config, or why they are not known."""
    return read_fields(around.config, {"scaling": is_number, "random_loc_seed": is_seed}, "its change")


def change(
    tensors: Tensors,
    scale: float,
    alpha: float | None,
    *,
    scaling: float,
    random_loc_seed: int,
    weight: tuple[int, ...],
) -> "Change":
    """The transform of what is stored, at the entries of the seed."""
    from lora_inspect.maths.change import Additive
    from lora_inspect.maths.drawn import drawn_places
    from lora_inspect.maths.fourier import InverseTransform

    spectrum, shape = tensors["spectrum"], (weight[0], prod(weight[1:]))
    at = drawn_places(len(spectrum), shape, random_loc_seed)
    return Additive(InverseTransform.of(spectrum, at, shape), scaling)


ALGORITHM = Algorithm(
    name="fourierft",
    title="FourierFT",
    equation="W + scaling · Re(ifft2(spectrum at drawn places))",
    writers="PEFT",
    dialects={"peft": {"spectrum": ".fourierft_spectrum"}},
    marks=("spectrum",),
    formula=Formula(check, lambda shapes: (None, None), misfit, rank=lambda shapes: None, change=change, sized=True),
    blends=False,
    has_alpha=False,
    peft_type="FOURIERFT",
    settings=settings,
)
