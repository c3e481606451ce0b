"""OFT that rotates blocks of rows: the diag-OFT of LyCORIS, and the files of sd-scripts' `networks.oft`.

With Q = X - Xᵀ for the stored blocks X (count, size, size): R = (I + Q)(I - Q)^-1, and each block of rows becomes (m ·
(R - I) + I)ᵀ W, times `rescale` if there is one. The alpha is no scale: alpha · out is the largest norm that all Q
together may have. Sources: Qiu et al. 2023; the `DiagOFTModule` of lycoris-lora, where an alpha of 0 sets no limit;
sd-scripts, where an alpha of 0 or less leaves no rotation, or the opposite one, and is refused here.
"""

from math import isfinite
from typing import TYPE_CHECKING, Any

from lora_inspect.algorithms.record import Algorithm, Formula, Shapes, Surroundings, Tensors

if TYPE_CHECKING:
    from lora_inspect.maths.change import Change

# What sd-scripts calls its networks and begins their names with. Our own network has the first name too, and says so.
_NETWORK, _PREFIX = "networks.oft", "oft_unet_"
_OWN = "lora_inspect.network"
_TINY = 1e-8


def check(shapes: Shapes) -> str | None:
    """Return the problem with the shapes of blocks (count, size, size) and rescale (count · size, 1, …), or None."""
    blocks, rescale = shapes["blocks"], shapes.get("rescale")
    if len(blocks) != 3 or blocks[1] != blocks[2] or 0 in blocks:
        return f"oft_blocks {list(blocks)} are not square blocks"
    if rescale is not None and (rescale[:1] != (_rows(shapes),) or any(size != 1 for size in rescale[1:])):
        return f"rescale {list(rescale)} is not one number for each of {_rows(shapes)} rows"
    return None


def _rows(shapes: Shapes) -> int:
    return shapes["blocks"][0] * shapes["blocks"][1]


def block_shape(out_features: int, rank: int) -> tuple[int, int, int]:
    """Return the shape of new blocks for a network's rank: their size is at most the rank and at most their count."""
    from lora_inspect.algorithms.lokr import factorise

    size, count = factorise(out_features, rank)
    return count, size, size


def shape(shapes: Shapes) -> tuple[int | None, ...]:
    """Return (out, None): the columns are unknown."""
    return _rows(shapes), None


def misfit(shapes: Shapes, weight: tuple[int, ...]) -> str | None:
    """Return the mismatch with a weight of this shape, or None."""
    return None if len(weight) > 1 and weight[0] == _rows(shapes) else f"rotates {_rows(shapes)} rows"


def together(shapes: Shapes) -> int:
    """Return the number of rows of a block."""
    return shapes["blocks"][1]


def settings(around: Surroundings) -> dict[str, Any] | str:
    """Return no settings, or an error text if the limit is unknown."""
    if around.alpha is None:
        return {}
    if around.shares_alpha:
        return (
            "its alpha may be the scale of the other change of the module or the limit of the rotation; write the "
            "two to separate files"
        )
    if not isfinite(around.alpha):
        return "the limit of its rotation, the stored alpha, is not a finite number; fetch the file again"
    is_of_sd_scripts = around.metadata.get("ss_network_module", "").startswith(_NETWORK) and _OWN not in around.metadata
    if around.alpha <= 0 and (is_of_sd_scripts or around.key.startswith(_PREFIX)):
        return (
            f"an alpha of {around.alpha:g} allows no rotation in sd-scripts, which wrote it, and any in other "
            "programs; merge it with sd-scripts, or write the right alpha"
        )
    return {}


def skew(blocks: Any, alpha: float | None) -> Any:
    """Return Q of the stored blocks (…, count, size, size), within the limit of their common norm; differentiable."""
    generators = blocks - blocks.transpose(-2, -1)
    limit = (alpha or 0.0) * blocks.shape[-3] * blocks.shape[-2]
    return generators * (limit / (generators.norm() + _TINY).clamp(min=limit)) if limit > 0 else generators


def change(tensors: Tensors, scale: float, alpha: float | None) -> "Change":
    """Return the rotation of blocks of rows."""
    from lora_inspect.maths.rotation import RotatedRows, cayley

    gain = tensors.get("rescale")
    return RotatedRows(cayley(skew(tensors["blocks"], alpha)), None if gain is None else gain.reshape(-1, 1))


ALGORITHM = Algorithm(
    name="oft",
    title="OFT",
    equation="rescale · (m · (R - I) + I)ᵀ W, by blocks of rows",
    writers="LyCORIS, sd-scripts, `networks`",
    dialects={"lycoris": {"blocks": ".oft_blocks", "rescale": ".rescale"}},
    marks=("blocks",),
    common=("rescale",),
    formula=Formula(check, shape, misfit, rank=lambda shapes: None, change=change, together=together),
    multiplies=True,
    settings=settings,
    # Those with stages are BOFT's.
    fits=lambda shapes: len(shapes.get("blocks", ())) != 4,
)
