"""OFT of PEFT before 0.16: rotations of blocks of outputs, since 0.14 of inputs with a factor per row.

Q = (X - Xᵀ)/2 for the stored X (count, size, size), and R = (I - Q)(I + Q)^-1. Before 0.14 each block of rows becomes
Rᵀ W; since then W' = lengths · W · diag(R₁, R₂, …)ᵀ, over the columns of a flattened kernel. One block may serve all.
`coft` limits the norm of each X. PEFT has no multipliers for either. Source: the `OFTLayer` of PEFT 0.13 and of 0.15.
"""

from functools import partial
from math import ceil, prod
from typing import TYPE_CHECKING, Any

from lora_inspect.algorithms.config_fields import is_number
from lora_inspect.algorithms.record import Algorithm, Formula, Shapes, Surroundings, Tensors

if TYPE_CHECKING:
    from lora_inspect.maths.change import Change


def check(shapes: Shapes) -> str | None:
    """Return the problem with the shapes of generators (count, size, size) and lengths (out, 1), or None."""
    generators, lengths = shapes["generators"], shapes.get("lengths", (1, 1))
    if len(generators) != 3 or generators[1] != generators[2] or 0 in generators:
        return f"oft_r {list(generators)} are not square blocks"
    if len(lengths) != 2 or lengths[1] != 1 or 0 in lengths:
        return f"oft_s {list(lengths)} is not one number for each row"
    return None


def check_rows(shapes: Shapes) -> str | None:
    """Return the problem that `check` finds, or that the file has lengths and so is not of PEFT before 0.14."""
    return "oft_s is next to oft_r" if "lengths" in shapes else check(shapes)


def _turned(shapes: Shapes) -> int | None:
    """Return the number of rotated rows or columns, or None if one block may serve any multiple of its size."""
    count, size, _ = shapes["generators"]
    return count * size if count > 1 else None


def _fits(shapes: Shapes, length: int) -> bool:
    turned = _turned(shapes)
    return length == turned if turned else length % together(shapes) == 0


def together(shapes: Shapes) -> int:
    """Return the number of rows or columns of a block."""
    return shapes["generators"][1]


def shape_of_rows(shapes: Shapes) -> tuple[int | None, ...]:
    """Return (out, None): the columns are unknown."""
    return _turned(shapes), None


def misfit_of_rows(shapes: Shapes, weight: tuple[int, ...]) -> str | None:
    """Return the mismatch with a weight of this shape, or None.

    PEFT truncates the last block if the rows do not fill it, and then it is no rotation.
    """
    if len(weight) > 1 and _fits(shapes, weight[0]):
        return None
    return f"rotates {shapes['generators'][0]} blocks of {together(shapes)} rows"


def shape_of_columns(shapes: Shapes) -> tuple[int | None, ...]:
    """Return (out, in·kernel) of the weight."""
    return shapes["lengths"][0], _turned(shapes)


def misfit_of_columns(shapes: Shapes, weight: tuple[int, ...]) -> str | None:
    """Return the mismatch with a weight of this shape, or None."""
    if len(weight) > 1 and weight[0] == shapes["lengths"][0] and _fits(shapes, prod(weight[1:])):
        return None
    count, size, _ = shapes["generators"]
    return f"rotates {count} blocks of {size} inputs of {shapes['lengths'][0]} rows"


def settings(around: Surroundings) -> dict[str, Any] | str:
    """Return the settings of the limit from the config, or an error text if they are unknown."""
    config = around.config
    if config is None:
        return (
            "adapter_config.json says whether PEFT limits its rotation, but this module has none; put it next to the "
            "file"
        )
    coft, eps, block_share = (config.get(name) for name in ("coft", "eps", "block_share"))
    if coft is False:
        return {"eps": None}
    if coft is not True or not is_number(eps) or eps <= 0:
        return (
            "its adapter_config.json does not say the coft and eps that limit the rotation; merge it with the version "
            "of PEFT that trained it"
        )
    if block_share is not False:
        return (
            "its limit depends on the number of blocks that share the stored one; merge it with the version of PEFT "
            "that trained it"
        )
    return {"eps": eps}


def _blocks(tensors: Tensors, size: int, eps: float | None) -> Any:
    """Return R of every block; the limit is that of blocks of `size` outputs."""
    from lora_inspect.maths.rotation import cayley, limited

    stored = tensors["generators"]
    if eps is not None:
        stored = limited(stored, eps * size * size / stored.shape[0] ** 0.5)
    return cayley((stored.transpose(1, 2) - stored) / 2)


def change_of_rows(tensors: Tensors, scale: float, alpha: float | None, *, eps: float | None) -> "Change":
    """Return the rotation of blocks of rows."""
    from lora_inspect.maths.rotation import RotatedRows

    return RotatedRows(_blocks(tensors, tensors["generators"].shape[1], eps))


def change_of_columns(tensors: Tensors, scale: float, alpha: float | None, *, eps: float | None) -> "Change":
    """Return the rotation of blocks of columns, and the factor of each row."""
    from lora_inspect.maths.rotation import RotatedColumns

    lengths = tensors["lengths"]
    size = ceil(lengths.shape[0] / tensors["generators"].shape[0])
    return RotatedColumns(_blocks(tensors, size, eps), gain=lengths.reshape(-1, 1))


_of_peft = partial(Algorithm, multiplies=True, blends=False, has_alpha=False, peft_type="OFT", settings=settings)

ALGORITHMS = (
    _of_peft(
        name="peft_oft_lengths",
        title="OFT of PEFT 0.14 and 0.15",
        equation="lengths · W · diag(R₁, R₂, …)ᵀ",
        writers="PEFT 0.14 and 0.15",
        dialects={"peft": {"generators": ".oft_r", "lengths": ".oft_s"}},
        marks=("generators", "lengths"),
        formula=Formula(check, shape_of_columns, misfit_of_columns, rank=lambda shapes: None, change=change_of_columns),
    ),
    _of_peft(
        name="peft_oft_rows",
        title="OFT of PEFT before 0.14",
        equation="each block of rows: Rᵀ W",
        writers="PEFT before 0.14",
        dialects={"peft": {"generators": ".oft_r", "lengths": ".oft_s"}},
        marks=("generators",),
        formula=Formula(
            check_rows,
            shape_of_rows,
            misfit_of_rows,
            rank=lambda shapes: None,
            change=change_of_rows,
            together=together,
        ),
    ),
)
