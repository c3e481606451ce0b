"""`lora-inspect info`.

The table of a file's modules: only the columns that say something, as wide as the terminal.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from lora_inspect.cli import terminal
from lora_inspect.cli.info_arguments import (
    CODE,
    ERROR,
    FolderOptions,
    InfoArgument,
    broken,
    folder_options,
    parse_argument,
)
from lora_inspect.cli.terminal import Line, Sheet
from lora_inspect.cli.verb import VERBS, FilePath, Verb
from lora_inspect.errors import with_code
from lora_inspect.files.system import without_collecting

if TYPE_CHECKING:
    from lora_inspect.programs.verdict import Verdict
    from lora_inspect.reading.file_info import FileInfo

# No docstring: python -OO leaves those out.
_HELP = """\
Describe each PATH: a file, a sharded set, a PEFT folder, or a folder of adapters (a line per file).

`info` reads only headers, alphas and flags. alpha=N and rslora=yes|no after a colon supply facts that a file does not
state.

\b
Example: lora-inspect info adapter.safetensors --modules
Example: lora-inspect info loras/ --where model=wan --sort size
"""


@click.command(cls=Verb, help=_HELP, short_help=VERBS["info"])
@click.argument("paths", nargs=-1, required=True, type=FilePath(), metavar="PATH[:SETTING,...]...")
@click.option("--modules", is_flag=True, help="List every module with its rank, alpha and scale.")
@click.option("--metadata", is_flag=True, help="Show the file's metadata: JSON expanded, long values shortened.")
@click.option("--why", is_flag=True, help="Show all evidence for the reported facts.")
@click.option("--json", "as_json_", is_flag=True, help="Print JSON; a list for several PATHs or a folder of files.")
@folder_options
def info(
    paths: tuple[str, ...], modules: bool, metadata: bool, why: bool, as_json_: bool, **about_folders: Any
) -> None:
    """Read each path and print its description."""
    arguments = [parse_argument(path) for path in paths]
    options = FolderOptions(**about_folders)
    if len(arguments) > 1 or arguments[0].is_collection or options.lists:
        from lora_inspect.cli.info_folder import info_of_several

        _refuse_for_several(modules and not (as_json_ or options.jsonl), metadata, why)
        info_of_several(arguments, modules, as_json_, options)
    else:
        _info_of_one(arguments[0], modules, metadata, why, as_json_)


def _refuse_for_several(modules: bool, metadata: bool, why: bool) -> None:
    """Raise UsageError for options that show a single file."""
    given = {"--modules": modules, "--metadata": metadata, "--why": why}
    if option := next((name for name, is_given in given.items() if is_given), None):
        raise click.UsageError(f"{option} shows a single file; name one, or give --json.")


def _info_of_one(argument: InfoArgument, modules: bool, metadata: bool, why: bool, json: bool) -> None:
    """Read one checkpoint and print its description; exit with 1 or 3 if it cannot be read."""
    found, verdicts, record = _read(argument, modules)
    if json:
        terminal.json_text(record)
    elif found:
        _show(found, record, verdicts, metadata, why)
    if ERROR in record:
        terminal.error(record[ERROR])
        sys.exit(with_code(record[CODE]).status)


def _read(argument: InfoArgument, modules: bool) -> "tuple[FileInfo | None, Sequence[Verdict] | None, dict[str, Any]]":
    """The file, what programs make of it, and its record; where it cannot be read, the record says why."""
    from lora_inspect.ops.info import record_of, verdicts_of
    from lora_inspect.reading.file_info import inspect

    if argument.broken:
        return None, None, argument.broken
    try:
        with without_collecting():
            found = inspect(argument.files[0], argument.settings)
            verdicts = verdicts_of(found)
            return found, verdicts, record_of(found, verdicts, modules)
    except Exception as error:  # one path that cannot be read leaves the others their answers
        return None, None, broken(argument.files[0], error)


def _show(
    found: "FileInfo", record: dict[str, Any], verdicts: "Sequence[Verdict] | None", metadata: bool, why: bool
) -> None:
    """The screen, and below it the modules and the metadata where they are asked for."""
    from lora_inspect.cli.info_screen import screen

    sheet = Sheet(terminal.columns())
    terminal.laid_out(screen(sheet, found, record, verdicts, why))
    if record.get("module_list"):
        terminal.laid_out([[], *table_of_modules(sheet, record["module_list"], why)])
    if metadata and record["metadata"]:
        from lora_inspect.cli.metadata_output import metadata_lines
        from lora_inspect.cli.terminal import StyledText, cut

        lines = map(terminal.spelled, metadata_lines(record["metadata"], sheet.columns))
        terminal.laid_out([[], *([StyledText(cut(line, sheet.columns, sheet.mark))] for line in lines)])


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
        "unknown" if module["scale"] is None else f"{module['scale']:.6g}",
        module["dora"] or "",
    )
