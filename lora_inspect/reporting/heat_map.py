"""The heat map of an adapter: the strength of each kind of layer in each block, in the family's order and names."""

import math
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from functools import cache

from lora_inspect.architectures.detection import Detection
from lora_inspect.fast_namedtuple import NamedTuple

# The colours of a map, and the share of the layers whose strength the darkest one is for; stronger ones have it too.
COLOURS = 10
_TOP = 0.98
# The least number of units that a cell shows, and from where on it shows a power of ten.
_LEAST, _MANY = 0.05, 999.5
# The largest number of columns of one table.
_WIDEST = 60
_INDEX = re.compile(r"[0-9]+")
# What stands for modules outside of all lists of blocks, and for a running number in the path of a layout.
OTHERS, _RUNNING = "", "{i}"


class LayerSize(NamedTuple):
    """The size of a change of a weight: the path of its module, or its name, and the norm of the weight if known."""

    key: str
    path: str
    shape: tuple[int, ...]
    norm: float
    weight_norm: float | None = None


class Place(NamedTuple):
    """The place of a layer: the list of its block, the block's number there, and its name in the block.

    `order` is the place of the name among those of the family, after all of them where the family has no such name.
    """

    list: str
    number: int
    name: str
    order: int


class Cell(NamedTuple):
    """The layers of one name in one block: how many, their norm together, and their strength.

    The strength is the root mean square of the change, or its norm over that of the weights. `is_spiked` says that one
    of them carries a spike, `is_untrained` that they change nothing.
    """

    layers: int
    norm: float
    strength: float
    is_spiked: bool
    is_untrained: bool


class Column(NamedTuple):
    """A block: its list, its number there, and the norm of all its layers."""

    list: str
    number: int
    norm: float

    @property
    def title(self) -> str:
        """The block as its modules name it."""
        return f"{self.list}.{self.number}" if self.list else "outside of blocks"


