"""`lora-inspect info`."""

import sys
from collections.abc import Iterator
from typing import Any

import click

from lora_inspect.architectures import by_name
from lora_inspect.cli import terminal
from lora_inspect.cli.file_paths import FilePath
from lora_inspect.cli.info_paths import ERROR, Asked, asked, broken
from lora_inspect.cli.summaries import VERBS
from lora_inspect.listing import listed, some
from lora_inspect.maths.dora import OF_BASE
from lora_inspect.ops.info import as_json
from lora_inspect.reading.file_info import inspect
from lora_inspect.reading.settings import Settings

# No docstring: python -OO leaves those out.
_HELP = """\
Says what each PATH is: a file, a sharded set, a PEFT folder, or a folder of adapters (a line per file).

Only headers, alphas and flags are read. alpha=N and rslora=yes|no after a colon settle what a file leaves open.

\b
Example: lora-inspect info adapter.safetensors --modules
"""


@click.command(help=_HELP, short_help=VERBS["info"])
@click.argument("paths", nargs=-1, required=True, type=FilePath(), metavar="PATH[:SETTING,...]...")
@click.option("--modules", is_flag=True, help="List every module with its rank, alpha and scale.")
@click.option("--metadata", is_flag=True, help="Show the file's metadata.")
@click.option(
    "--json", "as_json_", is_flag=True, help="Print JSON: a list if several PATHs or a folder of files are given."
)
def info(paths: tuple[str, ...], modules: bool, metadata: bool, as_json_: bool) -> None:
    """Reads each path and prints what it is."""
    arguments = [asked(path) for path in paths]
    if len(arguments) > 1 or arguments[0].is_collection:
        from lora_inspect.cli.info_folder import info_of_several

        info_of_several(arguments, modules, as_json_)
    else:
        _info_of_one(arguments[0], modules, metadata, as_json_)


def _info_of_one(argument: Asked, modules: bool, metadata: bool, json: bool) -> None:
    """Reads one checkpoint, prints what it is, and exits 1 where it cannot be read."""
    record = argument.broken or _record(argument.files[0], argument.settings, modules)
    if json:
        terminal.json_text(record)
    elif ERROR not in record:
        _print(record, modules, metadata)
    if ERROR in record:
        terminal.error(record[ERROR])
        sys.exit(1)


def _record(path: str, settings: Settings, modules: bool) -> dict[str, Any]:
    try:
        return as_json(inspect(path, settings), modules)
    except Exception as error:
        return broken(path, error)


def _print(record: dict[str, Any], modules: bool, metadata: bool) -> None:
    terminal.facts(_lines(record))
    if modules and record["module_list"]:
        rows = [
            (
                m["module"],
                m["algorithm"],
                _shape(m["shape"]),
                m["rank"],
                m["alpha"],
                m["scale"],
                m["dora"] or "",
                m["why"],
            )
            for m in record["module_list"]
        ]
        headers = ("module", "algorithm", "shape", "rank", "alpha", "scale", "dora", "because")
        terminal.line("")
        terminal.table(rows, headers)
    if metadata and record["metadata"]:
        terminal.line("")
        terminal.table(sorted(record["metadata"].items()))


def _lines(record: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What is said of a single file, a fact a line, each with its evidence."""
    yield "file", record["path"]
    yield (
        "kind",
        f"{record['kind']}, {record['tensors']:,} tensors ({_listed(record['dtypes'])}), {record['bytes']:,} bytes",
    )
    if record["kind"] == "adapter":
        yield "modules", f"{record['modules']:,} ({_listed(record['algorithms'])}), {record['parameters']:,} parameters"
        yield "rank", _listed(record["ranks"])
        yield "alpha", _listed(record["alphas"])
        yield "scale", _listed(record["scales"])
        yield "RS-LoRA", _answer(record["rslora"])
        axis = (
            f", {record['dora']['modules']} modules, {record['dora']['axis']} axis" if record["dora"]["modules"] else ""
        )
        over = ", over the norms of the base" if record["dora"]["norms"] == OF_BASE else ""
        yield "DoRA", _answer(record["dora"]) + axis + over
        yield "scheme", record["scheme"] or "unknown"
        yield "trainer", record["trainer"] or "unknown"
        if record["read_by"] is not None:
            yield "read by", ", ".join(record["read_by"]) or "no program that is known here, as it means it"
    yield "architecture", _architecture(record)
    for item in record["evidence"]:
        yield "evidence", f"{item['about']}: {item['says']} [{item['where']}]"
    if record["unclaimed"]:
        yield "unclaimed", f"{len(record['unclaimed'])}: {some(record['unclaimed'], 3)}"
    for item in record["problems"]:
        yield item["severity"], item["message"]


def _architecture(record: dict[str, Any]) -> str:
    size = f" {record['size']}" if record["size"] else ""
    titles = listed([by_name(name).title for name in record["architectures"]], "or")
    names = f" ({record['layout']} names)" if record["layout"] else ""
    expert = f", {record['expert']} expert" if record["expert"] else ""
    return f"{record['architecture'] or titles or 'unknown'}{size}{names}{expert}"


def _answer(reading: dict[str, Any]) -> str:
    known = reading["source"] not in ("default", "conflict")
    says = "differs between modules" if known and reading["value"] is None else _word(reading["value"])
    return f"{says} (by {reading['source'].replace('_', ' ')})"


def _word(value: bool | None) -> str:
    return "unknown" if value is None else ("yes" if value else "no")


def _listed(counts: dict[str, int]) -> str:
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{name} ({count})" for name, count in counts.items()) or "-"


def _shape(shape: list[int | None] | None) -> str:
    return "x".join("?" if size is None else str(size) for size in shape) if shape else ""
