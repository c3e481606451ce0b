"""What programs see of an adapter: its modules in groups that are alike to all of them, and answers about the file."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, TypeVar

from lora_inspect.architectures.patterns import pattern_of
from lora_inspect.consumers.framed_keys import FramedKeys
from lora_inspect.consumers.looks import Look, look_of, separator_of
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.contribution import Contribution, Module
from lora_inspect.records import NamedTuple

_Answer = TypeVar("_Answer")


class Member(NamedTuple):
    """A module's contribution, and its place among those of the file."""

    place: int
    module: Module
    contribution: Contribution


class Alike(NamedTuple):
    """Contributions whose names are alike up to numbers, and which are the same in all else, in the file's order."""

    look: Look
    members: Sequence[Member]


class View:
    """An adapter as programs see it, with what any of them asks of the whole file, which is found out once."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self._answers: dict[Callable[[Adapter], Any], Any] = {}

    def ask(self, question: Callable[[Adapter], _Answer]) -> _Answer:
        """What the question finds of the adapter."""
        if question not in self._answers:
            self._answers[question] = question(self.adapter)
        answer: _Answer = self._answers[question]
        return answer

    @cached_property
    def groups(self) -> tuple[Alike, ...]:
        """All contributions, each in one group, by the place of the first of a group."""
        members: dict[tuple[Any, ...], list[Member]] = {}
        looks: dict[tuple[Any, ...], Look] = {}
        place = 0
        for module in self.adapter.modules.values():
            pattern = pattern_of(module.name.body, separator_of(module))
            of_module = _traits_of_module(module)
            for contribution in module.contributions:
                traits = (pattern, *of_module, *_traits(contribution, module.name.key))
                if traits not in members:
                    members[traits], looks[traits] = [], look_of(module, contribution, pattern)
                members[traits].append(Member(place, module, contribution))
                place += 1
        return tuple(Alike(looks[traits], own) for traits, own in members.items())

    @cached_property
    def others(self) -> tuple[list[str], list[str], list[str]]:
        """The keys of what is no module's: the flags, those of embeddings, and what nobody claims."""
        adapter = self.adapter
        of_modules = (module.rslora_flag.name for module in adapter.modules.values() if module.rslora_flag)
        embedded = [key for one in adapter.embeddings for key in one.keys]
        return [*adapter.flags, *of_modules], embedded, list(adapter.unclaimed)

    @cached_property
    def keys(self) -> FramedKeys:
        """Those of all tensors."""
        return FramedKeys(self.adapter.checkpoint.tensors)


def _traits_of_module(module: Module) -> tuple[Any, ...]:
    name = module.name
    beside = [id(contribution.algorithm) for contribution in module.contributions]
    return name.prefix, name.component, name.flat, module.alpha is None, module.rslora_flag is None, *beside


def _traits(contribution: Contribution, key: str) -> tuple[Any, ...]:
    """All that is said of a contribution to the module called `key`, but the names and places of its tensors."""
    magnitude, length = contribution.magnitude, len(key)
    return (
        id(contribution.algorithm),
        contribution.rank,
        contribution.alpha,
        contribution.rslora,
        contribution.scale,
        contribution.rows,
        contribution.fan_in_fan_out,
        contribution.residual,
        contribution.on_residual,
        contribution.unsettled,
        contribution.is_optional,
        id(contribution.settings),
        magnitude and (magnitude.spelling, magnitude.axis, magnitude.info.shape),
        *[
            (role, info.name[length:], info.name.startswith(key), info.shape, info.dtype)
            for role, info in contribution.factors.items()
        ],
    )
