"""What is wrong with a merged model, in words."""

from collections.abc import Collection, Iterator, Mapping, Sequence

from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.maths.retained_share import ALIKE, NO_CHANGE, NOT_FINITE, REASONS
from lora_inspect.sentences import listed, some
from lora_inspect.verifying.causes import fitting
from lora_inspect.verifying.measure import Weighed
from lora_inspect.verifying.shares import TOLERANCE, Shares
from lora_inspect.verifying.told import DOUBLED, MISSING, NONE, OPPOSITE, SCALED, Told, Unit


class Finding(NamedTuple):
    """One thing that is wrong, or a note: a `code` for programs, a message, the modules, the adapter if it is one's."""

    code: str
    message: str
    modules: tuple[str, ...] = ()
    adapter: str | None = None
    is_error: bool = True


SWAPPED = Finding("swapped", "what is named as the base carries the adapters: are MERGED and BASE swapped?")


def about_shares(told: Sequence[Told], total: Shares) -> Iterator[Finding]:
    """What is wrong with shares, by adapter; `total` are the shares over all weights, in the same order."""
    for number, one in enumerate(told):
        if units := one.of(MISSING):
            yield Finding(MISSING, _says_missing(one, units), _labels(units), one.adapter)
        for kind in (DOUBLED, OPPOSITE, SCALED):
            if units := one.of(kind):
                yield Finding(kind, _says_scaled(one, units), _labels(units), one.adapter)
        # What one adapter lacks in some weights moves the shares of others over all of them.
        are_right = all(other.is_right for other in told)
        if are_right and not total.why[number] and abs(total.values[number] - 1) > total.tolerance(number):
            share = f"{total.values[number]:.3g} (± {total.tolerance(number):.2g})"
            yield Finding(
                SCALED, f"all modules together have {share} of {one.adapter}", _labels(one.units), one.adapter
            )
        yield from _untold(one)


def about_alike(weights: Sequence[Weighed]) -> Iterator[Finding]:
    """Adapters whose changes are the same: what of them is there together."""
    wrong = {
        weight.name: weight.shares.together
        for weight in weights
        if ALIKE in weight.shares.why and not weight.instead and weight.shares.together is not None
        if abs(weight.shares.together - 1) > weight.shares.tolerance_together
    }
    if wrong:
        says = f"{_modules(wrong)} have {_span(list(wrong.values()))} of what adapters change together that are alike"
        yield Finding(SCALED, says, tuple(wrong))


def about_weights(weights: Sequence[Weighed]) -> Iterator[Finding]:
    """What shares do not tell: rows that lack a change, another change in its place, and what nothing explains."""
    for adapter in dict.fromkeys(term.adapter for weight in weights for term in weight.terms):
        lacking = {
            weight.name: rows
            for weight in weights
            for term, rows in zip(weight.terms, weight.rows.missing, strict=True)
            if term.adapter == adapter and rows
        }
        if lacking:
            first, ranges = next(iter(lacking.items()))
            spans = some([f"{start} to {stop - 1}" for start, stop in ranges], 3)
            lack = "lacks" if len(lacking) == 1 else "lack"
            says = f"{_modules(lacking)} {lack} a part of {adapter}: rows {spans} of {first} have nothing of it"
            yield Finding("rows-missing", says, tuple(lacking), adapter)
    instead: dict[tuple[str, str, str], dict[str, float]] = {}
    for weight in weights:
        if weight.instead:
            other, share = weight.instead
            instead.setdefault((other.code, other.adapter, other.says), {})[weight.name] = share
    for (code, adapter, says), found in instead.items():
        shares = list(found.values())
        of_it = "" if all(abs(share - 1) <= NONE for share in shares) else f", {_span(shares)} of it"
        yield Finding(code, f"{adapter} {says}: {_modules(found)}{of_it}", tuple(found), adapter)
    rounded: dict[tuple[str, str, str], list[str]] = {}
    for weight in weights:
        if weight.rounded:
            one = weight.rounded
            rounded.setdefault((one.code, one.adapter, one.says), []).append(weight.name)
    for (code, adapter, says), own in rounded.items():
        yield Finding(code, f"{adapter} {says}: {_modules(own)}", tuple(own), adapter, is_error=False)
    if left := [weight for weight in weights if not weight.is_explained and not weight.instead]:
        sizes = [size for weight in left if (size := weight.shares.residual) is not None]
        most = f", of up to {max(sizes):.2g} of the size of the change" if sizes else ""
        names = tuple(weight.name for weight in left)
        yield Finding("residual", f"something else is there in {_modules(names)}{most}", names)


def about_models(
    beside: Mapping[str, str], untouched: int, absent: Sequence[str], extra: Sequence[str], broken: Sequence[str]
) -> Iterator[Finding]:
    """What is wrong with tensors, whatever the adapters are."""
    if broken:
        yield Finding("not-finite", f"numbers that are not finite in {_modules(broken)}", tuple(broken))
    if beside:
        first, what = next(iter(beside.items()))
        says = f"{len(beside)} of {untouched} tensors that no adapter changes differ: {first} ({what})"
        hint = "; is it the base of this merge?" if 2 * len(beside) > untouched else ""
        yield Finding("beside", says + hint, tuple(beside))
    if absent:
        yield Finding("absent", f"tensors of the base that are not there: {some(absent, 3)}", tuple(absent))
    if extra:
        says = f"tensors that the base has not: {some(extra, 3)}"
        yield Finding("extra", says, tuple(extra), is_error=False)


def _says_missing(one: Told, units: Sequence[Unit]) -> str:
    if len(units) == len(one.units):
        return f"nothing of {one.adapter} is there ({_modules(units)})"
    return f"{len(units)} of {_modules(one.units)} {'has' if len(units) == 1 else 'have'} nothing of {one.adapter}"


def _says_scaled(one: Told, units: Sequence[Unit]) -> str:
    causes = fitting([(unit.folds, unit.share, unit.tolerance) for unit in units])
    symbols = "".join(f" = {symbol}" for symbol in dict.fromkeys(cause.symbol for cause in causes) if symbol)
    why = f": {listed([cause.says for cause in causes], 'or')}" if causes else ""
    which = _modules(units) if len(units) == len(one.units) else f"{len(units)} of {_modules(one.units)}"
    has = "has" if len(units) == 1 else "have"
    return f"{which} {has} {_span([unit.share for unit in units])}{symbols} of {one.adapter}{why}"


def _untold(one: Told) -> Iterator[Finding]:
    """A note where some shares are open, an error where all are; modules without a change are none."""
    open_ = {name: why for name, why in one.untold.items() if why not in (NO_CHANGE, NOT_FINITE)}
    if not open_:
        return
    reasons = listed([REASONS[why] for why in dict.fromkeys(open_.values())])
    alone = not one.units and set(open_.values()) != {ALIKE}
    says = f"cannot tell how much of {one.adapter} is in {_modules(open_)}: {reasons}"
    yield Finding("cannot-tell", says, tuple(open_), one.adapter, is_error=alone)


def _labels(units: Sequence[Unit]) -> tuple[str, ...]:
    return tuple(unit.label for unit in units)


def _modules(names: Collection[object]) -> str:
    return f"{len(names)} module{'' if len(names) == 1 else 's'}"


def _span(shares: Sequence[float]) -> str:
    least, most = min(shares), max(shares)
    if most - least <= TOLERANCE * max(1.0, abs(most)):
        return f"{sum(shares) / len(shares):.3g}"
    return f"{least:.3g} to {most:.3g}"
