"""How the shape that factors change is compared with the shape of a weight."""

from math import prod


def other_than(changed: tuple[int, ...], weight: tuple[int, ...]) -> str | None:
    """What is changed where that is not a weight of this shape; a 1x1 convolution is a Linear."""
    if _without_ones(changed) == _without_ones(weight):
        return None
    return f"changes a weight of {list(changed)}"


def flattened_other_than(rows: int, columns: int, weight: tuple[int, ...]) -> str | None:
    """The same for factors that tell (out, in·kernel) alone."""
    if (rows, columns) == (weight[0], prod(weight[1:])):
        return None
    return f"changes a weight of {rows} rows and {columns} columns"


def other_than_told(changed: tuple[int, ...], weight: tuple[int, ...]) -> str | None:
    """The same for factors that tell the kernel or, with two dimensions, (out, in·kernel) alone."""
    return flattened_other_than(*changed, weight) if len(changed) == 2 else other_than(changed, weight)


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Out and in features and the kernel without trailing ones."""
    end = len(shape)
    while end > 2 and shape[end - 1] == 1:
        end -= 1
    return shape[:end]
