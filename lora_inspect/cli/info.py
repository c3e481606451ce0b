"""`lora-inspect info`."""

import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import click

from lora_inspect.architectures import by_name
from lora_inspect.checkpoint import find_checkpoints, is_checkpoint_folder
from lora_inspect.cli import terminal
from lora_inspect.cli.shared_options import parse_without_strength
from lora_inspect.errors import LoraInspectError
from lora_inspect.listing import listed, some
from lora_inspect.ops.info import FileInfo, as_json, inspect
from lora_inspect.settings import Settings


@click.command(short_help="What a file is and means, and on which evidence.")
@click.argument("paths", nargs=-1, required=True, metavar="PATH[:SETTING,...]...")
@click.option("--modules", is_flag=True, help="List every module with its rank, alpha and scale.")
@click.option("--metadata", is_flag=True, help="Show the file's metadata.")
@click.option(
    "--json", "as_json_", is_flag=True, help="Print JSON: a list if several PATHs or a folder of files are given."
)
def info(paths: tuple[str, ...], modules: bool, metadata: bool, as_json_: bool) -> None:
    """Says what each PATH is: a file, a sharded set, a PEFT folder, or a folder of adapters (a line per file).

    Only headers, alphas and flags are read. alpha=N and rslora=yes|no after a colon settle what a file leaves open.

    \b
    Example: lora-inspect info adapter.safetensors --modules
    """
    named = [parse_without_strength(path, "info") for path in paths]
    found = list(_expand(named))
    several = len(paths) > 1 or [path for path, _ in found] != [path for path, _ in named]
    read: list[FileInfo] = []
    failures: list[str] = []
    for path, settings in found:
        try:
            read.append(inspect(path, settings))
        except LoraInspectError as error:
            failures.append(str(error))
    if as_json_:
        records = [as_json(item, modules) for item in read]
        if several or records:
            terminal.json_text(records if several else records[0])
    else:
        _print_tables(read, several, modules, metadata)
    for failure in failures:
        terminal.error(failure)
    if failures:
        sys.exit(1)


def _expand(named: Sequence[tuple[str, Settings]]) -> Iterator[tuple[str, Settings]]:
    """The checkpoints that the arguments stand for: a folder of several files gives each of them, settings and all."""
    for path, settings in named:
        inside = find_checkpoints(path) if os.path.isdir(path) and not is_checkpoint_folder(path) else iter(())
        first = next(inside, None)
        yield (path if first is None else first), settings  # a folder without any is named in the error that it gives
        yield from ((file, settings) for file in inside)


def _print_tables(read: list[FileInfo], several: bool, modules: bool, metadata: bool) -> None:
    records = [as_json(item, modules) for item in read]
    if several and records:
        columns = (
            "file",
            "kind",
            "algorithm",
            "architecture",
            "modules",
            "rank",
            "alpha",
            "scale",
            "rslora",
            "dora",
            "problems",
        )
        terminal.table(map(_line, records), columns)
    for record in records:
        if not several:
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
        yield "DoRA", _answer(record["dora"]) + axis
        yield "scheme", record["scheme"] or "unknown"
        yield "trainer", record["trainer"] or "unknown"
    yield "architecture", _architecture(record)
    for item in record["evidence"]:
        yield "evidence", f"{item['about']}: {item['says']} [{item['where']}]"
    if record["unclaimed"]:
        yield "unclaimed", f"{len(record['unclaimed'])}: {some(record['unclaimed'], 3)}"
    for item in record["problems"]:
        yield item["severity"], item["message"]


def _line(record: dict[str, Any]) -> tuple[str, ...]:
    return (
        record["path"],
        record["kind"],
        _listed(record["algorithms"]),
        " or ".join(record["architectures"]),
        str(record["modules"]),
        "/".join(record["ranks"]),
        "/".join(record["alphas"]),
        "/".join(record["scales"]),
        _word(record["rslora"]["value"]) if record["kind"] == "adapter" else "",
        _word(record["dora"]["value"]) if record["kind"] == "adapter" else "",
        ", ".join(sorted({item["code"] for item in record["problems"] if item["severity"] != "note"})),
    )


def _architecture(record: dict[str, Any]) -> str:
    size = f" {record['size']}" if record["size"] else ""
    titles = listed([by_name(name).title for name in record["architectures"]], "or")
    names = f" ({record['layout']} names)" if record["layout"] else ""
    return f"{record['architecture'] or titles or 'unknown'}{size}{names}"


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


def _shape(shape: list[int] | None) -> str:
    return "x".join(map(str, shape)) if shape else ""
