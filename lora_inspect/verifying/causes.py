"""Possible causes of a share that is not 1: known errors of programs in a scale or a multiplier.

Some programs make another change than the meant one: those changes are here for comparison.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from math import isclose, sqrt

from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.maths.dora import INPUT, MULTIPLIER_RULES, OF_BASE, OF_SUM, OUTPUT, DoraSpelling
from lora_inspect.merging.fold_chain import Fold
from lora_inspect.reading.model.contribution import Contribution
from lora_inspect.verifying.shares import Term


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
    Cause("merged-twice", "", "merged twice", _twice),
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


class Alternative(NamedTuple):
    """Other terms for a weight. `says` describes those of `adapter`; `rule` is a rule for DoRA."""

    code: str
    adapter: str
    says: str
    terms: tuple[Term, ...]
    rule: str | None = None


Other = Callable[[Fold], Fold | None]


def alternatives(terms: Sequence[Term], idle: Sequence[Term], rule: str | None) -> Iterator[Alternative]:
    """The likelier ones first. `idle` are the terms of adapters that should not be there."""
    for term in idle:
        for together in ((*terms, term), (term, *terms)):
            yield _there_at_0(term, together, rule)
    for number, term in enumerate(terms):
        for code, says, other in _OTHERS:
            folds = [(fold, other(fold)) for fold in term.folds]
            if any(changed is not None for _, changed in folds):
                own = Term(term.adapter, tuple(changed or fold for fold, changed in folds))
                others = (*terms[:number], own, *terms[number + 1 :])
                yield Alternative(code, term.adapter, says, others, rule)
        if any(fold.contribution.magnitude for fold in term.folds):
            own = Term(term.adapter, term.folds * 2)
            others = (*terms[:number], own, *terms[number + 1 :])
            yield Alternative("dora-merged-twice", term.adapter, "is merged twice", others, rule)
    magnitudes = [(term, fold) for term in terms for fold in term.folds if fold.contribution.magnitude]
    if any(fold.multiplier != 1 for _, fold in magnitudes):
        for other_rule in MULTIPLIER_RULES:
            if other_rule != rule:
                says = f"has the multiplier rule '{other_rule}' for DoRA"
                yield Alternative("dora-rule", magnitudes[0][0].adapter, says, tuple(terms), other_rule)
    if len(terms) > 1:
        says = "is merged in another order"
        yield Alternative("order", terms[0].adapter, says, tuple(reversed(terms)), rule)


def rounded_norms(terms: Sequence[Term], rule: str | None) -> Iterator[Alternative]:
    """DoRA with the eps of a type added to all norms, as LyCORIS does: the same change, rounded in that type."""
    for dtype, power in (("bfloat16", -7), ("float16", -10)):
        folds = [[(fold, _with_eps(fold, 2.0**power)) for fold in term.folds] for term in terms]
        changed = [term.adapter for term, own in zip(terms, folds, strict=True) if any(other for _, other in own)]
        if changed:
            others = (
                Term(term.adapter, tuple(other or fold for fold, other in own))
                for term, own in zip(terms, folds, strict=True)
            )
            says = f"is merged with DoRA norms to which the program added 2^{power}, as LyCORIS does in {dtype}"
            yield Alternative("rounded-norms", changed[0], says, tuple(others), rule)


def at_other_multipliers(terms: Sequence[Term], idle: Sequence[Term], rule: str | None) -> Iterator[Alternative]:
    """Yield sets of terms at open multipliers; an empty adapter names the term that is furthest from 1 then."""
    yield Alternative("multiplier", "", "is merged at another multiplier", tuple(terms), rule)
    for term in idle:
        for together in ((*terms, term), (term, *terms)):
            yield _there_at_0(term, together, rule)


def rescaled(terms: Sequence[Term], shares: Sequence[float]) -> tuple[Term, ...] | None:
    """The terms at as many times their multipliers; None where there is no multiplier to speak of."""
    folds = [fold for term in terms for fold in term.folds]
    fixed = any(
        not f.contribution.algorithm.blends or f.contribution.algorithm.replaces or f.placed.has_residual for f in folds
    )
    if fixed or not all(share > 0 for share in shares):
        return None
    return tuple(
        Term(term.adapter, tuple(replace(fold, multiplier=fold.multiplier * share) for fold in term.folds))
        for term, share in zip(terms, shares, strict=True)
    )


def _there_at_0(term: Term, together: tuple[Term, ...], rule: str | None) -> Alternative:
    return Alternative("present-at-zero", term.adapter, "is merged although its multiplier is 0", together, rule)


def _with(fold: Fold, contribution: Contribution) -> Fold:
    return replace(fold, placed=fold.placed._replace(contribution=contribution))


def _plain(fold: Fold) -> Fold | None:
    return _with(fold, fold.contribution._replace(magnitude=None)) if fold.contribution.magnitude else None


def _other_axis(fold: Fold) -> Fold | None:
    magnitude, shape = fold.contribution.magnitude, fold.placed.whole
    if magnitude is None or len(shape) != 2 or shape[0] != shape[1]:
        return None
    axis = INPUT if magnitude.axis == OUTPUT else OUTPUT
    return _with(fold, fold.contribution._replace(magnitude=magnitude._replace(axis=axis)))


def _turned(fold: Fold) -> Fold | None:
    place = fold.placed.place
    if place.runs or place.block or len(place.shape) != 2 or place.shape[0] != place.shape[1]:
        return None
    return replace(fold, placed=fold.placed._replace(place=place._replace(transposed=not place.transposed)))


def _scaled_by(number: int) -> Other:
    def other(fold: Fold) -> Fold | None:
        ratio = ratio_of(CAUSES[number], fold)
        if ratio is None or fold.contribution.scale is None or not fold.contribution.magnitude:
            return None
        return _with(fold, fold.contribution._replace(scale=fold.contribution.scale * ratio))

    return other


def _at_full(fold: Fold) -> Fold | None:
    return replace(fold, multiplier=1.0) if fold.multiplier != 1 and fold.contribution.multiplies else None


def _other_norms(fold: Fold) -> Fold | None:
    magnitude = fold.contribution.magnitude
    if magnitude is None or magnitude.axis != OUTPUT:
        return None
    norms = OF_SUM if magnitude.spelling.norms == OF_BASE else OF_BASE
    return _spelled(fold, magnitude.spelling._replace(norms=norms))


def _with_eps(fold: Fold, eps: float) -> Fold | None:
    magnitude = fold.contribution.magnitude
    if magnitude is None or not magnitude.spelling.added_eps:
        return None
    return _spelled(fold, magnitude.spelling._replace(added_eps=eps))


def _spelled(fold: Fold, spelling: DoraSpelling) -> Fold | None:
    magnitude = fold.contribution.magnitude
    return magnitude and _with(fold, fold.contribution._replace(magnitude=magnitude._replace(spelling=spelling)))


_NORMS_OF_BASE = "has its DoRA magnitude over other norms (ComfyUI and Forge divide by those of the base's rows)"

_OTHERS: tuple[tuple[str, str, Other], ...] = (
    ("dora-dropped", "is merged as plain LoRA, without its DoRA magnitude", _plain),
    ("dora-norms", _NORMS_OF_BASE, _other_norms),
    ("dora-axis", "has its DoRA magnitude over the other axis", _other_axis),
    ("transposed", "is merged transposed", _turned),
    ("multiplier-lost", "is merged at multiplier 1", _at_full),
    *(
        (cause.code, f"is {cause.says}", _scaled_by(number))
        for number, cause in enumerate(CAUSES)
        if cause.symbol not in ("", "multiplier", "1/multiplier")
    ),
)
