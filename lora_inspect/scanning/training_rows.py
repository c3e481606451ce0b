"""The rows of a list, with one row for all epochs of a training.

The row is that of the last epoch. Files that look different in it keep rows of their own: unreadable files, files with
other problems or scales, and duplicates.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, TypeVar

from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.scanning.scan_file import ScannedFile
from lora_inspect.scanning.trainings import EPOCH, STEP, TrainingState, series_place

_Entry = TypeVar("_Entry")


class EpochGroup(NamedTuple):
    """The states of a training in one row, in order; the last is that of the row's file."""

    states: tuple[TrainingState, ...]

    def __str__(self) -> str:
        unit = EPOCH if all(state.epoch is not None for state in self.states[:-1]) else STEP
        numbers = [state.epoch if unit == EPOCH else state.step for state in self.states]
        if None in numbers[:-1]:
            return f"{len(numbers)} states of one training"
        last = "the last" if numbers[-1] is None else str(numbers[-1])
        return f"{len(numbers)} {'epochs: ' if unit == EPOCH else 'checkpoints: step '}{numbers[0]} to {last}"


class TrainingRows(Generic[_Entry]):
    """A grouping of the files of a list that share one row.

    `scanned` gives the account of an entry, or None for an entry that always has a row of its own. `listing` has all
    paths in the order in which they are read, which shows when the last file of a series has come.
    """

    def __init__(self, scanned: Callable[[_Entry], ScannedFile | None], listing: Sequence[str]) -> None:
        self._scanned = scanned
        self._position = {path: number for number, path in enumerate(listing)}
        places = [series_place(path) for path in listing]
        counts = Counter(place.series for place in places)
        numbered = {place.series for place in places if place.unit}
        self._last = {
            place.series: number
            for number, place in enumerate(places)
            if counts[place.series] > 1 and place.series in numbered
        }

    def as_they_come(self, entries: Iterable[_Entry]) -> Iterator[tuple[_Entry, EpochGroup | None]]:
        """Yield the entries that have a row, in the order of the list; those of a training wait for its last file."""
        waiting: dict[str, list[_Entry]] = {}
        for entry in entries:
            one = self._scanned(entry)
            now = self._position.get(one.path, 0) if one else 0
            for past in [past for past in waiting if self._last[past] < now]:
                yield from self._rows(waiting.pop(past))
            series = self._series_of(one)
            if series is None:
                yield entry, None
                continue
            waiting.setdefault(series, []).append(entry)
            if now == self._last[series]:
                yield from self._rows(waiting.pop(series))
        for series in list(waiting):
            yield from self._rows(waiting.pop(series))

    def sorted(self, entries: Iterable[_Entry]) -> Iterator[tuple[_Entry, EpochGroup | None]]:
        """Yield the entries that have a row, in their own order, once all have come."""
        every = list(entries)
        groups: dict[int, EpochGroup | None] = {}
        of_series: dict[str, list[_Entry]] = {}
        for entry in every:
            series = self._series_of(self._scanned(entry))
            if series is None:
                groups[id(entry)] = None
            else:
                of_series.setdefault(series, []).append(entry)
        for members in of_series.values():
            groups |= {id(entry): group for entry, group in self._rows(members)}
        yield from ((entry, groups[id(entry)]) for entry in every if id(entry) in groups)

    def _series_of(self, one: ScannedFile | None) -> str | None:
        if one is None or one.error or one.training is None:
            return None
        series = series_place(one.path).series
        return series if series in self._last else None

    def _rows(self, members: Sequence[_Entry]) -> Iterator[tuple[_Entry, EpochGroup | None]]:
        """Yield the entries of one series that have a row: the last of each training, and all that look different."""
        groups: dict[object, list[tuple[ScannedFile, TrainingState, _Entry]]] = {}
        for number, entry in enumerate(members):
            one = self._scanned(entry)
            if one is None or one.training is None:
                continue
            alone = number if one.duplicate_of else None
            groups.setdefault((one.training.group, alone, _looks(one)), []).append((one, one.training, entry))
        rows = {}
        for of_one in groups.values():
            units = {series_place(one.path).unit for one, _, _ in of_one} - {""}
            order = _by_number if len(units) < 2 else _by_time
            of_one.sort(key=lambda member: order(member[0]))
            states = tuple(state for _, state, _ in of_one)
            rows[id(of_one[-1][2])] = EpochGroup(states) if len(states) > 1 else None
        yield from ((entry, rows[id(entry)]) for entry in members if id(entry) in rows)


def _by_number(one: ScannedFile) -> tuple[float, ...]:
    """Return the sort key of a file in its training; the last file of a training may have no number."""
    number = series_place(one.path).number
    return number is None, number or 0, one.modified


def _by_time(one: ScannedFile) -> tuple[float, ...]:
    """Return the sort key by time, since the number of an epoch and that of a step are not comparable."""
    return series_place(one.path).number is None, one.modified


def _looks(one: ScannedFile) -> object:
    """Return the content of a row but for the name, the size and the duplicates."""
    verdicts = tuple((name, found.verdict, found.notes) for name, found in one.in_programs.items())
    return one.kind, one.model, one.types, one.ranks, one.scales, one.state, one.notes, one.codes, verdicts
