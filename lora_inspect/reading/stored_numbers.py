"""The few numbers in a file's data that its meaning hangs on: alphas and flags."""

from collections.abc import Mapping
from typing import NamedTuple

from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.reading.claim import Claims
from lora_inspect.reading.evidence import read_flag


class StoredNumbers(NamedTuple):
    """`alphas` by the name of their module, None for no plain number; `flags` by key, None for neither yes nor no."""

    alphas: Mapping[str, float | int | bool | None]
    flags: Mapping[str, bool | None]


def read_numbers(checkpoint: Checkpoint, claims: Claims) -> StoredNumbers:
    """Reads them all at once; raises LoraInspectError for a tensor in the place of a number."""
    alphas = {name: module.alpha.name for name, module in claims.modules.items() if module.alpha}
    flags = [module.rslora_flag.name for module in claims.modules.values() if module.rslora_flag]
    values = checkpoint.numbers([*alphas.values(), *flags, *claims.flags])
    return StoredNumbers(
        {name: values[key] for name, key in alphas.items()},
        {key: read_flag(values[key]) for key in (*flags, *claims.flags)},
    )
