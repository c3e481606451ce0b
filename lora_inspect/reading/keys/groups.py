"""Groups of modules that are equal except for names and tensors, so that one computation serves each group.

Modules of one kind agree in all facts that decide their scales. The few numbers in a file's data that decide its
meaning are alphas, flags, and factors that are one number. A folder has many files with the same keys and shapes; their
claims are made once.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeVar

from lora_inspect.algorithms.record import Role
from lora_inspect.caching import Remembered
from lora_inspect.fast_namedtuple import NamedTuple, make_records
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.reading.keys.claims import Claims, ModulePlan, claim, claim_with_plans, places_of
from lora_inspect.reading.keys.suffixes import state_of_registries
from lora_inspect.reading.model.contribution import Contribution, Module
from lora_inspect.reading.model.evidence import read_flag
from lora_inspect.schemes.record import ModuleName

_Found = TypeVar("_Found")

# Where a contribution has what is neither its name nor its tensors, but for the settings of its formula.
_ROWS, _SETTINGS = Contribution._fields.index("rows"), Contribution._fields.index("settings")


class Likeness(NamedTuple):
    """The number of each module's kind by its place, and the place of the first module of each kind (`firsts`)."""

    numbers: Sequence[int]
    firsts: Sequence[int]


class ModuleGroups(dict[str, Module]):
    """Modules by name; their likeness is computed at its first use, unless it is given.

    Code that changes a module has to make a new object. `layouts` are the layouts that the modules have their paths
    from, None if they have none yet.
    """

    __slots__ = ("_found", "_likeness", "layouts")

    def __init__(self, modules: Mapping[str, Module] | Iterable[tuple[str, Module]], likeness: Likeness | None = None):
        super().__init__(modules)
        self._likeness = likeness
        self._found: dict[Hashable, Any] = {}
        self.layouts: Hashable = None

    @property
    def likeness(self) -> Likeness:
        """The likeness of the modules; modules of different kinds may still be alike."""
        if self._likeness is None:
            self._likeness = _likeness_of(self.values())
        return self._likeness

    @property
    def firsts(self) -> list[Module]:
        """The first of each kind, in the order of the kinds' numbers."""
        modules = list(self.values())
        return [modules[place] for place in self.likeness.firsts]

    def once(self, question: Hashable, find: Callable[[], _Found]) -> _Found:
        """Return the result of `find`, which only these modules and the `question` determine, and compute it once."""
        if question not in self._found:
            self._found[question] = find()
        found: _Found = self._found[question]
        return found

    def with_values(self, modules: Iterable[Module]) -> "ModuleGroups":
        """Return new modules in the places of these, for changes that keep the modules of each kind alike."""
        return ModuleGroups(zip(self, modules, strict=True), self._likeness)


def group_equal(modules: Mapping[str, Module]) -> ModuleGroups:
    """Return the modules with their likeness."""
    return modules if isinstance(modules, ModuleGroups) else ModuleGroups(modules)


def changes_of_kinds(modules: Mapping[str, Module]) -> Iterable[Contribution]:
    """Yield the contributions of some modules; each other module differs from one of them only in names and tensors."""
    some = modules.firsts if isinstance(modules, ModuleGroups) else modules.values()
    return (contribution for module in some for contribution in module.contributions)


def likeness_by(traits: Iterable[Any]) -> Likeness:
    """Return the likeness of modules by their traits, given in the modules' order: equal traits make like modules."""
    kinds: dict[Any, int] = {}
    numbers: list[int] = []
    firsts: list[int] = []
    for place, of_module in enumerate(traits):
        number = kinds.setdefault(of_module, len(firsts))
        if number == len(firsts):
            firsts.append(place)
        numbers.append(number)
    return Likeness(numbers, firsts)


def _likeness_of(modules: Iterable[Module]) -> Likeness:
    return likeness_by(
        (module.name[:3], module.alpha is None, module.rslora_flag is None, *map(_traits, module.contributions))
        for module in modules
    )


def _traits(one: Contribution) -> tuple[Any, ...]:
    """Return all facts about a contribution except names and the places of its tensors."""
    return (
        id(one.algorithm),
        one.magnitude and one.magnitude[1:],
        one[_ROWS:_SETTINGS],
        id(one.settings),
        one[_SETTINGS + 1 :],
        *one.factors,
        *[info.shape for info in one.factors.values()],
    )


