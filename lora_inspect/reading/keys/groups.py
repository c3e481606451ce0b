"""Modules by name, with which of them are alike in all but names and tensors: what holds of one holds of each such."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.reading.model.contribution import Contribution, Module

# Where a contribution has what is neither its name nor its tensors, but for the settings of its formula.
_ROWS, _SETTINGS = Contribution._fields.index("rows"), Contribution._fields.index("settings")


class Likeness(NamedTuple):
    """The number of the kind of each module by its place, and the place of the `firsts` of each kind by its number."""

    numbers: Sequence[int]
    firsts: Sequence[int]


class AlikeModules(dict[str, Module]):
    """Modules by name, whose likeness is found out when it is first asked for, unless it is given.

    Whoever changes one of them makes other modules by name.
    """

    __slots__ = ("_likeness",)

    def __init__(self, modules: Mapping[str, Module] | Iterable[tuple[str, Module]], likeness: Likeness | None = None):
        super().__init__(modules)
        self._likeness = likeness

    @property
    def likeness(self) -> Likeness:
        """Which of them are alike; of two that are not said to be so, nothing is said."""
        if self._likeness is None:
            self._likeness = _likeness_of(self.values())
        return self._likeness

    @property
    def firsts(self) -> list[Module]:
        """The first of each kind, in the order of the kinds' numbers."""
        modules = list(self.values())
        return [modules[place] for place in self.likeness.firsts]

    def with_values(self, modules: Iterable[Module]) -> "AlikeModules":
        """Other modules in the places of these, where what was made of each kind is alike too."""
        return AlikeModules(zip(self, modules, strict=True), self._likeness)


def alike(modules: Mapping[str, Module]) -> AlikeModules:
    """The modules, with which of them are alike."""
    return modules if isinstance(modules, AlikeModules) else AlikeModules(modules)


def changes_of_kinds(modules: Mapping[str, Module]) -> Iterable[Contribution]:
    """Contributions of modules, of which each other is like one of them in all but names and tensors."""
    some = modules.firsts if isinstance(modules, AlikeModules) else modules.values()
    return (contribution for module in some for contribution in module.contributions)


def likeness_by(traits: Iterable[Any]) -> Likeness:
    """The likeness of modules that are alike where their traits are equal, which stand in the modules' order."""
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
    """All that is said of a contribution but names, and where its tensors are."""
    return (
        id(one.algorithm),
        one.magnitude and one.magnitude[1:],
        one[_ROWS:_SETTINGS],
        id(one.settings),
        one[_SETTINGS + 1 :],
        *one.factors,
        *[info.shape for info in one.factors.values()],
    )
