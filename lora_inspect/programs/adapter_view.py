"""What programs see of an adapter: its modules in groups that are alike to all of them, and answers about the file."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, TypeVar

from lora_inspect.architectures.patterns import pattern_of
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.programs.framed_keys import FramedKeys
from lora_inspect.programs.looks import Look, look_of, separator_of
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.keys.groups import alike
from lora_inspect.reading.model.contribution import Contribution, Module

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
        modules = alike(self.adapter.modules)
        said = [[_traits(first, one) for one in first.contributions] for first in modules.firsts]
        # By kind, the number of what is said of each of its contributions, which several kinds may have.
        numbers: dict[tuple[Any, ...], int] = {}
        forms = [[numbers.setdefault(traits, len(numbers)) for traits in of_kind] for of_kind in said]
        for module, kind in zip(modules.values(), modules.likeness.numbers, strict=True):
            name, key = module.name, module.name.key
            pattern = pattern_of(name.body, separator_of(module))
            for contribution, form in zip(module.contributions, forms[kind], strict=True):
                traits = (pattern, name.prefix, name.component, name.flat, form, *_spelling(contribution, key))
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


def _traits(module: Module, contribution: Contribution) -> tuple[Any, ...]:
    """All that is said of a contribution to a module, but names, and of its tensors all but their shapes."""
    magnitude = contribution.magnitude
    return (
        module.alpha is None,
        module.rslora_flag is None,
        tuple([id(beside.algorithm) for beside in module.contributions]),
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
        magnitude and magnitude[1:],
        *[(role, info.shape) for role, info in contribution.factors.items()],
    )


def _spelling(contribution: Contribution, key: str) -> list[Any]:
    """How the tensors of a contribution to the module called `key` are named and stored."""
    length, magnitude = len(key), contribution.magnitude
    spelled = [(info.name[length:], info.name.startswith(key), info.dtype) for info in contribution.factors.values()]
    return [magnitude and magnitude.info.shape, *spelled]
