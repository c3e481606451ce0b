"""`lora-inspect info` of one file: its record as JSON, or its screen with the table of its modules.

Nothing here needs click, since its import takes as long as the rest: a command with only one file and flags runs
without it.
"""

import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lora_inspect.cli import terminal
from lora_inspect.cli.terminal import Line, Sheet, StyledText, cut, failure, show_defect
from lora_inspect.errors import with_code
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.system import without_collecting
from lora_inspect.reading.model.settings import Settings
from lora_inspect.sentences import scale_in_words

if TYPE_CHECKING:
    from lora_inspect.algebra.measures.spectra import SpectrumResult
    from lora_inspect.files.discovery import FolderFiles
    from lora_inspect.matching.orientation import Answers
    from lora_inspect.programs.verdict import Verdict
    from lora_inspect.reading.file_info import FileInfo
    from lora_inspect.reporting.measurement import NormsResult

# The flags of a command that names one file.
FLAGS = ("modules", "tensors", "metadata", "why", "norms", "spectrum", "json")
# Settings begin at a colon, and on Windows click looks for the files that the other signs name.
_NOT_PLAIN = ":*?[~$%"
# The field of a record that stands for a file that could not be read.
ERROR, CODE = "error", "code"


class InfoArgument(NamedTuple):
    """The files and settings of an argument, or the failure to read it.

    `is_collection` is true for a folder of several checkpoints. `path` is the argument without its settings. Of a
    folder `unread` are the files in formats that are never read, and `others` is the number of files without weights.
    """

    files: tuple[str, ...]
    settings: Settings = Settings()
    is_collection: bool = False
    broken: dict[str, Any] | None = None
    path: str = ""
    unread: frozenset[str] = frozenset()
    others: int = 0


def folder_argument(path: str, files: "FolderFiles", settings: Settings) -> InfoArgument:
    """Return the argument of a folder with several files; its settings apply to each of them."""
    own = settings._replace(of_several=True)
    return InfoArgument(files.weights, own, True, path=path, unread=files.unread, others=files.others)


def broken(path: str, error: Exception) -> dict[str, Any]:
    """Return the record of a file that cannot be read."""
    show_defect(error)
    return dict(failure(path, error).record())


class PlainCommand(NamedTuple):
    """The path of a file, and the flags that the command has."""

    path: str
    flags: frozenset[str]

    def run(self) -> None:
        """Do as `info` does."""
        asked: dict[str, Any] = {name: name in self.flags for name in FLAGS}
        info_of_one(InfoArgument((self.path,), path=self.path), **asked)


def read_plain(words: Sequence[str]) -> PlainCommand | None:
    """Return the words behind `info` if they are one file and flags; None for others, which click reads."""
    flags = {word.removeprefix("--") for word in words if word.startswith("-")}
    paths = [word for word in words if not word.startswith("-")]
    if len(paths) != 1 or not flags <= set(FLAGS):
        return None
    path = paths[0]
    is_plain = path and not any(sign in path for sign in _NOT_PLAIN) and not os.path.isdir(path)
    return PlainCommand(path, frozenset(flags)) if is_plain else None


class Measure(NamedTuple):
    """The base for comparisons (None for none), and the answers on its storage of square weights."""

    base: str | None = None
    transposed: "Answers | None" = None


def info_of_one(
    argument: InfoArgument,
    modules: bool,
    tensors: bool,
    metadata: bool,
    why: bool,
    norms: bool,
    spectrum: bool,
    json: bool,
    measure: Measure = Measure(),  # noqa: B008 (frozen)
) -> None:
    """Read one checkpoint and print its description; exit with 1 or 3 if it cannot be read."""
    with without_collecting():
        found, verdicts, record = _read(argument, modules, tensors)
        sizes, spectra = None, None
        if (norms or spectrum) and found:
            sizes, spectra, record = _measured(found, record, measure, norms, spectrum)
        if json:
            terminal.json_text(record)
        elif found and ERROR not in record:
            _show(found, record, verdicts, metadata, why)
            _show_measured(sizes, spectra)
    if ERROR in record:
        terminal.error(record[ERROR])
        sys.exit(with_code(record[CODE]).status)


def _measured(
    found: "FileInfo", record: dict[str, Any], asked: Measure, norms: bool, spectrum: bool
) -> "tuple[NormsResult | None, SpectrumResult | None, dict[str, Any]]":
    """Return the requested sizes and spectra, and the record with them or with the error."""
    from lora_inspect.cli.progress_bar import percent, progress_bar
    from lora_inspect.reporting.measurement import measure

    try:
        with progress_bar("Measuring", found.checkpoint.bytes, percent) as progress:
            measured = measure(found, asked.base, asked.transposed or {}, progress, with_spectra=spectrum)
        sizes, spectra = measured.norms if norms else None, measured.spectrum if spectrum else None
    except Exception as error:  # as of a file that cannot be read
        return None, None, broken(found.checkpoint.path, error)
    for note in measured.notes:
        terminal.note(note)
    record |= {"norms": sizes.to_dict()} if sizes else {}
    record |= {"spectrum": spectra.to_dict()} if spectra else {}
    return sizes, spectra, record