class Table(NamedTuple):
    """Columns side by side, and by the name of a row its cells, None where there is no such layer."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[str, tuple[Cell | None, ...]], ...]

    @property
    def lists(self) -> list[tuple[str, int]]:
        """The lists of blocks, with the number of their columns."""
        counts: dict[str, int] = {}
        for one in self.columns:
            counts[one.list] = counts.get(one.list, 0) + 1
        return list(counts.items())


class HeatMap(NamedTuple):
    """The map of a part. `top` is the strength of the last colour, `exponent` the power of ten that cells count in."""

    tables: tuple[Table, ...]
    top: float
    exponent: int
    is_relative: bool

    def colour(self, strength: float) -> int:
        """Return the number of the colour of a strength, from 0 on."""
        return min(COLOURS - 1, int(strength / self.top * COLOURS)) if self.top else 0

    def number(self, strength: float) -> str:
        """Return the strength as a cell shows it: a whole number of units, or one digit of less than one."""
        units = strength / 10.0**self.exponent
        if units < _LEAST:
            return "~0" if units else "0"
        if units < 1.0:
            return f"{units:.1g}"
        return f"{units:.0f}" if units < _MANY else f"{units:.0e}".replace("e+0", "e")

    @property
    def most(self) -> float:
        """The largest norm of a block."""
        return max((one.norm for table in self.tables for one in table.columns), default=0.0)


def heat_map(sizes: Sequence[LayerSize], spiked: Collection[str], families: Sequence[Detection]) -> HeatMap:
    """Return the map of the layers of one part; relative to the weights if each has the norm of its own."""
    is_relative = bool(sizes) and all(one.weight_norm for one in sizes)
    placed: dict[tuple[str, int], dict[str, list[LayerSize]]] = defaultdict(lambda: defaultdict(list))
    order: dict[str, int] = {}
    lists: dict[str, int] = {}
    list_order: dict[str, int] = {}
    for one in sizes:
        place = place_of(one.path, families)
        placed[place.list, place.number][place.name].append(one)
        order[place.name] = min(place.order, order.get(place.name, place.order))
        lists[place.list] = max(place.number, lists.get(place.list, 0))
        list_order[place.list] = min(place.order, list_order.get(place.list, place.order))
    names = sorted(order, key=lambda name: order[name])
    columns = [
        Column(name, number, math.hypot(*(one.norm for own in placed[name, number].values() for one in own)))
        for name, last in sorted(lists.items(), key=lambda item: (item[0] == OTHERS, list_order[item[0]], item[0]))
        for number in range(last + 1)
    ]
    cells = {
        place: {name: _cell(own, spiked, is_relative) for name, own in rows.items()} for place, rows in placed.items()
    }
    strengths = sorted(cell.strength for rows in cells.values() for cell in rows.values() if cell.strength)
    top = strengths[math.ceil(_TOP * len(strengths)) - 1] if strengths else 0.0
    exponent = math.floor(math.log10(top)) - 1 if top else 0
    count = math.ceil(len(columns) / _WIDEST)
    step = math.ceil(len(columns) / count) if count else 1
    tables = tuple(_table(columns[first : first + step], names, cells) for first in range(0, len(columns), step))
    return HeatMap(tables, top, exponent, is_relative)


def _cell(own: Sequence[LayerSize], spiked: Collection[str], is_relative: bool) -> Cell:
    norm = math.hypot(*(one.norm for one in own))
    if is_relative:
        whole = math.hypot(*(one.weight_norm or 0.0 for one in own))
    else:
        whole = math.sqrt(sum(math.prod(one.shape) for one in own))
    is_spiked = any(one.key in spiked for one in own)
    return Cell(len(own), norm, norm / whole if whole else 0.0, is_spiked, not norm)


def _table(
    columns: Sequence[Column], names: Sequence[str], cells: Mapping[tuple[str, int], Mapping[str, Cell]]
) -> Table:
    rows = [(name, tuple(cells.get((one.list, one.number), {}).get(name) for one in columns)) for name in names]
    return Table(tuple(columns), tuple(row for row in rows if any(row[1])))


def place_of(path: str, families: Sequence[Detection]) -> Place:
    """Return the place of a module by its path, or by its name with underscores if the path is unknown.

    The family's layouts distinguish running numbers from others, such as that of `ffn.0`.
    """
    for family in families:
        for order, (pattern, list_, name) in enumerate(_templates(family.layout.paths)):
            if found := pattern.fullmatch(path):
                return Place(list_, int(found[1]) if found.groups() else 0, name, order)
    return _guessed(path)


@cache
def _templates(paths: tuple[str, ...]) -> tuple[tuple[re.Pattern[str], str, str], ...]:
    """Return, for each path of a layout, a pattern with the block's number, the block's list, and the name in it."""
    found = []
    for path in paths:
        parts = path.split(".")
        at = _place_of_block(parts)
        written = ["[0-9]+" if part == _RUNNING else re.escape(part).replace("_", "[._]") for part in parts]
        if at is not None:
            written[at] = "([0-9]+)" if parts[at] == _RUNNING else f"({re.escape(parts[at])})"
        list_, name = (".".join(parts[:at]), _name_in_block(parts[at + 1 :])) if at is not None else (OTHERS, path)
        found.append((re.compile("[._]".join(written)), list_, name))
    return tuple(found)


def _place_of_block(parts: Sequence[str]) -> int | None:
    """Return the place of the number of a block: a running one, or one before a name; None outside of blocks."""
    for at, part in enumerate(parts):
        is_named = at + 1 < len(parts) and not _INDEX.fullmatch(parts[at + 1]) and parts[at + 1] != _RUNNING
        if at and (part == _RUNNING or (_INDEX.fullmatch(part) and is_named)):
            return at
    return None


def _name_in_block(parts: Sequence[str]) -> str:
    """Return a layer's name without the lists that contain it and without a leading number."""
    lists = {at for at, part in enumerate(parts) if part == _RUNNING}
    kept = [part for at, part in enumerate(parts) if at not in lists and at + 1 not in lists]
    while len(kept) > 1 and _INDEX.fullmatch(kept[0]):
        del kept[0]
    return ".".join(kept) or ".".join(parts)


def _guessed(path: str) -> Place:
    """Return the place of a module of no known family: its first number is that of a block."""
    parts = re.split(r"[._]", path) if "." not in path else path.split(".")
    separator = "." if "." in path else "_"
    at = next((place for place, part in enumerate(parts) if place and _INDEX.fullmatch(part)), None)
    if at is None or at + 1 == len(parts):
        return Place(OTHERS, 0, path, 1 << 30)
    behind = parts[at + 1 :]
    named = [part for place, part in enumerate(behind) if not _is_running(behind, place)]
    return Place(separator.join(parts[:at]), int(parts[at]), separator.join(named), 1 << 30)


def _is_running(parts: Sequence[str], place: int) -> bool:
    """Return True for a number after the name of a list, as in `experts.5.up`, not in `net.0.proj` and `to_out.0`."""
    if not _INDEX.fullmatch(parts[place]):
        return False
    return place + 2 < len(parts) or (place > 0 and place + 1 < len(parts) and parts[place - 1].endswith("s"))
