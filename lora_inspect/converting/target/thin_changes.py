"""What shapes alone tell of changes that are to be LoRA: whether they are thin for certain, and of which layers."""

from collections.abc import Callable, Mapping
from math import prod

from lora_inspect.algorithms import loha, lokr, lora
from lora_inspect.algorithms.record import Algorithm, Shapes

# What (in·kernel) of a 3x3 convolution is a multiple of.
_KERNEL = 9
# Those whose factors may have the kernel of a convolution flattened.
_FLATTENED = ("loha", "lokr")


def is_kernel_open(algorithm: Algorithm, shapes: Shapes) -> bool:
    """Whether the factors do not tell a Linear layer from a convolution."""
    if algorithm.formula is None or algorithm.name not in _FLATTENED or "mid" in shapes:
        return False
    known = [size for size in algorithm.formula.shape(shapes) if size is not None]
    return len(known) == 2 and known[1] % _KERNEL == 0


def is_thin(algorithm: Algorithm, shapes: Shapes) -> bool:
    """Whether the change is a product of a rank below that of its layer for certain."""
    inner = _INNER.get(algorithm.name, _unknown)(shapes)
    if algorithm.formula is None or inner is None:
        return False
    out, *columns = (size or 1 for size in algorithm.formula.shape(shapes))
    return inner < min(out, prod(columns))


def _of_loha(shapes: Shapes) -> int:
    return shapes["w1_b"][0] * shapes["w2_b"][0]


def _of_lokr(shapes: Shapes) -> int | None:
    """The product of both factors' ranks, of a whole one its smaller side; None where both are whole."""
    if lokr.is_whole(shapes):
        return None
    sides = (
        shapes[f"{one}_b"][0] if one not in shapes else min(shapes[one][0], prod(shapes[one][1:]))
        for one in ("w1", "w2")
    )
    return prod(sides)


def _unknown(shapes: Shapes) -> None:
    return None


# The inner size of the product by algorithm; of others nobody knows whether there is one.
_INNER: Mapping[str, Callable[[Shapes], int | None]] = {
    lora.ALGORITHM.name: lambda shapes: shapes["up"][1],
    loha.ALGORITHM.name: _of_loha,
    lokr.ALGORITHM.name: _of_lokr,
}
