"""A weight in the place of the base's own, whole, as ComfyUI reads it under `.set_weight`.

ComfyUI ignores the multiplier of such a tensor, and drops all other changes of its module's weight. Source:
`calculate_weight` and `load_lora` of ComfyUI.
"""

from collections.abc import Mapping
from typing import Any

from lora_inspect.algorithms import saved
from lora_inspect.algorithms.record import Algorithm, Formula, Shapes, Surroundings


def check(shapes: Shapes) -> str | None:
    """Return an error for a single number or an empty tensor, which is no weight."""
    shape = shapes[saved.SAVED]
    return None if shape and 0 not in shape else f"set_weight {list(shape)} is not a weight"


def settings(around: Surroundings) -> Mapping[str, Any] | str:
    """Return no settings, or an error text with the changes that ComfyUI would drop."""
    if around.beside:
        return (
            f"ComfyUI drops the {' and the '.join(around.beside)} of its module, but other programs would add it; "
            "write the two to separate files"
        )
    return {}


ALGORITHM = Algorithm(
    name="set_weight",
    title="a replaced weight",
    equation="set_weight in the place of W",
    writers="ComfyUI, while it loads FLUX.1's control adapters",
    dialects={"comfyui": {saved.SAVED: ".set_weight"}},
    marks=(saved.SAVED,),
    formula=Formula(check, saved.shape, saved.misfit, saved.rank, saved.change),
    transposed=False,
    has_alpha=False,
    replaces=True,
    settings=settings,
)
