"""Module and role of a key: the suffixes of all algorithms and schemes, read from the right.

An underscored name gets the only dotted path of the file's possible families that it can mean. No underscore is guessed
to be a dot: the paths of the families are written with underscores, and a name is looked up among them.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cache

from lora_inspect import algorithms, schemes
from lora_inspect.algorithms import by_name, candidates, load_for
from lora_inspect.architectures.patterns import fill, pattern_of
from lora_inspect.architectures.text_encoders import PATHS as ENCODER_PATHS
from lora_inspect.caching import LONGEST_NAME, is_full
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.maths import dora
from lora_inspect.reading.base.base_names import EXPERTS
from lora_inspect.schemes import HIDING, OWN_FACTORS
from lora_inspect.schemes.record import LONGEST_SUFFIX, MODEL, ModuleName

# The names of algorithms, None for what belongs to none in particular, each with the role of the tensor in it.
Meanings = tuple[tuple[str | None, str], ...]

# What stands in the place of a module's name in the keys of tensors that all modules of PEFT's model have in common.
ROOT = "base_model"

SHARED: dict[str, Meanings] = {
    ".alpha": ((None, "alpha"),),
    ".use_rslora_flag": ((None, "rslora_flag"),),
    **dict.fromkeys(dora.SPELLINGS, ((None, "magnitude"),)),
}

# What stands before the number of a slice; no layer is split into more slices than nine digits count, and int() of
# thousands of digits is an error.
_SLICED = frozenset(("lora_down", "lora_up"))
_MOST_DIGITS = 9
# What stands before the name of an adapter, and what behind it, if anything does.
_NAMED = frozenset(
    (*("lora_A", "lora_B", "lora_E", "ranknum"), "lora_magnitude_vector", "lora_embedding_A", "lora_embedding_B")
)
_ENDS = ("weight", "bias")


class ParsedKey(NamedTuple):
    """A key taken apart: the possible meanings of its suffix, spelled without infixes, in the order to try them.

    `part` is the number of a split layer's slice.
    """

    module: str
    suffix: str
    meanings: Meanings
    part: int | None = None

    @property
    def algorithm(self) -> str | None:
        """The first algorithm that spells a role so; None for a suffix of no particular algorithm."""
        return self.meanings[0][0]

    @property
    def role(self) -> str:
        """The role in the first of them."""
        return self.meanings[0][1]

    @property
    def is_of_all(self) -> bool:
        """True if it belongs to no module, but is a tensor that an algorithm's modules share."""
        if self.module != ROOT:
            return False
        shared = (one for name, _ in self.meanings if name for one in by_name(name).shared.values())
        return any(self.suffix == f".{one.name}" for one in shared)


def state_of_registries() -> tuple[int, int]:
    """Return the numbers of changes of algorithms and schemes, which decide whether a cached result is still valid."""
    return algorithms.changes(), schemes.changes()


class _KnownKeys(dict[str, ParsedKey | None]):
    """The keys of the last files, taken apart by the algorithms and the schemes of one state of their registries."""

    def __init__(self) -> None:
        self.state = state_of_registries()

    def __missing__(self, key: str) -> ParsedKey | None:
        found = _parsed(key)
        if len(key) <= LONGEST_NAME and not is_full(self) and not self.are_old:
            self[key] = found
        return found

    @property
    def are_old(self) -> bool:
        """True if the registries have changed."""
        return self.state != state_of_registries()


_known = _KnownKeys()


def parse_key(key: str) -> ParsedKey | None:
    """Return the module and the meanings of a key; None if no algorithm spells its end so."""
    return known_keys()[key]


def known_keys() -> Mapping[str, ParsedKey | None]:
    """Return a mapping from any key to the result of `parse_key`, which is fast for the many keys of a file."""
    global _known
    if _known.are_old or is_full(_known):
        _known = _KnownKeys()
    return _known


def _without_infix(key: str) -> tuple[str, int | None]:
    """Return the key without a slice number or an adapter name before its end, and that number."""
    words = key.rsplit(".", 3)
    if len(words) == 4:
        module, factor, infix, end = words
        if (
            factor in _SLICED
            and end == "weight"
            and len(infix) <= _MOST_DIGITS
            and infix.isdecimal()
            and infix.isascii()
        ):
            return f"{module}.{factor}.{end}", int(infix)
        if factor in _NAMED and end in _ENDS and infix:
            return f"{module}.{factor}.{end}", None
    if len(words) > 2 and words[-2] in _NAMED and words[-1] and words[-1] not in _ENDS:
        return key[: -len(words[-1]) - 1], None
    return key, None


def _parsed(key: str) -> ParsedKey | None:
    before = algorithms.changes()
    key, part = _without_infix(key)
    # A module has a name; and a key may have as many dots as a file has room for.
    position = key.find(".", max(1, len(key) - LONGEST_SUFFIX))
    while position >= 0:
        suffix = key[position:]
        if meanings := candidates(suffix) or SHARED.get(suffix):
            return ParsedKey(key[:position], suffix, meanings, part)
        if suffix in HIDING:
            role, end = HIDING[suffix]
            return ParsedKey(key[:position] + end, suffix, (("lora", role),), part)
        if suffix in OWN_FACTORS and (own := schemes.own_role(key[:position], suffix)):
            return ParsedKey(key[:position], suffix, (("lora", own),), part)
        position = key.find(".", position + 1)
    # What the key asks for may have become known to another thread meanwhile.
    return parse_key(key) if load_for(key) or algorithms.changes() != before else None


# The model of a pipeline, and its second expert.
MODELS = (MODEL, *EXPERTS)

# The paths of a layout by the patterns of their underscored spellings, each after its own.
Table = Mapping[str, Sequence[tuple[str, str]]]


def canonical_path(name: ModuleName, *groups: Iterable[Table]) -> str | None:
    """Return the dotted path of a module; None if no path or several are spelled so.

    The first of the groups of layouts with any such path decides.
    """
    found = paths_of(name, *groups)
    return found[0] if len(found) == 1 else None


def paths_of(name: ModuleName, *groups: Iterable[Table]) -> list[str]:
    """Return all dotted paths with this spelling in the first of the groups of layouts that has any."""
    if not name.flat:
        return [name.body]
    pattern = pattern_of(name.body, "_")
    for group in groups if name.component in MODELS else ([table_of(ENCODER_PATHS)],):
        templates = {template for table in group for template in table.get(pattern, ())}
        spelled = (fill(flat, path, name.body) for flat, path in templates)
        if found := {path for path in spelled if path}:
            return sorted(found)
    return []


@cache
def table_of(paths: tuple[str, ...]) -> Table:
    """Return the table of a layout's paths."""
    table: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for path in paths:
        table[pattern_of(path, "_")].append((path.replace(".", "_"), path))
    return dict(table)
