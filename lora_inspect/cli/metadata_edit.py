"""The verbs of `lora-inspect metadata` that change a file: set, unset, copy and strip."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import click

from lora_inspect.cli import terminal
from lora_inspect.cli.complete_outputs import set_complete_outputs
from lora_inspect.cli.progress_bar import BarBelow, bar_below, percent
from lora_inspect.cli.verb import FORCE_HELP, METADATA_VERBS, Decorated, FilePath, Verb, json_option
from lora_inspect.errors import LoraInspectError
from lora_inspect.sentences import listed, shortened

if TYPE_CHECKING:
    from lora_inspect.editing.edit import Edit, MetadataChange
    from lora_inspect.ops.metadata import Edited, EditOutput

# The columns that a value may take beside its key; `get` prints it whole.
_VALUE = 100

_SET = """\
Set keys in the metadata of PATH: to text, or with KEY=@FILE to the text in a file.

\b
Example: lora-inspect metadata set adapter.safetensors \\
  --trigger-words "ink drawing" ss_training_comment=sketches
"""

_UNSET = """\
Remove keys from the metadata of PATH, by name or by glob.

\b
Example: lora-inspect metadata unset trained.safetensors "ss_dataset*" \\
  ss_session_id
"""

_COPY = """\
Copy the metadata of another file into PATH, except the hashes of its tensors. Keys that only PATH has stay.

\b
Example: lora-inspect metadata copy adapter.safetensors \\
  --from trained.safetensors --include "ss_tag_*"
"""

_STRIP = """\
Remove the metadata of PATH, except keys that decide how it is read: PATH keeps its meaning.

