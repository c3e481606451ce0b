"""Fields of an `adapter_config.json` that decide a formula: each of the right type, or the reason why not."""

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeGuard

from lora_inspect.files.strict_json import json_count, json_number

# What a field's value must be.
Fields = Mapping[str, Callable[[Any], bool]]
# The last version of PEFT that wrote none into its configs.
_UNVERSIONED = (0, 17, 1)


def is_switch(value: Any) -> bool:
    """Return True if the value is a boolean."""
    return isinstance(value, bool)


def is_count(value: Any) -> bool:
    """Return True if the value is an integer above 0 that can be a size; booleans are not integers here."""
    return json_count(value) is not None


def is_number(value: Any) -> TypeGuard[float]:
    """Return True if the value is a finite number, not an integer beyond the range of float."""
    return json_number(value) is not None


def is_seed(value: Any) -> bool:
    """Return True if the value is an integer that torch accepts as a seed."""
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**64


def peft_version(config: Mapping[str, Any]) -> tuple[int, int, int] | None:
    """Return the PEFT version in the config, the last one that recorded none if absent, or None for no release."""
    text = config.get("peft_version")
    if text is None:
        return _UNVERSIONED
    found = re.fullmatch(r"([0-9]{1,4})\.([0-9]{1,4})\.([0-9]{1,4})(\+.*)?", text) if isinstance(text, str) else None
    return (int(found[1]), int(found[2]), int(found[3])) if found else None


def read_fields(config: Mapping[str, Any] | None, fields: Fields, decided: str) -> dict[str, Any] | str:
    """Return the values of the `fields`, or an error text with a fix if one is unknown.

    `decided` names the result of the fields ("its rotation"). `config` is None if none covers the module.
    """
    if config is None:
        return (
            f"adapter_config.json says how PEFT computes {decided}, but this module has none; put it next to the file"
        )
    for name, is_usable in fields.items():
        if not is_usable(config.get(name)):
            return (
                f"its adapter_config.json does not say the {name} that decides {decided}; "
                "merge it with the version of PEFT that trained it"
            )
    return {name: config.get(name) for name in fields}
