"""`lora-inspect info` of several paths, or of a folder of checkpoints: a row of a table or a record for each file."""

import sys
from typing import Any

from lora_inspect.cli import terminal
from lora_inspect.cli.info_paths import ERROR, Asked, broken
from lora_inspect.ops.info import as_json
from lora_inspect.reading.file_info import inspect
from lora_inspect.reading.settings import Settings

_COLUMNS = (
    "file", "kind", "algorithm", "architecture", "modules", "rank", "alpha", "scale", "rslora", "dora", "problems",
)  # fmt: skip


def info_of_several(arguments: list[Asked], modules: bool, json: bool) -> None:
    """Reads all files of the arguments, prints what they are, and exits 1 where one cannot be read."""
    records = [record for argument in arguments for record in _records(argument, modules)]
    if json:
        terminal.json_text(records)
    elif rows := [_row(record) for record in records if ERROR not in record]:
        terminal.table(rows, _COLUMNS)
    errors = [record[ERROR] for record in records if ERROR in record]
    for error in errors:
        terminal.error(error)
    if errors:
        sys.exit(1)


def _records(argument: Asked, modules: bool) -> list[dict[str, Any]]:
    if argument.broken:
        return [argument.broken]
    return [_record(file, argument.settings, modules) for file in argument.files]


def _record(path: str, settings: Settings, modules: bool) -> dict[str, Any]:
    try:
        return as_json(inspect(path, settings), modules)
    except Exception as error:
        return broken(path, error)


def _row(record: dict[str, Any]) -> tuple[str, ...]:
    return (
        record["path"],
        record["kind"],
        ", ".join(record["algorithms"]) or "-",
        " or ".join(record["architectures"]),
        str(record["modules"]),
        "/".join(record["ranks"]),
        "/".join(record["alphas"]),
        "/".join(record["scales"]),
        _word(record["rslora"]["value"]) if record["kind"] == "adapter" else "",
        _word(record["dora"]["value"]) if record["kind"] == "adapter" else "",
        ", ".join(sorted({item["code"] for item in record["problems"] if item["severity"] != "note"})),
    )


def _word(value: bool | None) -> str:
    return "unknown" if value is None else ("yes" if value else "no")
