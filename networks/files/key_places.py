"""Which tensor of which module a key of a file is, in every naming scheme that speaks of the model's own layers.

A file may name a layer by its path in the model that is trained, or by the path that another layout of the family has
for the same layer; in dots or in underscores; and its factors in the dialect of any program.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from lora_inspect import schemes
from lora_inspect.architectures.patterns import counterparts
from lora_inspect.architectures.record import Architecture
from lora_inspect.architectures.trained import one_to_one
from lora_inspect.reading.keys.suffixes import ParsedKey, parse_key
from lora_inspect.schemes.record import MODEL, Scheme

from .module_names import module_name
from .reading import MAGNITUDE

# The one spelling of a magnitude that is not one number per output in one dimension.
DORA_SCALE = "dora_scale"


class Place(NamedTuple):
    """A tensor of a module: the network's name of it, the key inside it, its role, and how the file spells it.

    `path` is what the `scheme` has behind its prefix.
    """

    name: str
    key: str
    role: str
    scheme: Scheme
    path: str


class KeyPlaces:
    """The places of one model, whose layers have the dotted `paths` and are called `prefix` and path in the network."""

    def __init__(self, architecture: Architecture, paths: Collection[str], prefix: str) -> None:
        own = {path: module_name(prefix, path) for path in paths}
        pairs = one_to_one(architecture)
        others = [(other, own[path]) for path in paths for other in counterparts(pairs, path)]
        self._names = _unambiguous(own, others)
        flat_own = {path.replace(".", "_"): name for path, name in own.items()}
        self._flat_names = _unambiguous(flat_own, [(path.replace(".", "_"), name) for path, name in others])

    def find(self, key: str) -> Place | None:
        """The place of `key`, or None where it is no key of a layer of this model."""
        parsed = parse_key(key)
        inner = _inner_key(parsed) if parsed else None
        if parsed is None or inner is None:
            return None
        for module in schemes.readings(parsed.module, (parsed.suffix,)):
            if module.component != MODEL:
                continue
            if name := (self._flat_names if module.flat else self._names).get(module.body):
                return Place(name, inner, parsed.role, schemes.by_name(module.scheme), module.body)
        return None


def _inner_key(parsed: ParsedKey) -> str | None:
    """The key inside a module, as the network's state dict has it; None for what no module of a network holds."""
    if parsed.role == "alpha":
        return "alpha"
    if parsed.role == "magnitude":
        return DORA_SCALE if parsed.suffix == f".{DORA_SCALE}" else MAGNITUDE
    if all(name != "lora" for name, _ in parsed.meanings):
        return parsed.suffix.removeprefix(".") if parsed.algorithm else None
    if parsed.role not in ("down", "up"):
        return None
    part = "" if parsed.part is None else f".{parsed.part}"
    return f"lora_{parsed.role}{part}.weight"


def _unambiguous(own: Mapping[str, str], others: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Names by spelling: the model's own before those of another layout, of which none may stand for two layers."""
    found: dict[str, str] = {}
    ambiguous: set[str] = set()
    for spelled, name in others:
        if found.setdefault(spelled, name) != name:
            ambiguous.add(spelled)
    return {spelled: name for spelled, name in found.items() if spelled not in ambiguous} | dict(own)
