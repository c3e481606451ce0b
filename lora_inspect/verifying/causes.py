"""What a share that is not 1 may come from: what programs are known to do to a scale or a multiplier."""

from collections.abc import Callable, Sequence
from math import isclose, sqrt

from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.merging.fold_chain import Fold


class Cause(NamedTuple):
    """`ratio` is the share that it leaves of a module, None where it cannot be; `symbol` is that in letters."""

    code: str
    symbol: str
    says: str
    ratio: Callable[[Fold], float | None]


def _without_root(fold: Fold) -> float | None:
    rank = fold.contribution.rank
    return 1 / sqrt(rank) if rank and fold.contribution.rslora else None


def _with_root(fold: Fold) -> float | None:
    rank = fold.contribution.rank
    return sqrt(rank) if rank and not fold.contribution.rslora and fold.contribution.has_scale else None


def _root_twice(fold: Fold) -> float | None:
    rank = fold.contribution.rank
    return sqrt(rank) if rank and fold.contribution.rslora else None


def _without_scale(fold: Fold) -> float | None:
    scale = fold.contribution.scale
    return 1 / scale if scale and fold.contribution.has_scale else None


def _scale_twice(fold: Fold) -> float | None:
    return fold.contribution.scale if fold.contribution.has_scale else None


def _without_multiplier(fold: Fold) -> float | None:
    return 1 / fold.multiplier if fold.multiplier else None


def _multiplier_twice(fold: Fold) -> float | None:
    return fold.multiplier


def _twice(fold: Fold) -> float | None:
    return 2.0


CAUSES = (
    Cause("rslora-lost", "1/sqrt(rank)", "merged as alpha/rank though it is RS-LoRA", _without_root),
    Cause("rslora-assumed", "sqrt(rank)", "merged as alpha/sqrt(rank) though it is alpha/rank", _with_root),
    Cause("rslora-twice", "sqrt(rank)", "merged with sqrt(rank) applied twice", _root_twice),
    Cause("scale-lost", "1/scale", "merged at scale 1, without its alpha", _without_scale),
    Cause("scale-twice", "scale", "merged with its scale applied twice", _scale_twice),
    Cause("multiplier-lost", "1/multiplier", "merged at multiplier 1", _without_multiplier),
    Cause("multiplier-twice", "multiplier", "merged with its multiplier applied twice", _multiplier_twice),
    Cause("twice", "", "merged twice", _twice),
)


def ratio_of(cause: Cause, fold: Fold) -> float | None:
    """The share that the cause leaves, None where it cannot be or changes nothing."""
    ratio = cause.ratio(fold)
    return None if ratio is None or isclose(ratio, 1.0, rel_tol=1e-3) else ratio


def fitting(found: Sequence[tuple[Sequence[Fold], float, float]]) -> list[Cause]:
    """The causes that explain each of the (folds of a module, share, how far it may be off)."""
    return [cause for cause in CAUSES if all(_fits(cause, *one) for one in found)]


def _fits(cause: Cause, folds: Sequence[Fold], share: float, tolerance: float) -> bool:
    ratios = {ratio_of(cause, fold) for fold in folds}
    ratio = ratios.pop()
    return not ratios and ratio is not None and abs(share - ratio) <= tolerance * max(1.0, ratio)
