"""What shapes alone tell of changes that are to be LoRA: whether they are thin for certain, and of which layers."""

from math import prod

from lora_inspect.algorithms import loha, lora
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
    """Whether the change is a product of a rank below that of its layer for certain; LoKr's may be one or not."""
    if algorithm.formula is None or algorithm.name not in (loha.ALGORITHM.name, lora.ALGORITHM.name):
        return False
    out, *columns = (size or 1 for size in algorithm.formula.shape(shapes))
    rank = algorithm.formula.rank(shapes) or 1
    inner = rank * shapes["w2_b"][0] if algorithm.name == loha.ALGORITHM.name else shapes["up"][1]
    return inner < min(out, prod(columns))
