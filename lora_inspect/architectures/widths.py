"""Which published sizes of a family the widths of a file's layers agree with."""

from collections.abc import Mapping

from .patterns import pattern_of
from .record import Architecture, Size

Shape = tuple[int | None, int | None]


def agreeing_sizes(architecture: Architecture, shapes: Mapping[str, set[Shape]]) -> tuple[Size, ...] | None:
    """The sizes that every width given agrees with, each by an entry that shows it; None where no width tells.

    `shapes` are the (out features, in features) of the modules by the pattern of their path.
    """
    told: dict[tuple[str | None, str], list[Size]] = {}
    for size in architecture.sizes:
        for separator in "._":
            pattern = pattern_of(size.path, separator)
            if pattern in shapes:
                told.setdefault((size.name, pattern), []).append(size)
                break

    shown: dict[str | None, Size] = {}
    wrong: set[str | None] = set()
    for (name, pattern), entries in told.items():
        for shape in shapes[pattern]:
            # Two leaves of one pattern, such as `ffn.0` and `ffn.2`, are alternatives for a shape.
            telling = [entry for entry in entries if _tells(entry, *shape)]
            agreeing = [entry for entry in telling if _agrees(entry, *shape)]
            if agreeing:
                shown.setdefault(name, agreeing[0])
            elif telling:
                wrong.add(name)
    if not shown and not wrong:
        return None
    return tuple(size for name, size in shown.items() if name not in wrong)


def _tells(size: Size, out_features: int | None, in_features: int | None) -> bool:
    return None not in (size.out_features, out_features) or None not in (size.in_features, in_features)


def _agrees(size: Size, out_features: int | None, in_features: int | None) -> bool:
    return (None in (size.out_features, out_features) or size.out_features == out_features) and (
        None in (size.in_features, in_features) or size.in_features == in_features
    )
