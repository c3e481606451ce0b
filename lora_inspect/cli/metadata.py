"""`lora-inspect metadata`: the group of its verbs, and the ones that only read."""

import shutil
from typing import TYPE_CHECKING

import click

from lora_inspect.cli import terminal
from lora_inspect.cli.progress_bar import bar_below, percent
from lora_inspect.cli.verb import METADATA_VERBS, VERBS, FilePath, Verb, json_option

if TYPE_CHECKING:
    from lora_inspect.ops.metadata import MetadataReport

# No docstring: python -OO leaves those out.
_HELP = """\
Show and edit the metadata of a file: title, trigger words, training facts, hashes. The bytes of the tensors stay
the same.

A change goes into a new file, which replaces the old one when it is complete. With -o OUT the old file stays;
--in-place rewrites only its header. Changes that alter how the file is read are refused.

\b
lora-inspect metadata show adapter.safetensors
lora-inspect metadata set adapter.safetensors --title "Ink" \\
  --trigger-words "ink drawing"
lora-inspect metadata strip adapter.safetensors -o clean.safetensors
"""

_SHOW = """\
List the metadata of PATH, with JSON expanded and long values shortened.

`metadata get` and --json print values complete; --json prints a list for a set of files.

\b
Example: lora-inspect metadata show adapter.safetensors --hashes
"""

_GET = """\
Print the value of KEY exactly, without a line break at its end.

KEY trigger-words prints the trigger words from any key, or from a file next to PATH.

\b
Example: lora-inspect metadata get trained.safetensors ss_tag_frequency
Example: lora-inspect metadata get trained.safetensors trigger-words
"""


# The name under which `get` prints the trigger words, whatever key states them.
_TRIGGER_WORDS = "trigger-words"


class _Verbs(Verb, click.Group):
    """The group that lists the verbs, and imports a writing verb only when needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs in the order of their summaries."""
        return list(METADATA_VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Return a verb that reads, or import one that writes."""
        if name in self.commands or name not in METADATA_VERBS:
            return self.commands.get(name)
        from lora_inspect.cli import metadata_edit

        return metadata_edit.COMMANDS[name]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs as click does."""
        with formatter.section("Commands"):
            formatter.write_dl(list(METADATA_VERBS.items()))


@click.group(help=_HELP, short_help=VERBS["metadata"], cls=_Verbs)
def metadata() -> None:
    """Group the verbs."""


@metadata.command(cls=Verb, help=_SHOW, short_help=METADATA_VERBS["show"])
@click.argument("path", type=FilePath())
@click.option("--hashes", is_flag=True, help="Compute the hashes by which sites and programs identify the file.")
@json_option()
def show(path: str, hashes: bool, as_json: bool) -> None:
    """Read and print."""
    from lora_inspect.cli.metadata_output import metadata_lines
    from lora_inspect.files.discovery import stored_bytes
    from lora_inspect.ops.metadata import show as told

    with bar_below("Hashing", stored_bytes(path), percent) as bar:
        found = told(path, hashes, bar.advance)
    if as_json:
        records = [{"schema": "lora-inspect/metadata/1", **one._asdict()} for one in found]
        terminal.json_text(records if len(records) != 1 else records[0])
        return
    columns = shutil.get_terminal_size().columns
    for one in found:
        terminal.line(_headline(one))
        for text in metadata_lines(one.metadata, columns):
            terminal.line(text)
        if one.hashes:
            terminal.line("")
            terminal.facts(_with_stated(one))


@metadata.command(cls=Verb, help=_GET, short_help=METADATA_VERBS["get"])
@click.argument("path", type=FilePath())
@click.argument("key", metavar="KEY")
def get(path: str, key: str) -> None:
    """Read and print."""
    from lora_inspect.ops.metadata import get as value_of
    from lora_inspect.ops.metadata import trigger_words

    if key != _TRIGGER_WORDS:
        terminal.exact(value_of(path, key))
        return
    words, sidecar = trigger_words(path)
    if sidecar:
        terminal.note(f"{path}: the trigger words are from {sidecar} beside it.")
    terminal.exact(", ".join(words))


def _headline(one: "MetadataReport") -> str:
    count = len(one.metadata)
    entries = "no metadata" if not count else f"{count} {'entry' if count == 1 else 'entries'}"
    return f"{one.path}: {entries}" if not one.room else f"{one.path}: {entries}, room for {one.room:,} bytes more"


def _with_stated(one: "MetadataReport") -> list[tuple[str, str]]:
    """Return the hashes, each with the statement of the file on it."""
    return [(name, f"{value}{_stated(one.metadata.get(name), value)}") for name, value in one.hashes.items()]


def _stated(stated: str | None, value: str) -> str:
    if stated is None:
        return ""
    return "  as stated" if stated.lower() == value else f"  but the file states {stated or 'nothing'}"
