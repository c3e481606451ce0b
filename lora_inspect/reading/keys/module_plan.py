"""How a module is made of tensors, for other modules whose tensors have the same suffixes and shapes."""

from collections.abc import Mapping, Sequence
from typing import Any

from lora_inspect.fast_namedtuple import made
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.reading.model.contribution import UNSCALED, Contribution, Magnitude, Module
from lora_inspect.schemes.record import ModuleName

# What a module has behind its tensors before its path is known.
_UNNAMED = tuple(Module._field_defaults[name] for name in Module._fields[4:])


def places_of(infos: Sequence[TensorInfo]) -> dict[str, int]:
    """Where each tensor stands among these, by its name."""
    return {info.name: place for place, info in enumerate(infos)}


class ModulePlan:
    """A `module` as its keys and shapes alone make it, by the `places` of its tensors instead of the tensors."""

    __slots__ = ("_alpha", "_changes", "_flag")

    def __init__(self, module: Module, places: Mapping[str, int]) -> None:
        self._alpha = places[module.alpha.name] if module.alpha else None
        self._flag = places[module.rslora_flag.name] if module.rslora_flag else None
        self._changes = [
            (
                contribution.algorithm,
                [(role, places[info.name]) for role, info in contribution.factors.items()],
                contribution.magnitude and contribution.magnitude[1:],
                places[contribution.magnitude.info.name] if contribution.magnitude else 0,
                contribution.rows,
            )
            for contribution in module.contributions
        ]

    def module(self, name: ModuleName, infos: Sequence[TensorInfo]) -> Module:
        """The module of that name that is made of these tensors."""
        return Module(*self.row(name, infos))

    def row(self, name: ModuleName, infos: Sequence[TensorInfo]) -> tuple[Any, ...]:
        """All values of the module's fields."""
        rows_of = [
            (
                name,
                algorithm,
                {role: infos[place] for role, place in places},
                Magnitude(infos[at], *spelled) if spelled else None,
                rows,
                *UNSCALED,
            )
            for algorithm, places, spelled, at, rows in self._changes
        ]
        alpha = None if self._alpha is None else infos[self._alpha]
        flag = None if self._flag is None else infos[self._flag]
        return name, tuple(made(Contribution, rows_of)), alpha, flag, *_UNNAMED
