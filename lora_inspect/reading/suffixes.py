"""From a key to its module and the role of its tensor: the suffix tables of all algorithms, read from the right."""

import re
from typing import NamedTuple

from lora_inspect.algorithms import ALGORITHMS
from lora_inspect.maths import dora

# Roles that belong to no algorithm in particular.
SHARED = {".alpha": "alpha", ".use_rslora_flag": "rslora_flag", **dict.fromkeys(dora.SPELLINGS, "magnitude")}

# Old diffusers UNets hung their layers under a processor: the suffix hides the end of the module's path.
_PROCESSOR_TAILS = {"to_q": ".to_q", "to_k": ".to_k", "to_v": ".to_v", "to_out": ".to_out.0"}

# No layer is split into more slices than nine digits count, and int() of thousands of digits is an error.
_PART = re.compile(r"\.(lora_down|lora_up)\.([0-9]{1,9})\.weight$")
_ADAPTER_INFIX = re.compile(
    r"\.(lora_[AB]|lora_magnitude_vector|lora_embedding_[AB])\.(?!weight$|bias$)[^.]+(\.weight|\.bias|)$"
)


class ParsedKey(NamedTuple):
    """A key taken apart. `part` numbers the slices of a split layer; `suffix` is the spelling without infixes."""

    module: str
    algorithm: str | None
    role: str
    suffix: str
    part: int | None = None


def parse_key(key: str) -> ParsedKey | None:
    """Module, algorithm and role of a key, or None where no algorithm spells its end so."""
    part = None
    if split := _PART.search(key):
        part = int(split[2])
        key = f"{key[: split.start()]}.{split[1]}.weight"
    elif infix := _ADAPTER_INFIX.search(key):
        key = f"{key[: infix.start()]}.{infix[1]}{infix[2]}"
    # A module has a name; and a key may have as many dots as a file has room for.
    position = key.find(".", max(1, len(key) - _LONGEST))
    while position >= 0:
        found = _ROLES.get(key[position:])
        if found is not None:
            algorithm, role, tail = found
            return ParsedKey(key[:position] + tail, algorithm, role, key[position:], part)
        position = key.find(".", position + 1)
    return None


def _role_table() -> dict[str, tuple[str | None, str, str]]:
    table: dict[str, tuple[str | None, str, str]] = {suffix: (None, role, "") for suffix, role in SHARED.items()}
    for algorithm in ALGORITHMS:
        for suffix, role in algorithm.suffixes.items():
            table[suffix] = (algorithm.name, role, "")
    for leaf, tail in _PROCESSOR_TAILS.items():
        for side in ("down", "up"):
            table[f".processor.{leaf}_lora.{side}.weight"] = ("lora", side, tail)
    return table


_ROLES = _role_table()
_LONGEST = max(map(len, _ROLES))