\b
Example: lora-inspect metadata strip adapter.safetensors -o clean.safetensors
"""


def _writing_options(function: Decorated) -> Decorated:
    """Add the options for the place of a change, which are the fields of a `Target`, and --json."""
    for option in (
        json_option(),
        click.option("--dry-run", is_flag=True, help="Print the planned changes; write nothing."),
        click.option("--hashes", is_flag=True, help="Write the hashes that programs look up, even if PATH has none."),
        click.option(
            "--in-place",
            is_flag=True,
            help="Rewrite only the header of PATH, if it has the space; the next run repairs it after a killed one.",
        ),
        click.option("--force", is_flag=True, help=FORCE_HELP),
        click.option(
            "-o",
            "--output",
            type=FilePath(),
            metavar="OUT",
            help="Write another file and leave PATH unchanged; without it, the new file replaces PATH.",
        ),
        click.argument("path", type=FilePath()),
    ):
        function = option(function)
    return function


_meaning_option = click.option(
    "--allow-meaning-change",
    "other_meaning",
    is_flag=True,
    help="Allow changes that alter how the file is read.",
)


@click.command("set", cls=Verb, help=_SET, short_help=METADATA_VERBS["set"])
@_writing_options
@click.argument("pairs", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--trigger-words", metavar="TEXT", help="Words that a prompt needs: modelspec.trigger_phrase.")
@click.option("--title", metavar="TEXT", help="Title in lists of models: modelspec.title.")
@click.option("--author", metavar="TEXT", help="Author of the file: modelspec.author.")
@click.option("--description", metavar="TEXT", help="Purpose of the file: modelspec.description.")
@click.option("--thumbnail", type=FilePath(), metavar="FILE", help="A JPEG, PNG or WebP: modelspec.thumbnail.")
@_meaning_option
def set_(
    path: str,
    pairs: tuple[str, ...],
    trigger_words: str | None,
    title: str | None,
    author: str | None,
    description: str | None,
    thumbnail: str | None,
    as_json: bool,
    **target: Any,
) -> None:
    """Parse and edit."""
    from lora_inspect.editing.edit import named_values, read_value, setting
    from lora_inspect.editing.edit import thumbnail as picture

    where = _target(**target)
    named = {"trigger_words": trigger_words, "title": title, "author": author, "description": description}
    values = {name: value if value is None else read_value(value) for name, value in named.items()}
    values["thumbnail"] = None if thumbnail is None else picture(thumbnail)
    given = _pairs(pairs)
    if not given and all(value is None for value in values.values()) and not where.hashes:
        raise click.UsageError("There is nothing to set; give KEY=VALUE, an option such as --title, or --hashes.")
    _edit(path, setting(lambda present: {**named_values(values, present), **given}), where, as_json)


@click.command(cls=Verb, help=_UNSET, short_help=METADATA_VERBS["unset"])
@_writing_options
@click.argument("keys", nargs=-1, required=True, metavar="KEY|GLOB...")
@_meaning_option
def unset(path: str, keys: tuple[str, ...], as_json: bool, **target: Any) -> None:
    """Edit."""
    from lora_inspect.editing.edit import unsetting

    _edit(path, unsetting(keys), _target(**target), as_json)


@click.command(cls=Verb, help=_COPY, short_help=METADATA_VERBS["copy"])
@_writing_options
@click.option("--from", "source", required=True, type=FilePath(), metavar="FILE", help="File to copy from.")
@click.option("--include", multiple=True, metavar="GLOB", help="Copy only matching keys. Repeatable.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Leave out matching keys. Repeatable.")
@_meaning_option
def copy(
    path: str, source: str, include: tuple[str, ...], exclude: tuple[str, ...], as_json: bool, **target: Any
) -> None:
    """Read the other file and edit."""
    from lora_inspect.editing.edit import copying
    from lora_inspect.ops.metadata import show

    where = _target(**target)
    found = {key: value for one in show(source) for key, value in one.metadata.items()}
    _edit(path, copying(found, include, exclude, source), where, as_json)


@click.command(cls=Verb, help=_STRIP, short_help=METADATA_VERBS["strip"])
@_writing_options
@click.option("--all", "everything", is_flag=True, help="Remove these keys too, and report the change of meaning.")
def strip(path: str, everything: bool, as_json: bool, **target: Any) -> None:
    """Edit."""
    from lora_inspect.ops.metadata import strip as stripped

    where = _target(**target)
    with _bar(path) as bar:
        edited = stripped(path, everything, where, bar.advance)
    _tell(edited, where.dry_run, as_json)


COMMANDS = {"set": set_, "unset": unset, "copy": copy, "strip": strip}


def _target(**options: Any) -> "EditOutput":
    from lora_inspect.ops.metadata import EditOutput

    target = EditOutput(**options)
    if target.in_place and target.output is not None:
        raise click.UsageError("--in-place changes PATH itself; leave it or -o out.")
    return target


def _pairs(pairs: Iterable[str]) -> dict[str, str]:
    """Return the values by key; click.UsageError for an invalid pair or a repeated key."""
    from lora_inspect.editing.edit import parse_pair

    found: dict[str, str] = {}
    for text in pairs:
        try:
            key, value = parse_pair(text)
        except LoraInspectError:
            raise
        except ValueError as error:
            raise click.UsageError(f"{error}.") from None
        if key in found:
            raise click.UsageError(f"{key} is given twice.")
        found[key] = value
    return found


def _edit(path: str, change: "Edit", where: "EditOutput", as_json: bool) -> None:
    from lora_inspect.ops.metadata import edit

    with _bar(path) as bar:
        edited = edit(path, change, where, bar.advance)
    _tell(edited, where.dry_run, as_json)


def _bar(path: str) -> AbstractContextManager[BarBelow]:
    from lora_inspect.files.discovery import stored_bytes

    return bar_below("Writing", stored_bytes(path), percent)


def _tell(edited: "Edited", dry_run: bool, as_json: bool) -> None:
    """Print the changes, a line each or as a record, and notes next to them."""
    if not dry_run:
        set_complete_outputs([edited.output])
    for sentence in edited.notes:
        terminal.note(sentence)
    if edited.meaning:
        would = "would change" if dry_run else "changes"
        terminal.note(f"{edited.path}: the edit {would} how the file is read: {listed(edited.meaning)}.")
    if as_json:
        from lora_inspect.ops.metadata import as_json as record

        terminal.json_text(record(edited))
        return
    done = "nothing changes" if not edited.changes else _counted(edited.changes)
    terminal.line(f"{edited.output}: {done}{', not written (--dry-run)' if dry_run else ''}")
    if edited.changes:
        terminal.columns_of([_row(one) for one in edited.changes])
    if edited.kept:
        terminal.line(f"kept, as they decide how the file is read: {listed(edited.kept)}")


def _counted(changes: "Iterable[MetadataChange]") -> str:
    counts = {"set": 0, "changed": 0, "removed": 0}
    for one in changes:
        counts[_kind(one)] += 1
    return listed([f"{count} {kind}" for kind, count in counts.items() if count])


def _kind(one: "MetadataChange") -> str:
    return "set" if one.before is None else ("removed" if one.after is None else "changed")


def _row(one: "MetadataChange") -> tuple[str, str, str]:
    value = one.before if one.after is None else one.after
    return _kind(one), one.key, shortened(value or '""', _VALUE)
