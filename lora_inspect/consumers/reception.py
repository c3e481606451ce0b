"""What a program makes of an adapter by the rules of its loader: what it takes, passes over and refuses."""

from collections.abc import Iterable, Sequence
from functools import cache, partial
from typing import NamedTuple

from lora_inspect.architectures.patterns import fill, layout_patterns
from lora_inspect.architectures.record import Architecture
from lora_inspect.consumers.looks import Look, Seen, is_of_layout, looks
from lora_inspect.consumers.record import (
    COMPUTES,
    FAILS,
    LEAVES,
    MISREADS,
    ODD,
    READ,
    RUN,
    Consumer,
    Failure,
    Finder,
    Given,
    Loader,
    Rule,
    ScaleOfFile,
    ScaleRule,
    Strangers,
    loader_for,
    treatment,
)
from lora_inspect.listing import some
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.contribution import Contribution, Module


class Taken(NamedTuple):
    """A contribution that the program loads, at the `scale` it applies, None where that is unknown.

    `does` is COMPUTES or MISREADS, ODD, and `magnitude` what it does with the module's magnitude, empty without one.
    """

    module: Module
    contribution: Contribution
    scale: float | None
    does: str
    magnitude: str


class Left(NamedTuple):
    """Tensors that the program has no use for, of a `contribution` or of none, and what it does about them."""

    keys: tuple[str, ...]
    does: str
    says: str
    contribution: Contribution | None = None


class Unknown(NamedTuple):
    """Tensors of which no rule speaks, and why."""

    keys: tuple[str, ...]
    why: str


class Reception:
    """What a program makes of an adapter. `refusal` is what it says where it loads nothing of the file, else empty.

    `by` is RUN where its own code ran on such files for every rule that counted, else READ. `needs` is what the program
    has to be told beside the file, empty for nothing.
    """

    __slots__ = ("by", "left", "needs", "refusal", "taken", "unknown")

    def __init__(self) -> None:
        self.taken: list[Taken] = []
        self.left: list[Left] = []
        self.unknown: list[Unknown] = []
        self.refusal, self.needs, self.by = "", "", RUN


class _Bound(NamedTuple):
    """A rule, and which modules of the file it finds, where more than their names decides that, and at which scale."""

    rule: Rule
    finds: Finder | None
    scale: ScaleRule


def receive(
    adapter: Adapter, family: Architecture | None, consumer: Consumer, seen: Sequence[Seen] | None = None
) -> Reception:
    """What the consumer makes of an adapter of the family, None for one of no known family.

    `seen` is how its modules look, where that is at hand already.
    """
    name = family.name if family else ""
    loader = loader_for(consumer, name, adapter.checkpoint.tensors)
    reception = Reception()
    if loader is None:
        whose = f"models of {family.title}" if family else "models of families that are not known here"
        reception.unknown.append(Unknown(tuple(adapter.checkpoint.tensors), f"{whose} were not tried"))
        return reception
    # What a file is asked, many rules ask.
    holds = cache(lambda test: test(adapter))
    of_family = (rule for rule in loader.rules if not rule.families or name in rule.families)
    asked = [rule for rule in of_family if rule.where is None or holds(rule.where)]
    rules = [_bound(rule, adapter) for rule in asked]
    # Modules of one look are treated alike, and there are few looks.
    rule_of = cache(partial(_rule_of, rules, family))
    for module, contribution, look in looks(adapter) if seen is None else seen:
        _place(reception, Given(adapter, module, contribution), look, rule_of(look), loader)
    _place_others(reception, adapter, loader)
    if why := loader.unsure(adapter):
        reception.unknown.append(Unknown(tuple(adapter.checkpoint.tensors), f"it is not known {why}"))
    if refusal := loader.refuses(adapter) or _missing(adapter, loader.complete):
        reception.refusal = refusal
    reception.needs = loader.needs(adapter) or ""
    _limit(reception, loader.strangers)
    return reception


def _bound(rule: Rule, adapter: Adapter) -> _Bound:
    finds = rule.finds(adapter) if rule.finds else None
    return _Bound(rule, finds, rule.scale.make(adapter) if isinstance(rule.scale, ScaleOfFile) else rule.scale)


def _rule_of(rules: Sequence[_Bound], family: Architecture | None, look: Look) -> _Bound | None:
    """The first rule that speaks of such modules."""
    return next((bound for bound in rules if _speaks_of(bound.rule, look, family)), None)


def _speaks_of(rule: Rule, look: Look, family: Architecture | None) -> bool:
    if rule.prefixes and look.prefix not in rule.prefixes:
        return False
    if rule.alpha is not None and rule.alpha != look.has_alpha:
        return False
    if not _is_spelled(rule, look) or (rule.paths and not _is_at(look, rule.paths)):
        return False
    return not rule.layouts or any(is_of_layout(look, family, layout) for layout in rule.layouts)


def _is_at(look: Look, paths: tuple[str, ...]) -> bool:
    return bool(paths) and look.pattern in layout_patterns(paths, look.separator)


