"""`lora-inspect info` of several paths or of a folder: a row or a record for each file, as it is read."""

import os
import sys
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import Any

from lora_inspect.cli import terminal
from lora_inspect.cli.failures import DEBUG, sentence_of
from lora_inspect.cli.folder_options import FolderOptions
from lora_inspect.cli.folder_table import FolderTable
from lora_inspect.cli.info_arguments import ERROR, Asked, broken
from lora_inspect.cli.progress_bar import BarBelow, bar_below
from lora_inspect.cli.sheet import Sheet
from lora_inspect.errors import LoraInspectError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.discovery import PEFT_WEIGHTS, set_of
from lora_inspect.ops.info import as_json
from lora_inspect.ops.scan import scan_files
from lora_inspect.reading.file_info import ADAPTER, BASE, OTHER
from lora_inspect.scanning.scan_file import STATES, Record, ScannedFile
from lora_inspect.scanning.selection import sorting_key

_ENDING = ".safetensors"
# What is counted in the last line beside the states: files that could not be read, copies, and what --where left out.
_BROKEN, _COPIES, _LEFT_OUT = "unreadable", "duplicate", "left out"
_PLURALS = {BASE: "bases", OTHER: "others", _COPIES: "duplicates"}


class _Entry(NamedTuple):
    """A file, what it is called in the table, and whether it was named itself and not found in a folder."""

    one: ScannedFile
    name: str
    is_named: bool


def info_of_several(arguments: Sequence[Asked], modules: bool, json: bool, options: FolderOptions) -> None:
    """Reads all files of the arguments, prints what they are, and exits 1 where one cannot be read."""
    names = _names(arguments)
    counts: Counter[str] = Counter()
    with bar_below("Reading", len(names)) as bar:
        record = partial(as_json, modules=modules) if json or options.jsonl else None
        entries = _read(arguments, names, record, options.jobs, bar)
        with closing(entries):
            chosen = _chosen(entries, options, counts, bar)
            if options.sort:
                chosen = _sorted(list(chosen), options.sort)
            if options.jsonl:
                for entry in chosen:
                    bar.above(partial(terminal.json_line, _record(entry.one)))
            elif json:
                records = [_record(entry.one) for entry in chosen]
            else:
                _print_rows(chosen, names, options.all_, bar)
    if json and not options.jsonl:
        terminal.json_text(records)
    elif not options.jsonl:
        terminal.line(_totals(counts))
    if counts[_BROKEN]:
        sys.exit(1)


def _names(arguments: Sequence[Asked]) -> list[str]:
    """What each file is called: its path below the folder where that is the only argument, else as it was typed."""
    folder = arguments[0].path if len(arguments) == 1 and arguments[0].is_collection else ""
    paths = [path for argument in arguments for path in argument.files or (argument.path,)]
    return [os.path.relpath(path, folder) for path in paths] if folder else paths


def _read(
    arguments: Sequence[Asked], names: Sequence[str], record: Record | None, jobs: int | None, bar: BarBelow
) -> Generator[_Entry, None, None]:
    """Every file in the order of the arguments; an argument that stands for none is one that cannot be read."""
    listing = [(file, argument.settings) for argument in arguments for file in argument.files]
    name = iter(names)
    with closing(scan_files(listing, 1 if os.environ.get(DEBUG) else jobs, bar.advance, record)) as found:
        for argument in arguments:
            if argument.broken:
                bar.advance(1)
                yield _Entry(
                    ScannedFile(argument.path, error=LoraInspectError(argument.broken[ERROR])), next(name), True
                )
            for _ in argument.files:
                yield _Entry(next(found), next(name), not argument.is_collection)


def _chosen(
    entries: Iterable[_Entry], options: FolderOptions, counts: "Counter[str]", bar: BarBelow
) -> Iterator[_Entry]:
    """The entries that are asked for and those that cannot be read, of which it tells; all are counted."""
    for entry in entries:
        one = entry.one
        if one.error:
            counts[_BROKEN] += 1
            bar.above(partial(_tell_error, one.path, one.error))
            yield entry
        elif all(condition.holds(one) for condition in options.where):
            counts[one.kind] += 1
            counts[one.state] += 1
            counts[_COPIES] += one.duplicate_of is not None
            yield entry
        else:
            counts[_LEFT_OUT] += 1


def _tell_error(path: str, error: Exception) -> None:
    terminal.error(broken(path, error)[ERROR])


def _sorted(entries: Sequence[_Entry], order: str) -> Iterator[_Entry]:
    """The entries in an order, those that could not be read last."""
    key = sorting_key(order)
    yield from sorted((entry for entry in entries if not entry.one.error), key=lambda entry: key(entry.one))
    yield from (entry for entry in entries if entry.one.error)


def _record(one: ScannedFile) -> dict[str, Any]:
    """The record that scripts rely on."""
    if one.error:
        return {"path": one.path, ERROR: sentence_of(one.error, one.path)}
    return {**(one.record or {}), "state": one.state or None, "note": one.note, "duplicate_of": one.duplicate_of}


def _print_rows(entries: Iterable[_Entry], names: Sequence[str], shows_all: bool, bar: BarBelow) -> None:
    """A row for each file that could be read, each as it comes; those of a folder that are no adapters where asked."""
    table = FolderTable(Sheet(terminal.columns()), map(_short, names))
    called: dict[str, str] = {}
    is_first = True
    for one, name, is_named in entries:
        name = _short(name)
        called.setdefault(one.path, name)
        if one.error or not (one.kind == ADAPTER or is_named or shows_all):
            continue
        row = table.row(name, one, called.get(one.duplicate_of, one.duplicate_of) if one.duplicate_of else "")
        bar.above(partial(terminal.laid_out, [table.headers(), row] if is_first else [row]))
        is_first = False


def _short(name: str) -> str:
    """A name without the ending that nearly all have; a set goes without its number, PEFT's weights by their folder."""
    parent, file = os.path.split(name)
    whole = set_of(file)
    stem = whole.stem if whole and whole.shards > 1 else file.removesuffix(_ENDING)
    return os.path.join(parent, "") if parent and stem == PEFT_WEIGHTS else os.path.join(parent, stem)


def _totals(counts: "Counter[str]") -> str:
    """How many adapters there are, in which states, and how many other files."""
    states = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    adapters = counts[ADAPTER]
    told = f"{adapters} adapter{'' if adapters == 1 else 's'}" + (f": {states}" if states else "")
    others = [
        f"{count} {_PLURALS.get(what, what) if count > 1 else what}"
        for what in (BASE, OTHER, _COPIES, _BROKEN)
        if (count := counts[what])
    ]
    if counts[_LEFT_OUT]:
        others.append(f"{counts[_LEFT_OUT]} left out by --where")
    return "; ".join([told, *([", ".join(others)] if others else [])])
