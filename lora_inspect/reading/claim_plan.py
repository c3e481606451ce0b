"""The claims on a file, made as those on an earlier one with the same keys and shapes, of which a folder has many."""

from typing import Any, NamedTuple

from lora_inspect import algorithms, schemes
from lora_inspect.files.header import TensorInfo
from lora_inspect.reading.claim import Claims, claim
from lora_inspect.reading.module_plan import ModulePlan, places_of
from lora_inspect.remembering import Remembered
from lora_inspect.schemes.record import ModuleName

# A larger file is the only one of its kind, and has a name for each tensor.
_MOST_TENSORS = 5_000


class _ClaimPlan(NamedTuple):
    """The claims of a file without its tensors."""

    claims: Claims
    modules: list[tuple[str, ModuleName, ModulePlan]]


_plans: Remembered[Any, _ClaimPlan] = Remembered(16)


def claim_as_before(tensors: dict[str, TensorInfo]) -> Claims:
    """What `claim` makes of the tensors."""
    if len(tensors) > _MOST_TENSORS:
        return claim(tensors)
    infos = list(tensors.values())
    of_file = (tuple(tensors), tuple([info.shape for info in infos]))
    known = algorithms.changes(), schemes.changes()
    plan = _plans.get((of_file, known))
    if plan:
        modules = {key: planned.module(name, infos) for key, name, planned in plan.modules}
        return plan.claims._replace(modules=modules)
    claims = claim(tensors)
    places = places_of(infos)
    modules_of = [(key, module.name, ModulePlan(module, places)) for key, module in claims.modules.items()]
    # Algorithms may have been loaded for the keys.
    known = algorithms.changes(), schemes.changes()
    _plans.put((of_file, known), _ClaimPlan(claims._replace(modules={}), modules_of))
    return claims