class StoredNumbers(NamedTuple):
    """`alphas` by the name of their module, None for no plain number; `flags` by key, None for neither yes nor no.

    `factors` by key, None for no plain number.
    """

    alphas: Mapping[str, float | int | bool | None]
    flags: Mapping[str, bool | None]
    factors: Mapping[str, float | int | bool | None]

    def of(self, contribution: Contribution) -> dict[Role, float | int | bool | None]:
        """Return the contribution's factors that are single numbers, by role."""
        own = contribution.factors
        return {role: self.factors[own[role].name] for role in contribution.algorithm.numbers if role in own}


def read_numbers(checkpoint: Checkpoint, claims: Claims) -> StoredNumbers:
    """Read all numbers at once. Raises LoraInspectError for a tensor in the place of a number."""
    alphas = {name: module.alpha.name for name, module in claims.modules.items() if module.alpha}
    flags = [module.rslora_flag.name for module in claims.modules.values() if module.rslora_flag]
    are_factors = any(one.algorithm.numbers for one in changes_of_kinds(claims.modules))
    factors = [
        contribution.factors[role].name
        for module in (claims.modules.values() if are_factors else ())
        for contribution in module.contributions
        for role in contribution.algorithm.numbers
        if role in contribution.factors
    ]
    values = checkpoint.numbers([*alphas.values(), *flags, *claims.flags, *factors])
    return StoredNumbers(
        {name: values[key] for name, key in alphas.items()},
        {key: read_flag(values[key]) for key in (*flags, *claims.flags)},
        {key: values[key] for key in factors},
    )


class ModuleKind(NamedTuple):
    """The `first` of such modules, and the `places` of all of them among the modules of the file, by their names."""

    first: Module
    places: dict[str, int]


def computed(kinds: Iterable[ModuleKind]) -> Iterator[tuple[ModuleKind, Contribution]]:
    """Yield the contributions with a built algorithm of the first module of each kind, with the kinds."""
    return ((kind, one) for kind in kinds for one in kind.first.contributions if one.algorithm.formula)


def kinds_of(modules: Mapping[str, Module], numbers: StoredNumbers, by_path: bool) -> list[ModuleKind]:
    """Return the kinds of modules in the order of their first modules.

    Modules of one kind differ only in names and tensors, not in the algorithms, the shapes or the stored number.
    `by_path` says that facts about a module depend on its path too, so that modules with different paths are never
    alike.
    """
    known = group_equal(modules)
    flags = [module.rslora_flag for module in known.values()]
    traits = zip(
        known.likeness.numbers,
        # The same number of another type, or the other zero, is spelled in another way.
        [id(numbers.alphas.get(name)) for name in known],
        [flag and (numbers.flags[flag.name],) for flag in flags],
        known if by_path else [None] * len(known),
        strict=True,
    )
    likeness = likeness_by(traits)
    found = list(known.values())
    kinds = [ModuleKind(found[place], {}) for place in likeness.firsts]
    for place, (name, number) in enumerate(zip(known, likeness.numbers, strict=True)):
        kinds[number].places[name] = place
    return kinds


# A larger file is the only one of its kind, and has a name for each tensor.
_MOST_TENSORS = 5_000


class _Before:
    """The claims on a file. How they are made of its tensors is found out for the second file that is like it."""

    def __init__(self, claims: Claims, modules: ModuleGroups, infos: Sequence[TensorInfo]) -> None:
        self._claims, self._modules, self._infos = claims, modules, infos

    @cached_property
    def _plans(self) -> list[tuple[ModuleName, ModulePlan]]:
        places = places_of(self._infos)
        return [(module.name, ModulePlan(module, places)) for module in self._modules.values()]

    def again(self, infos: Sequence[TensorInfo]) -> Claims:
        """Return the same claims on other tensors."""
        rows = [plan.row(name, infos) for name, plan in self._plans]
        return self._claims._replace(modules=self._modules.with_values(make_records(Module, rows)))


_remembered: Remembered[Any, _Before] = Remembered(16)


def claim_as_before(tensors: dict[str, TensorInfo]) -> Claims:
    """Return the result of `claim` for the tensors, from a cache if possible."""
    if len(tensors) > _MOST_TENSORS:
        return claim(tensors)
    infos = list(tensors.values())
    of_file = (tuple(tensors), tuple([info.shape for info in infos]))
    known = state_of_registries()
    before = _remembered.get((of_file, known))
    if before:
        return before.again(infos)
    claims, plans = claim_with_plans(tensors)
    named = [module.name[:3] for module in claims.modules.values()]
    traits = [(plan or place, *name) for place, (plan, name) in enumerate(zip(plans, named, strict=True))]
    modules = ModuleGroups(claims.modules, likeness_by(traits))
    # Algorithms may have been loaded for the keys.
    known = state_of_registries()
    _remembered.put((of_file, known), _Before(claims, modules, infos))
    return claims._replace(modules=modules)
