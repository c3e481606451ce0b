"""`lora-inspect info`: its options, and the choice between one file and several."""

from typing import TYPE_CHECKING, Any

import click

from lora_inspect.cli.info.one_file import FLAGS, Measure, info_of_one
from lora_inspect.cli.info.selection import (
    FolderOptions,
    architecture_option,
    base_options,
    folder_options,
    parse_argument,
)
from lora_inspect.cli.verb import VERBS, Decorated, FilePath, Verb, json_option

if TYPE_CHECKING:
    from lora_inspect.matching.orientation import Answers

# No docstring: python -OO leaves those out.
_HELP = """\
Describe each PATH: a file, a sharded set, a PEFT folder, or a folder of adapters (a line per file).

`info` reads only headers, alphas and flags; --norms and --spectrum read all numbers. Settings after a colon, alpha=N
and rslora=yes|no, supply facts that a file does not state. --json prints a list for several PATHs or a folder of files.

\b
Example: lora-inspect info adapter.safetensors --modules
Example: lora-inspect info loras/ --where model=wan --sort size
"""


# The flags that show more of a file, with their help.
_SHOWN = {
    "modules": "List every module with its rank, alpha and scale.",
    "tensors": "List every tensor with its type, shape, bytes and place in the file.",
    "metadata": "Show the file's metadata: JSON expanded, long values shortened.",
    "why": "Show all evidence for the reported facts.",
    "norms": "Read all numbers, and show the size of the change by part and block.",
    "spectrum": "Read all numbers, and show the singular values of the change by part and block.",
}


def _flags(command: Decorated) -> Decorated:
    """Add the flags, by the names that `info_of_one` has for them."""
    command = json_option("json")(command)
    for name, says in reversed(_SHOWN.items()):
        command = click.option(f"--{name}", name, is_flag=True, help=says)(command)
    return command


@click.command(cls=Verb, help=_HELP, short_help=VERBS["info"])
@click.argument("paths", nargs=-1, required=True, type=FilePath(), metavar="PATH[:SETTING,...]...")
@_flags
@base_options
@folder_options
@architecture_option
def info(
    paths: tuple[str, ...], architecture: str | None, base: str | None, transposed: "Answers", **given: Any
) -> None:
    """Read each path and print its description."""
    arguments = [parse_argument(path, architecture) for path in paths]
    asked = {name: given.pop(name) for name in FLAGS}
    options = FolderOptions(**given)
    if (base or transposed) and not (asked["norms"] or asked["spectrum"]):
        raise click.UsageError(f"{'--base' if base else '--transposed'} is about changes; add --norms or --spectrum.")
    if transposed and not base:
        raise click.UsageError("--transposed is about a base; name it with --base.")
    if options.fail_on and not options.program:
        raise click.UsageError("--fail-on is about a program; name it with --for.")
    if len(arguments) > 1 or arguments[0].is_collection or options.lists:
        from lora_inspect.cli.info.several_files import info_of_several

        _refuse_for_several(asked, options)
        info_of_several(arguments, asked["modules"], asked["json"], options)
    else:
        info_of_one(arguments[0], **asked, measure=Measure(base, transposed))


def _refuse_for_several(asked: dict[str, bool], options: FolderOptions) -> None:
    """Raise UsageError for flags that show a single file."""
    if asked["norms"] or asked["spectrum"]:
        raise click.UsageError(f"--{'norms' if asked['norms'] else 'spectrum'} measures a single file; name one.")
    of_several = ("json", "modules") if asked["json"] or options.jsonl else ("json",)
    if alone := next((name for name in FLAGS if asked[name] and name not in of_several), None):
        raise click.UsageError(f"--{alone} shows a single file; name one, or give --json.")
