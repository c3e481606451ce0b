"""The effect of a program's loader on an adapter: taken, ignored and refused keys.

Equal contributions are judged once; a file has many. The rules of a loader for a module's traits are cached for all
files of a family. `missing_of` finds the first module that a program needs in every block and that the file lacks.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from math import inf
from typing import Any, TypeVar

from lora_inspect.architectures.record import Architecture
from lora_inspect.fast_namedtuple import NamedTuple, make_record
from lora_inspect.programs.adapter_view import Member, MemberGroup, ModuleTraits, View, is_at, is_of_layout, loader_for
from lora_inspect.programs.record import (
    COMPUTES,
    FAILS,
    LEAVES,
    MISREADS,
    ODD,
    READ,
    RUN,
    Given,
    Loader,
    LoadFailure,
    OfKind,
    Program,
    Rule,
    ScaleOfFile,
    ScaleRule,
    Strangers,
    treatment,
)
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.model.contribution import Contribution, Module
from lora_inspect.sentences import some


class Taken(NamedTuple):
    """A contribution that the program loads, with the `scale` it applies.

    `scale` is None if unknown. `does` is COMPUTES or MISREADS. `magnitude` is the program's treatment of the module's
    magnitude, empty without one.
    """

    module: Module
    contribution: Contribution
    scale: float | None
    does: str
    magnitude: str


class TakenAlike(NamedTuple):
    """Equal contributions that the program loads as `Taken` says."""

    members: Sequence[Member]
    scale: float | None
    does: str
    magnitude: str

    @property
    def contribution(self) -> Contribution:
        """Return the contribution of the first member."""
        return self.members[0].contribution


class Left(NamedTuple):
    """Tensors that the program does not use: of equal `members`, or of none.

    `does` and `says` are its reaction to them. `is_change` says that the change of the members is lost with them.
    `keys_of` gives the keys of one member.
    """

    members: Sequence[Member]
    keys_of: Callable[[Member], Iterable[str]]
    does: str
    says: str
    is_change: bool


class Reception:
    """The result of a program's loader for an adapter.

    `refusal` is the program's message if it loads nothing of the file, else empty. `has_models` is False if the program
    is known to have no models of the family. `by` is RUN if the program's own code ran on such files for every rule
    that counted, else READ. `needs` is the option that the program needs for the file, empty for none. `others` are
    unused keys without a module.
    """

    __slots__ = ("_at", "_open", "_taken", "by", "has_models", "left", "needs", "others", "refusal")

    def __init__(self) -> None:
        self._taken: list[TakenAlike] = []
        self.left: list[Left] = []
        self.others: list[str] = []
        self.refusal, self.needs, self.by, self.has_models = "", "", RUN, True
        self._at: float = -1
        self._open: list[tuple[float, str]] = []

    def take(self, taken: TakenAlike) -> None:
        """Record that the program loads them."""
        self._taken.append(taken)

    def wonder(self, why: str, place: float = inf) -> None:
        """Record why the treatment at this place in the file is unknown."""
        self._open.append((place, why))

    def refuse(self, says: str, place: float = inf) -> None:
        """Record that the program refuses the file for this place in it.

        The last such place supplies the message.
        """
        if place >= self._at:
            self.refusal, self._at = says, place

    @property
    def unknown(self) -> str:
        """Return the reason of the first unknown result, or "" if all results are known."""
        return min(self._open, key=lambda found: found[0])[1] if self._open else ""

    @property
    def taken(self) -> list[TakenAlike]:
        """Return the loaded groups, by the place of their first members."""
        return sorted(self._taken, key=lambda one: one.members[0].place)

    @property
    def lost(self) -> list[Left]:
        """Return the changes that the program does not make, in the same order."""
        return sorted((left for left in self.left if left.is_change), key=lambda left: left.members[0].place)

    def each_taken(self) -> list[Taken]:
        """Return the loaded contributions one by one, in file order."""
        found = [(member, one) for one in self._taken for member in one.members]
        found.sort(key=lambda pair: pair[0].place)
        return [Taken(own.module, own.contribution, one.scale, one.does, one.magnitude) for own, one in found]

    def ignored(self) -> tuple[str, ...]:
        """Return the keys that the program does not use, in file order."""
        found = [(member, left) for left in self.left for member in left.members]
        found.sort(key=lambda pair: pair[0].place)
        of_modules = (key for member, left in found for key in left.keys_of(member))
        return tuple(dict.fromkeys([*of_modules, *self.others]))


class Outcome(NamedTuple):
    """The treatment of contributions of a kind by a loader, the same in every file.

    `taken` has the fields of `TakenAlike` without the members, and is None if the program does not load them. `left`
    has the fields of each `Left` without the members.
    """

    by: str
    taken: tuple[float | None, str, str] | None
    left: Sequence[tuple[Callable[[Member], Iterable[str]], str, str, bool]]

    def note(self, reception: Reception, members: Sequence[Member]) -> None:
        """Record the treatment for these members."""
        if self.by == READ:
            reception.by = READ
        if self.taken:
            reception.take(make_record(TakenAlike, (members, *self.taken)))
        reception.left += [make_record(Left, (members, *left)) for left in self.left]


# Far more than there are loaders, and looks and kinds in one file of any kind that is met.
_MOST_READERS, _MOST_LOOKS, _MOST_OUTCOMES = 1_000, 1_000, 1_000


class Reader:
    """The rules of a loader for models of a family, None for an unknown family."""

    def __init__(self, loader: Loader, family: Architecture | None) -> None:
        self.loader, self.family = loader, family
        self._rules = loader.rules_for(family.name if family else "")
        self._spoken: dict[ModuleTraits, tuple[Rule, ...]] = {}
        self._outcomes: dict[tuple[Any, ...], Outcome | None] = {}

    def speaking_of(self, look: ModuleTraits) -> tuple[Rule, ...]:
        """Return the rules for such modules, up to the first that holds for any file."""
        rules = self._spoken.get(look)
        if rules is None:
            if len(self._spoken) >= _MOST_LOOKS:
                self._spoken.clear()
            rules = self._spoken[look] = tuple(self._find(look))
        return rules

    def outcome(self, view: View, group: MemberGroup, rule: Rule) -> Outcome | None:
        """Return the treatment of a group by a rule.

        It is None if the treatment depends on the file or names one of its modules.
        """
        asked = view.ask(rule.finds) if rule.finds else None, _scale_rule(view, rule), rule.exceptions
        if not all(one is None or type(one) is OfKind for one in asked):
            return None
        # The rules live as long as their reader.
        key = (group.kind.number, id(rule), asked[:2])
        if key not in self._outcomes:
            if len(self._outcomes) >= _MOST_OUTCOMES:
                self._outcomes.clear()
            self._outcomes[key] = self._find_outcome(view, group, rule)
        return self._outcomes[key]

    def _find_outcome(self, view: View, group: MemberGroup, rule: Rule) -> Outcome | None:
        reception = Reception()
        _Reading(reception, view, self.loader, group, rule).place()
        if reception.refusal or reception.unknown:
            return None
        taken = next((one[1:] for one in reception.taken), None)
        return Outcome(reception.by, taken, [left[1:] for left in reception.left])

    def _find(self, look: ModuleTraits) -> list[Rule]:
        found: list[Rule] = []
        for rule in self._rules:
            if _speaks_of(rule, look, self.family):
                found.append(rule)
                if rule.where is None:
                    break
        return found


_READERS: dict[tuple[int, int], Reader] = {}


def reader_of(loader: Loader, family: Architecture | None) -> Reader:
    """Return the reader of a loader for models of the family."""
    # A reader keeps both, so that no other objects can have their identities while it is remembered.
    key = (id(loader), id(family))
    reader = _READERS.get(key)
    if reader is None:
        if len(_READERS) >= _MOST_READERS:
            _READERS.clear()
        reader = _READERS[key] = Reader(loader, family)
    return reader


def _speaks_of(rule: Rule, look: ModuleTraits, family: Architecture | None) -> bool:
    if rule.prefixes and look.prefix not in rule.prefixes:
        return False
    if rule.alpha is not None and rule.alpha != look.has_alpha:
        return False
    if not _is_spelled(rule, look) or (rule.paths and not is_at(look, rule.paths)):
        return False
    return not rule.layouts or any(is_of_layout(look, family, layout) for layout in rule.layouts)


def _is_spelled(rule: Rule, look: ModuleTraits) -> bool:
    """Return True if a dialect of the rule spells the factors.

    Odd spellings match only by name.
    """
    is_odd = any(own in ODD for own in look.dialects)
    if not rule.dialects:
        return not (is_odd and rule.kinds)
    return any(own in rule.dialects for own in look.dialects)


@lru_cache(maxsize=64)
def missing_of(complete: tuple[str, ...]) -> Callable[[Adapter], str | None]:
    """Return a question for the first missing path of `complete`.

    `{i}` stands for the number of a block. The number of different block numbers in the file says how many blocks are
    expected, from 0 on.
    """
    spelled = {way for path in complete for way in (path, path.replace(".", "_"))}
    ends: dict[str, set[str]] = {}
    for way in spelled:
        start, _, end = way.partition("{i}")
        ends.setdefault(start, set()).add(end)

    def missing(adapter: Adapter) -> str | None:
        names = {module.name.body for module in adapter.modules.values()}
        blocks = {
            number
            for start, known in ends.items()
            for name in names
            if name.startswith(start)
            for number, end in (_numbered(name[len(start) :]),)
            if number and end in known
        }
        wanted = (path.replace("{i}", str(at)) for at in range(len(blocks)) for path in complete)
        first = next((path for path in wanted if path not in names and path.replace(".", "_") not in names), None)
        return f"it has nothing for {first}" if first else None

    return missing


def _numbered(text: str) -> tuple[str, str]:
    """Return the digits at the beginning of a text, and the rest."""
    behind = text.lstrip("0123456789")
    return text[: len(text) - len(behind)], behind


_Answer = TypeVar("_Answer")


def receive(view: View, family: Architecture | None, program: Program) -> Reception:
    """Return the effect of the program's loader on an adapter.

    `family` is None if it is unknown.
    """
    name = family.name if family else ""
    loader = loader_for(program, name, view.keys)
    reception = Reception()
    if loader is None:
        reception.has_models, why = without_loader(program, family)
        reception.wonder(why)
        return reception
    reader = reader_of(loader, family)
    for group in view.groups:
        rule = None
        for one in reader.speaking_of(group.look):
            if one.where is None or view.ask(one.where):
                rule = one
                break
        outcome = reader.outcome(view, group, rule) if rule else None
        if outcome:
            outcome.note(reception, group.members)
        else:
            _Reading(reception, view, loader, group, rule).place()
    _place_others(reception, view, loader)
    if unsure := view.ask(loader.unsure):
        reception.wonder(f"{unsure} is unknown")
    if refusal := view.ask(loader.refuses) or (loader.complete and view.ask(missing_of(loader.complete))):
        reception.refuse(refusal)
    reception.needs = view.ask(loader.needs) or ""
    _limit(reception, loader.strangers)
    return reception


def without_loader(program: Program, family: Architecture | None) -> tuple[bool, str]:
    """Return if a program without a loader for a file may have its models, and why.

    `family` is the model of the file. An unknown family counts as True.
    """
    if family is None:
        return True, "lora-inspect does not know the model of the file"
    if any(not one.families or family.name in one.families for one in program.reads):
        return True, f"nobody has tried such names for {family.title}"
    return False, f"no models of {family.title} are known there"


class _Reading(NamedTuple):
    """The treatment of equal contributions by the first rule that covers them."""

    reception: Reception
    view: View
    loader: Loader
    group: MemberGroup
    rule: Rule | None

    def place(self) -> None:
        """Record the treatment of the group."""
        members, rule = self.group.members, self.rule
        if rule is None:
            first = members[0]
            self.reception.wonder(f"nobody has tried names such as {first.module.name.key}", first.place)
            return
        if rule.by == READ:
            self.reception.by = READ
        finds = self.view.ask(rule.finds) if rule.finds else None
        for is_found, own in self._answers(finds, members) if finds else [(True, members)]:
            if is_found is None:
                why = f"the file does not tell whether it has a layer for {own[0].module.name.key}"
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
        """Return each answer of the rule with the members that get it."""
        if isinstance(rule, OfKind):
            return [(rule(self._given(members[0])), members)]
        found: dict[_Answer, list[Member]] = {}
        for member in members:
            found.setdefault(rule(self._given(member)), []).append(member)
        return list(found.items())

    def _given(self, member: Member) -> Given:
        return make_record(Given, (self.view.adapter, member.module, member.contribution))

    def _treat(self, rule: Rule, members: Sequence[Member]) -> None:
        """Record the treatment of found members, by their algorithm and the exceptions."""
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
            if isinstance(other, LoadFailure):
                failure = rule.exceptions(self._given(own[-1]))
                self.reception.refuse(failure.says if isinstance(failure, LoadFailure) else other.says, own[-1].place)
            elif isinstance(other, Strangers):
                self._leave(own, _keys_of_factors, other)
            else:
                self._settle(rule, own, does if other is None else other)

    def _settle(self, rule: Rule, members: Sequence[Member], does: str) -> None:
        first, last = members[0], members[-1]
        if not does:
            self.reception.wonder(f"nobody has tried {first.contribution.algorithm.title}", first.place)
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
                reception.wonder(f"nobody has tried magnitudes such as {magnitude.info.name}", members[0].place)
                return
            if treated == FAILS:
                key = _key_of_magnitude(members[-1])[0]
                reception.refuse(rule.says or f"it fails on {key}", members[-1].place)
            if treated == LEAVES:
                strangers = self.loader.leaves or self.loader.strangers
                self._leave(members, _key_of_magnitude, strangers, is_change=False)
        for applied, own in self._answers(_scale_rule(self.view, rule), members):
            if applied is None:
                why = f"its scale for {own[0].module.name.key} is unknown"
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


def _scale_rule(view: View, rule: Rule) -> ScaleRule:
    return view.ask(rule.scale.make) if isinstance(rule.scale, ScaleOfFile) else rule.scale


def _parts(parts: Mapping[str, str], look: ModuleTraits) -> list[str]:
    """Return the treatments of single roles that differ from the algorithm's."""
    named = (f"{look.algorithm}.{role}" for role in look.roles) if parts else ()
    return [parts[part] for part in named if part in parts]


def _keys_of_module(member: Member) -> Sequence[str]:
    return [info.name for info in member.module.tensors]


def _keys_of_factors(member: Member) -> Sequence[str]:
    return [info.name for info in member.contribution.factors.values()]


def _key_of_magnitude(member: Member) -> Sequence[str]:
    return [member.contribution.magnitude.info.name] if member.contribution.magnitude else []


def _place_others(reception: Reception, view: View, loader: Loader) -> None:
    """Record the treatment of flags, embeddings and unclaimed keys."""
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
    """Record a refusal if the file has more unused tensors than the program allows."""
    if strangers.most is not None and len(reception.ignored()) > strangers.most:
        reception.refuse(strangers.beyond)
