"""Scaled OFT of OneTrainer: OFT of PEFT by the series of 5 terms, of numbers divided by 2 · sqrt(size - 1).

W' = W · diag(R₁, R₂, …)ᵀ of a Linear layer, with `size` inputs to a block. The mark `oft_R.scaled_oft` came to
OneTrainer's `master` with this divisor, and the branches that it was made on had others, so that the metadata have to
name the branch. A convolution is turned the other way round. There are no multipliers. Source: the `OFTModule` of
OneTrainer, in its history.
"""

from typing import TYPE_CHECKING, Any

from lora_inspect.algorithms import peft_oft
from lora_inspect.algorithms.record import Algorithm, Formula, Shapes, Surroundings, Tensors

if TYPE_CHECKING:
    from lora_inspect.maths.change import Change

_BRANCH, _MAIN = "ot_branch", "master"
_TERMS = 5


def check(shapes: Shapes) -> str | None:
    """Return the problem with the shapes of the generators (count, size·(size - 1)/2) and of the mark, or None."""
    if shapes["mark"] not in ((), (1,)):
        return f"scaled_oft {list(shapes['mark'])} is not a single yes or no"
    return peft_oft.check(shapes)


def misfit(shapes: Shapes, weight: tuple[int, ...]) -> str | None:
    """Return the mismatch with a Linear weight of this shape, or None."""
    if len(weight) > 2:
        return "turns a kernel in OneTrainer, which is the opposite rotation"
    return peft_oft.misfit(shapes, weight)


def settings(around: Surroundings) -> dict[str, Any] | str:
    """Return no settings, or an error text if the divisor is unknown."""
    if around.numbers.get("mark") != 1:
        return "its scaled_oft is not yes; fetch the file again"
    if around.metadata.get(_BRANCH) != _MAIN:
        return (
            "branches of OneTrainer divided the numbers of scaled OFT differently, but its metadata does not name "
            f"{_MAIN} as its {_BRANCH}; merge it with the version that trained it"
        )
    return {}


def change(tensors: Tensors, scale: float, alpha: float | None) -> "Change":
    """Return the rotation of blocks of columns."""
    from lora_inspect.maths.rotation import RotatedColumns, from_upper, neumann

    generators = tensors["generators"]
    size = peft_oft.block_size({"generators": tuple(generators.shape)})
    return RotatedColumns(neumann(from_upper(generators / (2 * (size - 1) ** 0.5), size), _TERMS))


ALGORITHM = Algorithm(
    name="onetrainer_oft",
    title="scaled OFT of OneTrainer",
    equation="W · diag(R₁, R₂, …)ᵀ",
    writers="OneTrainer",
    dialects={"peft": {"generators": ".oft_R.weight", "mark": ".oft_R.scaled_oft"}},
    marks=("generators", "mark"),
    formula=Formula(check, peft_oft.shape, misfit, rank=lambda shapes: None, change=change),
    multiplies=True,
    blends=False,
    has_alpha=False,
    numbers=("mark",),
    settings=settings,
    fits=lambda shapes: "mark" in shapes,
)
