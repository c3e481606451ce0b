"""`lora-inspect info` of several paths or of a folder: a row or a record for each file, as it is read.

The table of a folder: columns as wide as the terminal bears, chosen before the first file is read.
"""

import os
import re
import sys
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import chain, islice
from typing import Any

from lora_inspect.cli import terminal
from lora_inspect.cli.info.one_file import CODE, ERROR, InfoArgument, broken
from lora_inspect.cli.info.selection import FolderOptions, sorting_key
from lora_inspect.cli.progress_bar import BarBelow, bar_below
from lora_inspect.cli.terminal import (
    DEBUG,
    DOUBTFUL,
    FAINT,
    PLAIN,
    WRONG,
    Line,
    Sheet,
    StyledText,
    cut,
    failure,
    wrapped,
)
from lora_inspect.cli.verb import ON_UNTESTED
from lora_inspect.errors import (
    FAILED_STATUS,
    REFUSED_STATUS,
    LoraInspectError,
    RefusedError,
    kind_of,
    of_system,
    with_code,
)
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.discovery import PEFT_WEIGHTS, set_of, stored_bytes
from lora_inspect.files.file_types import PICKLE_ENDINGS
from lora_inspect.ops.folder import find_unread_refusal
from lora_inspect.ops.scan import scan_files
from lora_inspect.programs import PROGRAMS
from lora_inspect.programs.verdict import NO_MODELS, SAME, UNJUDGED, VERDICTS
from lora_inspect.reading.file_info import ADAPTER, BASE, OTHER
from lora_inspect.reporting.file_record import as_json
from lora_inspect.scanning import scan_file
from lora_inspect.scanning.scan_file import OPEN, STATES, InProgram, Record, ScannedFile
from lora_inspect.scanning.training_rows import EpochGroup, TrainingRows
from lora_inspect.sentences import counted, size_in_words, unlike_command, width

_HEADERS = ("name", "model", "type", "rank", "scale", "size", "trigger", "note")
_AT_RIGHT = ("rank", "scale", "size")
# The columns of a line from which on there is room for these.
_ROOM_FOR = {"size": 72, "rank": 56}
# Those from which on there is room for trigger words. Where a condition is about them, the second number counts, and
# other columns give way.
_TRIGGER, _ROOM_FOR_TRIGGER, _GIVE_WAY = "trigger", (100, 60), ("scale", "size")
# The first rows wait for so many files, which tell whether the folder has trigger words.
_AHEAD = 8
# The columns of names of models: so much of the line, but no less and no more.
_MODEL_SHARE, _MODEL = 8, (9, 22)
_WIDTHS = {"type": 7, "rank": 5, "scale": 5, "size": 6, "trigger": 14}
_NAME, _NOTE, _NOTE_SHARE = 12, 18, 0.4
# What people call models that the tables have longer titles for, where those do not fit.
_SHORT_MODELS = {
    "Stable Diffusion 1.x": "SD 1.x",
    "Stable Diffusion 2.x": "SD 2.x",
    "Stable Diffusion 3": "SD 3",
    "Stable Diffusion XL": "SDXL",
    "Language model (Llama line)": "LLM (Llama)",
    "Wan 2.1 / 2.2": "Wan 2",
    "Lumina-Image 2.0": "Lumina 2",
    "Cosmos Predict 2": "Cosmos 2",
    "HunyuanVideo 1.5": "HyVideo 1.5",
    "HunyuanVideo": "HunyuanVid.",
    "HunyuanImage 2.1": "HunyuanImg",
}
_SEVERAL, _UNKNOWN, _NONE = "mixed", "?", "-"
_LOOKS = {scan_file.CONVERT: WRONG, scan_file.INFO_ONLY: DOUBTFUL, scan_file.ANSWER: DOUBTFUL}


class _Column(NamedTuple):
    header: str
    width: int

    @property
    def at_right(self) -> bool:
        return self.header in _AT_RIGHT


