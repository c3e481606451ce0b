"""The claims on a file, made as those on an earlier one with the same keys and shapes, of which a folder has many."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from lora_inspect import algorithms, schemes
from lora_inspect.caching import Remembered
from lora_inspect.fast_namedtuple import made
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.reading.keys.claims import Claims, claim
from lora_inspect.reading.keys.groups import AlikeModules
from lora_inspect.reading.keys.module_plan import ModulePlan, places_of
from lora_inspect.reading.model.contribution import Module
from lora_inspect.schemes.record import ModuleName

# A larger file is the only one of its kind, and has a name for each tensor.
_MOST_TENSORS = 5_000


class _Before:
    """The claims on a file. How they are made of its tensors is found out for the second file that is like it."""

    def __init__(self, claims: Claims, modules: AlikeModules, infos: Sequence[TensorInfo]) -> None:
        self._claims, self._modules, self._infos = claims, modules, infos

    @cached_property
    def _plans(self) -> list[tuple[ModuleName, ModulePlan]]:
        places = places_of(self._infos)
        return [(module.name, ModulePlan(module, places)) for module in self._modules.values()]

    def again(self, infos: Sequence[TensorInfo]) -> Claims:
        """The same claims on other tensors."""
        rows = [plan.row(name, infos) for name, plan in self._plans]
        return self._claims._replace(modules=self._modules.with_values(made(Module, rows)))


_remembered: Remembered[Any, _Before] = Remembered(16)


def claim_as_before(tensors: dict[str, TensorInfo]) -> Claims:
    """What `claim` makes of the tensors."""
    if len(tensors) > _MOST_TENSORS:
        return claim(tensors)
    infos = list(tensors.values())
    of_file = (tuple(tensors), tuple([info.shape for info in infos]))
    known = algorithms.changes(), schemes.changes()
    before = _remembered.get((of_file, known))
    if before:
        return before.again(infos)
    claims = claim(tensors)
    modules = AlikeModules(claims.modules)
    # Algorithms may have been loaded for the keys.
    known = algorithms.changes(), schemes.changes()
    _remembered.put((of_file, known), _Before(claims, modules, infos))
    return claims._replace(modules=modules)
