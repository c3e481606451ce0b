"""Writes docs/cli.md from the help of every command: `python docs/write_cli.py`."""

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import wrap

import click

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lora_inspect.cli.group import cli  # noqa: E402
from lora_inspect.cli.verb import METAVARS, ending, grouped_options  # noqa: E402

PAGE = ROOT / "docs" / "cli.md"
PROGRAM = "lora-inspect"
HEAD = """# Every command

`docs/write_cli.py` writes this page from the output of `lora-inspect COMMAND --help`. [The index](index.md) names the
page that explains each command. `python -m lora_inspect` is the same program.

Results go to the standard output; warnings, progress and errors go to the standard error. `--json` prints the result
for scripts. A command never overwrites an input, and overwrites another file only with `--force`. An output appears
complete or not at all.

## Exit status

- 0: done.
- 1: refused. One sentence names the file, the problem and the fix; the command writes nothing.
  1 is also the answer no. `verify` gives it if the model does not carry the adapters, `compat --for` if the file would
  be wrong in that program. `compare --max-difference` gives it if adapters are farther from each other, `check` if it
  finds problems.
  A command on a folder continues after a refused file, and the status is 1 then; `compare` lists such files and ends
  with 0.
- 2: wrong usage, as an unknown command or option, or an invalid value.
- 3: it could not work, and may work once the cause is fixed. A file is missing or unreadable, the disk or the network
  fails, memory or a library is missing. One sentence names the cause; the command writes nothing. With several files,
  one such file is enough.
  If OUT is written and the standard output then refuses the result, as on a full disk, the sentence names OUT and says
  that it is complete. If the reader of a pipe leaves, the status is 1 without a sentence, and OUT is complete as well.
- 130: interrupted by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP; nothing half-written is left.

## JSON

With `--json` each verb prints one JSON text to the standard output. It is an object, or a list of objects for several
files, such as those of a folder. Each begins with `schema`, as "lora-inspect/info/1". The number changes if a field is
removed or changes its meaning, and stays if a field is added. [docs/schemas](schemas) has a JSON Schema of each.

A failure prints {`path`, `error`, `code`} instead. `path` is null if no single file is at fault, and `error` is the
sentence on the standard error. [The Python API](api.md) lists the values of `code`. Wrong usage prints no JSON.

## Settings after a path

Every adapter may carry settings: `PATH[:SETTING,SETTING...]`. The colon counts only if settings follow it and no file
has the whole text as its name.

- A number is the multiplier, 1 by default.
- `COMPONENT=number` and `GLOB=number` are multipliers of a component (`text_encoder=0`), of blocks
  (`double_blocks.0-9=0.3`, `IN04=0.5`), and of the modules that match a glob (`*attn*=0.5`).
- `alpha=N` and `rslora=yes|no` supply facts that the file does not state. A setting that contradicts the file is an
  error.
- `expert-packing=rank_major|grouped_by_expert` does the same for [adapters of all experts](merging_targets.md#experts).
- `architecture=NAME` names the [model family](architectures.md) of the file, if its names match several.
- `residual=yes|no` states whether the base is the residual that [PiSSA or another
  start](merging_formulas.md#residual-bases) left of the original model.

[This page](reading.md#settings-for-missing-facts) explains the settings, and lists those of each command.

## Completion

The shell completes files, commands and options after one of these lines; put it into the shell's startup file:

```sh
eval "$(_LORA_INSPECT_COMPLETE=bash_source lora-inspect)"    # bash
eval "$(_LORA_INSPECT_COMPLETE=zsh_source lora-inspect)"     # zsh
_LORA_INSPECT_COMPLETE=fish_source lora-inspect | source     # fish
```
"""
VALUES = """
## Words for values

The usage lines and options below have these words in the place of values.

| word | value |
|---|---|
"""


def commands(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    """A command, and those below it, by the words that call them."""
    yield name, command
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=name)
        for verb in command.list_commands(context):
            below = command.get_command(context, verb)
            if below is not None and not below.hidden:
                yield from commands(f"{name} {verb}", below)


def section(name: str, command: click.Command) -> Iterator[str]:
    """The lines of one command: how it is called, what its help says, its examples, its options."""
    context = click.Context(command, info_name=name)
    depth = "#" * min(name.count(" ") + 1, 3)
    yield from ("", f"{depth if name != PROGRAM else '##'} {name}", "", "```text")
    yield from (f"{name} {' '.join(command.collect_usage_pieces(context))}", "```")
    examples: list[str] = []
    says = re.sub(r" \\\n *", " ", inspect.cleandoc(command.help or "").replace("\f", ""))
    for paragraph in says.split("\n\n"):
        lines = paragraph.strip("\n").splitlines()
        if lines and lines[0].strip() == "\b":
            bare = [line.removeprefix("Example:").removeprefix("Examples:").strip() for line in lines[1:]]
            examples += [line for line in bare if line.startswith(PROGRAM)]
            lines = [line for line, own in zip(lines[1:], bare, strict=True) if own and not own.startswith(PROGRAM)]
        elif all(line.strip().startswith(("Example:", PROGRAM)) for line in lines):
            examples += [line.replace("Example:", "").strip() for line in lines]
            lines = []
        if lines:
            yield from ("", *wrap(" ".join(lines), 120, break_long_words=False, break_on_hyphens=False))
    if examples:
        yield from ("", "```sh", *examples, "```")
    yield from _options(command, context)


def _options(command: click.Command, context: click.Context) -> Iterator[str]:
    is_first = True
    for title, records in grouped_options(command, context).items():
        rows = [f"| `{_cell(names)}` | {_cell(says)} |" for names, says in records if "--help" not in names]
        if rows and is_first:
            yield from ("", "| option | |", "|---|---|")
        if rows:
            is_first = False
            yield from (f"| **{title}** | |", *rows)
    statuses, page = ending(context)
    told = " ".join(f"{status}: {says[0].lower()}{says[1:]}" for status, says in statuses)
    target = page.removeprefix("docs/")
    more = "" if target == PAGE.name else f" More: [{page}]({target})."
    yield from ("", *wrap(f"Exit status {told}{more}", 120, break_long_words=False, break_on_hyphens=False))


def _cell(text: str) -> str:
    """Text in a table, where a stroke would end the cell."""
    return " ".join(text.split()).replace("|", "\\|")


def page() -> str:
    """The page as it should be."""
    words = "".join(f"| `{word}` | {meaning} |\n" for word, meaning in METAVARS.items())
    return (
        HEAD
        + VALUES
        + words
        + "".join(f"{line}\n" for name, command in commands(PROGRAM, cli) for line in section(name, command))
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
