"""Which weights PEFT's methods fit whose numbers belong to entries that are drawn by a seed."""

from math import prod

from lora_inspect.algorithms.record import Shapes

# Of as many numbers `torch.randperm` draws another order since 2025 than before.
MOST_ENTRIES = (2**32 - 1) // 20


def misfit(shapes: Shapes, weight: tuple[int, ...]) -> str | None:
    """What the `spectrum` (count,) changes where that is not a Linear weight of this shape, or None."""
    count = shapes["spectrum"][0]
    if len(weight) < 2 or prod(weight[2:]) != 1 or count > prod(weight):
        return f"changes {count} different entries of the transform of a Linear weight"
    if prod(weight) >= MOST_ENTRIES:
        return f"changes entries that versions of torch draw alike where there are fewer than {MOST_ENTRIES}"
    return None
