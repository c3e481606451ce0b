"""C3A of PEFT: a change of circulant blocks, stored as the first row of each.

Block (m, n) has size b, and its entry (i, j) is `c3a_kernel`[m, n, (j - i) mod b] / in; it is added to the weight. PEFT
computes it by Fourier transforms in float32, in its forward as in its merge; here the numbers are put directly in their
places, which differs only by that rounding. It has no multipliers. Sources: Chen et al. 2024, and the `C3ALayer` of
PEFT 0.21.
"""

from functools import partial
from typing import TYPE_CHECKING, Any

from lora_inspect.algorithms.lora import other_than
from lora_inspect.algorithms.record import Algorithm, Formula, Shapes, Tensors

if TYPE_CHECKING:
    from lora_inspect.maths.change import Change


def check(shapes: Shapes) -> str | None:
    """Return the problem with the shape of the kernel (out / b, in / b, b), or None."""
    kernel = shapes["kernel"]
    return f"c3a_kernel {list(kernel)} are not rows of circulant blocks" if len(kernel) != 3 or 0 in kernel else None


def shape(shapes: Shapes) -> tuple[int, int]:
    """Return (out, in) of the weight."""
    down, across, size = shapes["kernel"]
    return down * size, across * size


def misfit(shapes: Shapes, weight: tuple[int, ...]) -> str | None:
    """Return the mismatch with a weight of this shape, or None."""
    return other_than(shape(shapes), weight)


def change(tensors: Tensors, scale: float, alpha: float | None) -> "Change":
    """Return the blocks, row by row."""
    from lora_inspect.maths.change import Additive

    _, across, size = tensors["kernel"].shape
    # Window t of a row that is repeated begins with its entry t: row i of the block is window size - i.
    windows = tensors["kernel"].repeat(1, 1, 2).unfold(2, size, 1)
    return Additive(partial(_rows, windows), 1.0 / (across * size))


def _rows(windows: Any, first: int, last: int) -> Any:
    """Return the rows `first` to `last` of the change without its scale."""
    size = windows.shape[3]
    down, starts = [row // size for row in range(first, last)], [size - row % size for row in range(first, last)]
    return windows[down, :, starts].flatten(1)


ALGORITHM = Algorithm(
    name="c3a",
    title="C3A",
    equation="W + circulant blocks of c3a_kernel / in",
    writers="PEFT",
    dialects={"peft": {"kernel": ".c3a_kernel"}},
    marks=("kernel",),
    formula=Formula(check, shape, misfit, rank=lambda shapes: None, change=change),
    transposed=False,
    blends=False,
    has_alpha=False,
    peft_type="C3A",
)