class FolderTable:
    """The lines of a table for files with known names.

    They are as wide as the sheet or, if it `is_endless`, as the cells need. A name that would look like another one
    when cut has its own line. `headers` are shown if they fit.
    """

    def __init__(
        self, sheet: Sheet, names: Iterable[str], is_endless: bool = False, headers: Sequence[str] = _HEADERS
    ) -> None:
        self._sheet, self._is_endless = sheet, is_endless
        shown = [sheet.shown(name) for name in dict.fromkeys(names)]
        longest = max(map(width, shown), default=0)
        self._columns = _columns(terminal.ENDLESS if is_endless else sheet.columns, longest, headers)
        room = self._room("name")
        self._alike = {
            one for one, count in Counter(cut(name, room, sheet.mark) for name in shown).items() if count > 1
        }

    def headers(self) -> Line:
        """Return the line above all rows."""
        return self._line([column.header for column in self._columns], FAINT)

    def row(self, name: str, one: ScannedFile, duplicate_of: str = "", received: InProgram | None = None) -> list[Line]:
        """Return the lines of a readable file.

        `duplicate_of` names the first file with its tensors. If the verdict of a program is given, it is the note.
        """
        cells = {
            "name": name,
            "model": self._model(one),
            "type": _types(one),
            "rank": _span(list(map(str, one.ranks)), self._room("rank")),
            "scale": _span([_number(scale) for scale in one.scales], self._room("scale")),
            "size": _size(one.bytes),
            "trigger": ", ".join(one.trigger_words),
            "note": self._fitting(received.notes) if received else self._note(one, duplicate_of),
        }
        if received:
            return self._lines(cells, WRONG if received.is_wrong else DOUBTFUL if received.verdict == OPEN else PLAIN)
        return self._lines(cells, PLAIN if duplicate_of else _LOOKS.get(one.state, PLAIN))

    def group_line(self, group: EpochGroup) -> Line:
        """Return the line below the row of the last epoch of a training, on those without a row."""
        text = f"  {group}; --all lists each"
        return [StyledText(text if self._is_endless else cut(text, self._sheet.columns, self._sheet.mark), FAINT)]

    def broken_row(self, name: str, kind: str, path: str, error: Exception) -> list[Line]:
        """Return the lines of a file that was not read, with the `kind` of it."""
        cells = dict.fromkeys(_HEADERS, _NONE) | {"name": name, "type": kind, "size": _size(stored_bytes(path))}
        cells["note"] = self._fitting(_error_in_words(error, path))
        return self._lines(cells, WRONG)

    def _lines(self, cells: dict[str, str], note_look: str) -> list[Line]:
        above: list[Line] = []
        name = self._sheet.shown(cells["name"])
        if width(name) > self._room("name") and cut(name, self._room("name"), self._sheet.mark) in self._alike:
            above = [[StyledText(piece)] for piece in wrapped(name, self._sheet.columns)]
            cells = {**cells, "name": ""}
        return [*above, self._line([cells[column.header] for column in self._columns], PLAIN, note_look)]

    def _line(self, cells: Sequence[str], look: str, note_look: str = "") -> Line:
        pieces: list[StyledText] = []
        for number, (column, cell) in enumerate(zip(self._columns, cells, strict=True)):
            shown = self._sheet.shown(cell)
            shown = shown if self._is_endless else cut(shown, column.width, self._sheet.mark)
            is_last = self._is_endless and column.header == _HEADERS[-1]
            blanks = "" if is_last else " " * (column.width - width(shown))
            gap = "" if not number else " " if column.at_right else "  "
            padded = blanks + shown if column.at_right else shown + blanks
            pieces.append(StyledText(gap + padded, note_look or look if column.header == "note" else look))
        return pieces

    def _room(self, header: str) -> int:
        return next((column.width for column in self._columns if column.header == header), 0)

    def _model(self, one: ScannedFile) -> str:
        if not one.model:
            return _UNKNOWN if one.kind == ADAPTER else _NONE
        if width(one.model) <= self._room("model"):
            return one.model
        short = one.model
        for title, name in _SHORT_MODELS.items():
            short = short.replace(title, name)
        return short

    def _note(self, one: ScannedFile, duplicate_of: str) -> str:
        return self._fitting((f"duplicate of {duplicate_of}", f"= {duplicate_of}") if duplicate_of else one.notes)

    def _fitting(self, notes: Iterable[str]) -> str:
        """Return the longest form of a note that fits."""
        shown = [self._sheet.shown(note) for note in notes]
        return next((note for note in shown if width(note) <= self._room("note")), shown[-1] if shown else "")


def _error_in_words(error: Exception, path: str) -> tuple[str, ...]:
    """Return the problem of a file, and shorter forms of it."""
    known = of_system(error, path) if isinstance(error, OSError) else error
    problem = known.problem if isinstance(known, LoraInspectError) else str(known)
    _, is_told, state = f": {problem}".rpartition(": it is ")
    state = state if is_told else problem
    return tuple(dict.fromkeys((problem, state, state.partition(",")[0])))