def _show_measured(sizes: "NormsResult | None", spectra: "SpectrumResult | None") -> None:
    if sizes:
        from lora_inspect.cli.info.norms_table import norms_lines

        terminal.laid_out([[], *norms_lines(Sheet(terminal.columns()), sizes)])
    if spectra:
        from lora_inspect.cli.info.spectrum_table import spectrum_lines

        terminal.laid_out([[], *spectrum_lines(Sheet(terminal.columns()), spectra)])


def _read(
    argument: InfoArgument, modules: bool, tensors: bool
) -> "tuple[FileInfo | None, Sequence[Verdict] | None, dict[str, Any]]":
    """Return the file, the verdicts of programs and its record.

    If it cannot be read, the record has the reason.
    """
    from lora_inspect.reading.file_info import inspect
    from lora_inspect.reporting.file_record import record_of, verdicts_of

    if argument.broken:
        return None, None, argument.broken
    try:
        found = inspect(argument.files[0], argument.settings)
        verdicts = verdicts_of(found)
        return found, verdicts, record_of(found, verdicts, modules, tensors)
    except Exception as error:  # one path that cannot be read leaves the others their answers
        return None, None, broken(argument.files[0], error)


def _show(
    found: "FileInfo", record: dict[str, Any], verdicts: "Sequence[Verdict] | None", metadata: bool, why: bool
) -> None:
    """Print the screen and, if requested, the modules and the metadata below it."""
    from lora_inspect.cli.info.screen import screen

    sheet = Sheet(terminal.columns())
    terminal.laid_out(screen(sheet, found, record, verdicts, why))
    wide = Sheet(terminal.room())
    if record.get("module_list"):
        terminal.laid_out([[], *table_of_modules(wide, record["module_list"], why)])
    if record.get("tensor_list"):
        terminal.laid_out([[], *_table_of_tensors(wide, record["tensor_list"])])
    if metadata and record["metadata"]:
        from lora_inspect.cli.metadata_output import metadata_lines

        lines = map(terminal.spelled, metadata_lines(record["metadata"], wide.columns))
        terminal.laid_out([[], *([StyledText(cut(line, wide.columns, sheet.mark))] for line in lines)])


def _table_of_tensors(sheet: Sheet, tensors: Sequence[Mapping[str, Any]]) -> Iterator[Line]:
    """Yield a row per tensor, with its file if there are several."""
    files = {one["file"] for one in tensors}
    headers = ["tensor", "type", "shape", "bytes", "offset", *(["file"] if len(files) > 1 else [])]
    rows = [
        [
            *(
                one["name"],
                one["dtype"],
                "x".join(map(str, one["shape"])) or "()",
                f"{one['bytes']:,}",
                str(one["offset"]),
            ),
            *([os.path.basename(one["file"])] if len(files) > 1 else []),
        ]
        for one in tensors
    ]
    yield from sheet.table(rows, headers)


_HEADERS = ("algorithm", "shape", "rank", "alpha", "scale", "dora")
_MOST_REASONS = 12


def table_of_modules(sheet: Sheet, modules: Sequence[Mapping[str, Any]], why: bool) -> Iterator[Line]:
    """Return a row per module and algorithm, with the reason of unknown scales or, with `why`, of all."""
    rows = [_row(module) for module in modules]
    # One algorithm for all is in the first line of the screen.
    shown = [
        at
        for at, name in enumerate(_HEADERS)
        if any(row[at] for row in rows) and (name != "algorithm" or len({row[at] for row in rows}) > 1)
    ]
    reasons = why or any(module["scale"] is None and module["why"] for module in modules)
    headers = ["module", *(_HEADERS[at] for at in shown)]
    yield from sheet.table(
        [[module["module"], *(row[at] for at in shown)] for module, row in zip(modules, rows, strict=True)], headers
    )
    if reasons:
        counts = Counter(module["why"] for module in modules).most_common()
        for says, count in counts[:_MOST_REASONS]:
            yield from sheet.sentence(f"scale of {count:,}: {says}")
        if len(counts) > _MOST_REASONS:
            yield from sheet.sentence(f"{len(counts) - _MOST_REASONS:,} more: --json")


def _row(module: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        module["algorithm"],
        "x".join("?" if size is None else str(size) for size in module["shape"] or ()),
        "" if module["rank"] is None else str(module["rank"]),
        "" if module["alpha"] is None else f"{module['alpha']:g}",
        scale_in_words(module["scale"]),
        module["dora"] or "",
    )
