"""The few numbers in a file's data that its meaning hangs on: alphas, flags, and factors that are one number."""

from collections.abc import Mapping

from lora_inspect.algorithms.record import Role
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.reading.keys.claims import Claims
from lora_inspect.reading.keys.groups import changes_of_kinds
from lora_inspect.reading.model.contribution import Contribution
from lora_inspect.reading.model.evidence import read_flag


class StoredNumbers(NamedTuple):
    """`alphas` by the name of their module, None for no plain number; `flags` by key, None for neither yes nor no.

    `factors` by key, None for no plain number.
    """

    alphas: Mapping[str, float | int | bool | None]
    flags: Mapping[str, bool | None]
    factors: Mapping[str, float | int | bool | None]

    def of(self, contribution: Contribution) -> dict[Role, float | int | bool | None]:
        """Those of its factors that are single numbers, by role."""
        own = contribution.factors
        return {role: self.factors[own[role].name] for role in contribution.algorithm.numbers if role in own}


def read_numbers(checkpoint: Checkpoint, claims: Claims) -> StoredNumbers:
    """Reads them all at once; raises LoraInspectError for a tensor in the place of a number."""
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