def _types(one: ScannedFile) -> str:
    if one.kind != ADAPTER:
        return OTHER if one.is_other_model else one.kind
    first, *others = one.types or (_UNKNOWN,)
    return f"{first}+{len(others)}" if others else first


def _columns(columns: int, longest: int, headers: Sequence[str]) -> list[_Column]:
    widths = {header: _WIDTHS.get(header, 0) for header in headers if columns >= _ROOM_FOR.get(header, 0)}
    least, most = _MODEL
    widths["model"] = min(max(columns // _MODEL_SHARE + 1, least), most)
    gaps = sum(1 if header in _AT_RIGHT else 2 for header in widths) - 2
    room = columns - sum(widths.values()) - gaps
    note = max(min(_NOTE, room // 2), int(room * _NOTE_SHARE))
    widths["name"] = max(min(longest, room - note), min(_NAME, room // 2), len("name"))
    widths["note"] = max(room - widths["name"], len("note"))
    return [_Column(header, widths[header]) for header in widths]


def _span(values: Sequence[str], room: int) -> str:
    """Return one value, or the first and last of several, or a word for several if they do not fit."""
    if len(values) < 2:
        return values[0] if values else _NONE
    span = f"{values[0]}-{values[-1]}"
    return span if len(span) <= room and _UNKNOWN not in values else _SEVERAL


def _number(scale: float | None) -> str:
    if scale is None:
        return _UNKNOWN
    forms = (f"{scale:.{digits}g}" for digits in (4, 3, 2, 1))
    return next((form for form in forms if len(form) <= _WIDTHS["scale"]), f"{scale:.0e}")


def _size(count: int) -> str:
    """Return a short size, of six letters at most."""
    number, _, unit = size_in_words(count).partition(" ")
    return f"{number} {'B' if unit == 'bytes' else unit}"


_ENDING = ".safetensors"
# What is counted in the last line beside the states: files that could not be read, copies, what --where left out, files
# in formats that are never read, and those of a folder that hold no weights.
_BROKEN, _COPIES, _LEFT_OUT, _PICKLE, _FOREIGN, _WITHOUT = "broken", "duplicate", "left out", "pickle", "unread", "file"
# Models that no adapter is for.
_OTHER_MODEL = "other model"
# What is counted of the verdicts of a program: each under a key of its own, those that are wrong, and those that nobody
# tested, of models that it has not among them.
_VERDICT, _WRONG, _UNTESTED = "in the program: ", "wrong in it", "unknown in it"
# What the totals say of verdicts and states: of several files, and of one. No numbers are read of a file in a row.
_SAID = {
    SAME: ("load correctly", "loads correctly"),
    NO_MODELS: "of models that it has not",
    OPEN: "open or damaged",
    scan_file.FINE: ("fine by their headers", "fine by its header"),
}
# Those of the broken ones that the system did not give.
_LOST = "lost"
_PLURALS = {BASE: "bases", _OTHER_MODEL: "other models", OTHER: "others", _COPIES: "duplicates", _PICKLE: "pickles"}


class _Entry(NamedTuple):
    """A file, its name in the table, and two flags.

    One says that the user named it, the other that its format is never read.
    """

    one: ScannedFile
    name: str
    is_named: bool
    is_unread: bool = False

    @property
    def kind(self) -> str:
        """The kind of a file with an error: broken, or in another format."""
        if not (self.is_unread and isinstance(self.one.error, RefusedError)):
            return _BROKEN
        return _PICKLE if self.one.path.lower().endswith(PICKLE_ENDINGS) else _FOREIGN


def info_of_several(arguments: Sequence[InfoArgument], modules: bool, json: bool, options: FolderOptions) -> None:
    """Read all files of the arguments and print them; exit with 1 or 3 if one, or a whole folder, cannot be read."""
    names = _names(arguments)
    counts = Counter({_WITHOUT: sum(argument.others for argument in arguments)})
    with bar_below("Reading", len(names)) as bar:
        record = partial(as_json, modules=modules) if json or options.jsonl else None
        entries = _read(arguments, names, record, options, bar)
        with closing(entries):
            chosen = _chosen(entries, options, counts, bar, not record)
            if options.sort:
                chosen = _sorted(list(chosen), options.sort)
            if options.jsonl:
                for entry in chosen:
                    bar.above(partial(terminal.json_line, _record(entry.one, options.program)))
            elif json:
                records = [_record(entry.one, options.program) for entry in chosen]
            else:
                _print_rows(chosen, arguments, options, bar)
    if json and not options.jsonl:
        terminal.json_text(records)
    elif not options.jsonl:
        if options.program:
            _print_totals(_totals_of_program(counts, options.program))
        _print_totals(_totals(counts, with_states=not options.program))
    refusals = [find_unread_refusal(one.path, one.files, one.unread) for one in arguments if one.is_collection]
    for refusal in filter(None, refusals):
        terminal.error(str(refusal))
    if counts[_BROKEN]:
        sys.exit(FAILED_STATUS if counts[_LOST] else REFUSED_STATUS)
    if any(refusals):
        sys.exit(REFUSED_STATUS)
    if options.fail_on and (counts[_WRONG] or (options.fail_on == ON_UNTESTED and counts[_UNTESTED])):
        sys.exit(REFUSED_STATUS)


def _names(arguments: Sequence[InfoArgument]) -> list[str]:
    """Return the name of each file: its path below the only folder, else the path as typed."""
    folder = arguments[0].path if len(arguments) == 1 and arguments[0].is_collection else ""
    paths = _paths(arguments)
    return [os.path.relpath(path, folder) for path in paths] if folder else paths


def _paths(arguments: Sequence[InfoArgument]) -> list[str]:
    return [path for argument in arguments for path in argument.files or (argument.path,)]


def _read(
    arguments: Sequence[InfoArgument],
    names: Sequence[str],
    record: Record | None,
    options: FolderOptions,
    bar: BarBelow,
) -> Generator[_Entry, None, None]:
    """Yield every file in the order of the arguments; an argument without files counts as unreadable."""
    listing = [(file, argument.settings) for argument in arguments for file in argument.files]
    name = iter(names)
    jobs = 1 if os.environ.get(DEBUG) else options.jobs
    with closing(scan_files(listing, jobs, bar.advance, record, options.programs)) as found:
        for argument in arguments:
            if argument.broken:
                bar.advance(1)
                yield _Entry(
                    ScannedFile(argument.path, error=with_code(argument.broken[CODE])(argument.broken[ERROR])),
                    next(name),
                    True,
                )
            for file in argument.files:
                yield _Entry(next(found), next(name), not argument.is_collection, file in argument.unread)


def _chosen(
    entries: Iterable[_Entry], options: FolderOptions, counts: "Counter[str]", bar: BarBelow, has_rows: bool
) -> Iterator[_Entry]:
    """Yield the requested entries and the broken ones, and count all.

    The error of a broken entry is printed if the user named it or if there are no rows.
    """
    for entry in entries:
        one = entry.one
        if one.error and entry.kind == _BROKEN:
            counts[_BROKEN] += 1
            counts[_LOST] += kind_of(one.error).status == FAILED_STATUS
            if entry.is_named or not has_rows:
                bar.above(partial(_tell_error, one.path, one.error))
            yield entry
        elif not all(condition.holds(one) for condition in options.where):
            counts[_LEFT_OUT] += 1
        elif one.error:
            counts[entry.kind] += 1
            yield entry
        else:
            counts[_OTHER_MODEL if one.is_other_model else one.kind] += 1
            counts[one.state] += 1
            counts[_COPIES] += one.duplicate_of is not None
            if options.program and (received := one.in_programs.get(options.program)):
                counts[_VERDICT + received.verdict] += 1
                counts[_WRONG] += received.is_wrong
                counts[_UNTESTED] += received.verdict in (*UNJUDGED, OPEN)
            yield entry


def _tell_error(path: str, error: Exception) -> None:
    terminal.error(broken(path, error)[ERROR])


def _sorted(entries: Sequence[_Entry], order: str) -> Iterator[_Entry]:
    """Yield the entries in an order, with unreadable ones last."""
    key = sorting_key(order)
    yield from sorted((entry for entry in entries if not entry.one.error), key=lambda entry: key(entry.one))
    yield from (entry for entry in entries if entry.one.error)


def _record(one: ScannedFile, program: str | None) -> dict[str, Any]:
    """Return the record that scripts rely on."""
    if one.error:
        return failure(one.path, one.error).record()
    record = {**(one.record or {}), **one.in_folder()}
    if program is None:
        return record
    received = one.in_programs.get(program)
    told = {"verdict": received.verdict, "says": received.notes[0] if received.notes else ""} if received else {}
    return {**record, "for": {"program": program, "verdict": None, "says": "", **told}}


def _print_rows(
    entries: Iterable[_Entry], arguments: Sequence[InfoArgument], options: FolderOptions, bar: BarBelow
) -> None:
    """Print a row for each file as it comes; models and other files of a folder only on request.

    Similar epochs of one training share a row.
    """
    names = [_short(name) for name in _names(arguments)]
    called = dict(zip(_paths(arguments), names, strict=True))
    is_endless = not terminal.has_columns()
    first, headers = _first_rows(iter(entries), terminal.ENDLESS if is_endless else terminal.columns(), options)
    table = FolderTable(Sheet(terminal.columns()), names, is_endless, headers)
    trainings = TrainingRows(_without_row, list(called))
    together = trainings.sorted if options.sort else trainings.as_they_come
    ungrouped = ((entry, None) for entry in chain(first, entries))
    is_first = True
    for entry, group in ungrouped if options.all_ else together(chain(first, entries)):
        one, name = entry.one, _short(entry.name)
        if one.error and entry.is_named:
            continue
        if one.error:
            lines = table.broken_row(name, entry.kind, one.path, one.error)
        elif one.kind == ADAPTER or entry.is_named or options.all_:
            original = called.get(one.duplicate_of, one.duplicate_of) if one.duplicate_of else ""
            lines = table.row(name, one, original, one.in_programs.get(options.program or ""))
        else:
            continue
        lines += [table.group_line(group)] if group else []
        bar.above(partial(terminal.laid_out, [table.headers(), *lines] if is_first else lines))
        is_first = False


def _first_rows(entries: Iterator[_Entry], columns: int, options: FolderOptions) -> tuple[list[_Entry], list[str]]:
    """Return entries read ahead, and the headers, with trigger words if requested or found."""
    is_asked = any(condition.key == _TRIGGER for condition in options.where)
    room, least = _ROOM_FOR_TRIGGER
    if is_asked and least <= columns < room:
        return [], [header for header in _HEADERS if header not in _GIVE_WAY]
    first = list(islice(entries, _AHEAD)) if columns >= room and not is_asked else []
    has_any = columns >= room and (is_asked or any(entry.one.trigger_words for entry in first))
    return first, [header for header in _HEADERS if header != _TRIGGER or has_any]


def _without_row(entry: _Entry) -> ScannedFile | None:
    """Return the account of a file that may go without a row: one of a folder."""
    return None if entry.is_named else entry.one


def _short(name: str) -> str:
    """Return a name without the usual ending, a set's number or PEFT's file name, as a row may begin with it."""
    parent, file = os.path.split(name)
    whole = set_of(file)
    stem = whole.stem if whole and whole.shards > 1 else file.removesuffix(_ENDING)
    short = os.path.join(parent, "") if parent and stem == PEFT_WEIGHTS else os.path.join(parent, stem)
    return unlike_command(short)


def _print_totals(text: str) -> None:
    """Print totals in lines as wide as the table, which break between two numbers."""
    lines = [""]
    for piece in re.split(r"(?<=[,;:]) ", text):
        longer = f"{lines[-1]} {piece}" if lines[-1] else piece
        lines = [*lines[:-1], longer] if width(longer) <= terminal.room() else [*lines, f"  {piece}"]
    for line in lines:
        terminal.line(line)


def _totals_of_program(counts: "Counter[str]", name: str) -> str:
    """Return the number of adapters by the verdict of a program."""
    program = PROGRAMS[name]
    verdicts = _in_words((verdict, counts[_VERDICT + verdict]) for verdict in (*VERDICTS, OPEN))
    return f"in {program.title} {program.version}: {verdicts or 'no adapter'}"


def _in_words(counts: Iterable[tuple[str, int]]) -> str:
    """Return the numbers of files that are not 0, each with the words of its verdict or state."""
    pairs = [(count, _SAID.get(name, name)) for name, count in counts if count]
    return ", ".join(f"{count} {words if isinstance(words, str) else words[count == 1]}" for count, words in pairs)


def _totals(counts: "Counter[str]", with_states: bool) -> str:
    """Return the number of adapters, by state, and of other files."""
    states = _in_words((state, counts[state]) for state in STATES) if with_states else ""
    adapters = counts[ADAPTER]
    told = f"{adapters} adapter{'' if adapters == 1 else 's'}" + (f": {states}" if states else "")
    others = [
        f"{count} {_PLURALS.get(what, what) if count > 1 else what}"
        for what in (BASE, _OTHER_MODEL, OTHER, _COPIES, _BROKEN, _PICKLE, _FOREIGN)
        if (count := counts[what])
    ]
    if counts[_WITHOUT]:
        others.append(counted(counts[_WITHOUT], "other file"))
    if counts[_LEFT_OUT]:
        others.append(f"{counts[_LEFT_OUT]} left out by --where")
    return "; ".join([told, *([", ".join(others)] if others else [])])
