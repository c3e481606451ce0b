"""What the rules of a program's loader make of an adapter, for contributions that are alike at once."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from lora_inspect.architectures.record import Architecture
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.programs.adapter_view import Alike, Member, View
from lora_inspect.programs.framed_keys import loader_for
from lora_inspect.programs.looks import Look, is_at
from lora_inspect.programs.missing import missing_of
from lora_inspect.programs.reader import reader_of
from lora_inspect.programs.reception import Left, Reception, TakenAlike
from lora_inspect.programs.record import (
    COMPUTES,
    FAILS,
    LEAVES,
    MISREADS,
    READ,
    Consumer,
    Failure,
    Given,
    Loader,
    OfKind,
    Rule,
    ScaleOfFile,
    Strangers,
    treatment,
)
from lora_inspect.sentences import some

_Answer = TypeVar("_Answer")


def receive(view: View, family: Architecture | None, consumer: Consumer) -> Reception:
    """What the consumer makes of an adapter of the family, None for one of no known family."""
    name = family.name if family else ""
    loader = loader_for(consumer, name, view.keys)
    reception = Reception()
    if loader is None:
        whose = f"models of {family.title}" if family else "models of families that are not known here"
        reception.wonder(f"{whose} were not tried")
        return reception
    reader = reader_of(loader, family)
    for group in view.groups:
        rules = reader.speaking_of(group.look)
        rule = next((one for one in rules if one.where is None or view.ask(one.where)), None)
        _Reading(reception, view, loader, group, rule).place()
    _place_others(reception, view, loader)
    if why := view.ask(loader.unsure):
        reception.wonder(f"it is not known {why}")
    if refusal := view.ask(loader.refuses) or (loader.complete and view.ask(missing_of(loader.complete))):
        reception.refuse(refusal)
    reception.needs = view.ask(loader.needs) or ""
    _limit(reception, loader.strangers)
    return reception


class _Reading(NamedTuple):
    """What becomes of contributions that are alike, by the first rule that speaks of them."""

    reception: Reception
    view: View
    loader: Loader
    group: Alike
    rule: Rule | None

    def place(self) -> None:
        """Notes it."""
        members, rule = self.group.members, self.rule
        if rule is None:
            first = members[0]
            self.reception.wonder(f"names such as {first.module.name.key} were not tried", first.place)
            return
        if rule.by == READ:
            self.reception.by = READ
        finds = self.view.ask(rule.finds) if rule.finds else None
        for is_found, own in self._answers(finds, members) if finds else [(True, members)]:
            if is_found is None:
                why = f"whether it has a layer for {own[0].module.name.key} depends on more than the file tells"
                self.reception.wonder(why, own[0].place)
            elif not is_found or is_at(self.group.look, rule.lacks) or not rule.kinds:
                if rule.says:
                    self.reception.refuse(rule.says, own[-1].place)
                self._leave(own, _keys_of_module, rule.unfound or self.loader.strangers)
            else:
                self._treat(rule, own)

    def _answers(
        self, rule: Callable[[Given], _Answer], members: Sequence[Member]
    ) -> list[tuple[_Answer, Sequence[Member]]]:
        """What the rule says of each member, and of which it says the same."""
        if isinstance(rule, OfKind):
            return [(rule(self._given(members[0])), members)]
        found: dict[_Answer, list[Member]] = {}
        for member in members:
            found.setdefault(rule(self._given(member)), []).append(member)
        return list(found.items())

    def _given(self, member: Member) -> Given:
        return Given(self.view.adapter, member.module, member.contribution)

    def _treat(self, rule: Rule, members: Sequence[Member]) -> None:
        """Notes what becomes of those that it finds, by their algorithm, and of exceptions."""
        look, contribution = self.group.look, members[0].contribution
        does = rule.kinds.get(look.algorithm, rule.kinds.get("", ""))
        if contribution.residual and not (contribution.on_residual or rule.residual) and does == COMPUTES:
            does = MISREADS
        for part in _parts(rule.parts, look):
            does = part if does == COMPUTES else does
        if does != COMPUTES or not rule.exceptions:
            self._settle(rule, members, does)
            return
        for other, own in self._answers(rule.exceptions, members):
            if isinstance(other, Failure):
                failure = rule.exceptions(self._given(own[-1]))
                self.reception.refuse(failure.says if isinstance(failure, Failure) else other.says, own[-1].place)
            elif isinstance(other, Strangers):
                self._leave(own, _keys_of_factors, other)
            else:
                self._settle(rule, own, does if other is None else other)

    def _settle(self, rule: Rule, members: Sequence[Member], does: str) -> None:
        first, last = members[0], members[-1]
        if not does:
            self.reception.wonder(f"{first.contribution.algorithm.title} was not tried", first.place)
        elif does == FAILS:
            self.reception.refuse(rule.says or f"it fails on {_keys_of_factors(last)[0]}", last.place)
        elif does == LEAVES:
            self._leave(members, _keys_of_factors, self.loader.leaves or self.loader.strangers)
        else:
            self._take(rule, members, does)

    def _take(self, rule: Rule, members: Sequence[Member], does: str) -> None:
        reception, magnitude = self.reception, members[0].contribution.magnitude
        treated = ""
        if magnitude:
            treated = treatment(rule, self.group.look.magnitude, magnitude.spelling.norms)
            if not treated:
                reception.wonder(f"magnitudes such as {magnitude.info.name} were not tried", members[0].place)
                return
            if treated == FAILS:
                key = _key_of_magnitude(members[-1])[0]
                reception.refuse(rule.says or f"it fails on {key}", members[-1].place)
            if treated == LEAVES:
                strangers = self.loader.leaves or self.loader.strangers
                self._leave(members, _key_of_magnitude, strangers, is_change=False)
        scale = self.view.ask(rule.scale.make) if isinstance(rule.scale, ScaleOfFile) else rule.scale
        for applied, own in self._answers(scale, members):
            if applied is None:
                why = f"the scale that it applies to {own[0].module.name.key} is not known"
                reception.wonder(why, own[0].place)
            reception.take(TakenAlike(own, applied, does, treated))

    def _leave(
        self,
        members: Sequence[Member],
        keys_of: Callable[[Member], Sequence[str]],
        strangers: Strangers,
        is_change: bool = True,
    ) -> None:
        if strangers.does == FAILS:
            self.reception.refuse(strangers.says or f"it fails on {some(keys_of(members[-1]), 1)}", members[-1].place)
        self.reception.left.append(Left(members, keys_of, strangers.does, strangers.says, is_change))


def _parts(parts: Mapping[str, str], look: Look) -> list[str]:
    """What it does with single roles otherwise."""
    named = (f"{look.algorithm}.{role}" for role in look.roles) if parts else ()
    return [parts[part] for part in named if part in parts]


def _keys_of_module(member: Member) -> Sequence[str]:
    return [info.name for info in member.module.tensors]


def _keys_of_factors(member: Member) -> Sequence[str]:
    return [info.name for info in member.contribution.factors.values()]


def _key_of_magnitude(member: Member) -> Sequence[str]:
    return [member.contribution.magnitude.info.name] if member.contribution.magnitude else []


def _place_others(reception: Reception, view: View, loader: Loader) -> None:
    """Notes what becomes of what is no module's: flags, embeddings, and what nobody claims."""
    others = loader.others or loader.strangers
    flags, embedded, unclaimed = view.others
    for keys, does in (
        (flags, loader.flags or others),
        (unclaimed if loader.embeddings else [*embedded, *unclaimed], others),
    ):
        if keys:
            if does.does == FAILS:
                reception.refuse(does.says or f"it fails on {some(keys, 1)}")
            reception.others += keys


def _limit(reception: Reception, strangers: Strangers) -> None:
    """Has the file refused where more tensors have no use than the program puts up with."""
    if strangers.most is not None and len(reception.ignored()) > strangers.most:
        reception.refuse(strangers.beyond)