def _is_spelled(rule: Rule, look: Look) -> bool:
    """Whether the factors are spelled in a dialect of the rule; odd ones only where it names them."""
    is_odd = any(own in ODD for own in look.dialects)
    if not rule.dialects:
        return not (is_odd and rule.kinds)
    return any(own in rule.dialects for own in look.dialects)


def _place(reception: Reception, given: Given, look: Look, bound: _Bound | None, loader: Loader) -> None:
    """Notes what becomes of one contribution of a module."""
    module, contribution = given.module, given.contribution
    keys = tuple(info.name for info in contribution.factors.values())
    if bound is None:
        reception.unknown.append(Unknown(keys, f"names such as {module.name.key} were not tried"))
        return
    rule = bound.rule
    if rule.by == READ:
        reception.by = READ
    is_found = bound.finds(given) if bound.finds else True
    if is_found is None:
        reception.unknown.append(
            Unknown(keys, f"whether it has a layer for {module.name.key} depends on more than the file tells")
        )
        return
    if not is_found or _is_at(look, rule.lacks) or not rule.kinds:
        if rule.says:
            reception.refusal = rule.says
        _leave(reception, [info.name for info in module.tensors], rule.unfound or loader.strangers, contribution)
        return
    does = rule.kinds.get(look.algorithm, rule.kinds.get("", ""))
    parts = {part: rule.parts[part] for role in look.roles if (part := f"{look.algorithm}.{role}") in rule.parts}
    if contribution.residual and not (contribution.on_residual or rule.residual) and does == COMPUTES:
        does = MISREADS
    for part in parts.values():
        does = part if does == COMPUTES else does
    if does == COMPUTES and rule.exceptions and (other := rule.exceptions(given)) is not None:
        if isinstance(other, Failure):
            reception.refusal = other.says
            return
        if isinstance(other, Strangers):
            _leave(reception, keys, other, contribution)
            return
        does = other
    if not does:
        reception.unknown.append(Unknown(keys, f"{contribution.algorithm.title} was not tried"))
    elif does == FAILS:
        reception.refusal = rule.says or f"it fails on {keys[0]}"
    elif does == LEAVES:
        _leave(reception, keys, loader.leaves or loader.strangers, contribution)
    else:
        _take(reception, given, look, bound, loader, does)


def _take(reception: Reception, given: Given, look: Look, bound: _Bound, loader: Loader, does: str) -> None:
    rule, contribution = bound.rule, given.contribution
    magnitude = ""
    if contribution.magnitude:
        magnitude = treatment(rule, look.magnitude, contribution.magnitude.spelling.norms)
        key = contribution.magnitude.info.name
        if not magnitude:
            reception.unknown.append(Unknown((key,), f"magnitudes such as {key} were not tried"))
            return
        if magnitude == FAILS:
            reception.refusal = rule.says or f"it fails on {key}"
        if magnitude == LEAVES:
            _leave(reception, (key,), loader.leaves or loader.strangers, None)
    scale = bound.scale(given)
    if scale is None:
        keys = tuple(info.name for info in contribution.factors.values())
        reception.unknown.append(Unknown(keys, f"the scale that it applies to {given.module.name.key} is not known"))
    reception.taken.append(Taken(given.module, contribution, scale, does, magnitude))


def _leave(reception: Reception, keys: Iterable[str], strangers: Strangers, of: Contribution | None) -> None:
    names = tuple(keys)
    if strangers.does == FAILS:
        reception.refusal = strangers.says or f"it fails on {some(names, 1)}"
    reception.left.append(Left(names, strangers.does, strangers.says, of))


def _place_others(reception: Reception, adapter: Adapter, loader: Loader) -> None:
    """Notes what becomes of what is no module's: flags, embeddings, and what nobody claims."""
    others = loader.others or loader.strangers
    embedded = [] if loader.embeddings else [key for one in adapter.embeddings for key in one.keys]
    of_modules = (module.rslora_flag.name for module in adapter.modules.values() if module.rslora_flag)
    for keys, does in (
        ([*adapter.flags, *of_modules], loader.flags or others),
        ([*embedded, *adapter.unclaimed], others),
    ):
        if keys:
            _leave(reception, keys, does, None)


def _missing(adapter: Adapter, complete: Sequence[str]) -> str | None:
    """Which module the program looks for in vain, of those that every block of a file has to have."""
    if not complete:
        return None
    templates = [spelled for path in complete for spelled in {path, path.replace(".", "_")}]
    names = {module.name.body for module in adapter.modules.values()}
    blocks = {fill(template, "{i}", name) for name in names for template in templates} - {None}
    wanted = (path.replace("{i}", str(at)) for at in range(len(blocks)) for path in complete)
    missing = next((path for path in wanted if names.isdisjoint({path, path.replace(".", "_")})), None)
    return f"it has nothing for {missing}" if missing else None


def _limit(reception: Reception, strangers: Strangers) -> None:
    """Has the file refused where more tensors have no use than the program puts up with."""
    if strangers.most is not None and len({key for left in reception.left for key in left.keys}) > strangers.most:
        reception.refusal = strangers.beyond
