"""`lora-inspect convert`: one adapter or each adapter in a folder, and the printed account.

In a folder, a failed adapter does not stop the others.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from lora_inspect.cli import terminal
from lora_inspect.cli.complete_outputs import set_complete_outputs
from lora_inspect.cli.progress_bar import progress_bar
from lora_inspect.cli.terminal import CommandFailure
from lora_inspect.cli.verb import (
    VERBS,
    FilePath,
    Verb,
    declared_options,
    json_option,
    parse_without_multiplier,
    writing_options,
)
from lora_inspect.converting.options import ConvertOptions, ConvertRequest, contradiction, convert_options
from lora_inspect.option import ReadingRequest, declared
from lora_inspect.programs import PROGRAMS
from lora_inspect.sentences import listed, shortened, some

if TYPE_CHECKING:
    from lora_inspect.ops.convert import ConvertResult
    from lora_inspect.ops.folder import Outcome
    from lora_inspect.reading.adapter import Adapter

# No docstring: python -OO leaves those out.
_HELP = """\
Rewrite ADAPTER so that alpha/rank is its scale: the one rule that every loader follows.

RS-LoRA converts exactly. DoRA needs one of --keep-dora, --base or --drop-magnitude.

The output keeps the names of ADAPTER, unless --layout or the naming scheme of --to chooses others, or the program of
--to does not read them. PEFT's names need a folder, because a config states their scale. If ADAPTER is a folder of
adapters, `convert` writes each into the folder OUT under its name.

\b
Example: lora-inspect convert rslora.safetensors -o standard.safetensors
"""


@click.command(cls=Verb, help=_HELP, short_help=VERBS["convert"])
@click.argument("adapter", type=FilePath(), metavar="ADAPTER[:SETTING,...]")
@writing_options()
@click.option(
    "--to-standard", is_flag=True, help="Write scale alpha/rank, no flags and corrected metadata (the default)."
)
@declared_options(ConvertRequest)
@click.option(
    "--all-files",
    is_flag=True,
    help="Of a folder, also convert files that the program of --to loads with the same meaning.",
)
@json_option()
def convert(
    adapter: str, output: str, force: bool, to_standard: bool, all_files: bool, as_json: bool, **asked: Any
) -> None:
    """Convert and print."""
    from lora_inspect.files.discovery import is_collection
    from lora_inspect.ops.convert import convert_planned, plan_conversion

    request = ConvertRequest(**asked)
    adapter, own = parse_without_multiplier(adapter, "convert")
    options = convert_options(request, own, adapter)
    if wrong := contradiction(request):
        raise click.UsageError(wrong)
    if is_collection(adapter):
        with_right = all_files or not _changes_names_alone(request)
        convert_folder(adapter, output, options, force, with_right, as_json)
        return
    if all_files:
        raise click.UsageError("--all-files is for a folder of adapters.")
    plan = plan_conversion(adapter, output, options)
    with progress_bar("Converting", len(plan.destinations)) as progress:
        result = convert_planned(plan, force, progress)
    set_complete_outputs([result.output])
    for note in result.notes:
        terminal.note(note)
    if as_json:
        terminal.json_text(result.to_dict())
        return
    tell(result, with_errors=options.base is not None or options.algorithm is not None)
    if options.program and _is_right_in(options.program, plan.whole):
        terminal.line(f"{PROGRAMS[options.program].title} loads {adapter} itself with the same meaning")


# Options that say how files are read, and for which program the output is.
_OF_NAMES = ("to", "architecture", "base", "model_config", "transposed", "force")


def _changes_names_alone(request: ConvertRequest) -> bool:
    """Return True if no option but `to` asks for another output."""
    reading = declared(ReadingRequest)
    return all(
        getattr(request, name) == one.default
        for name, one in declared(ConvertRequest).items()
        if name not in _OF_NAMES and name not in reading
    )


def _is_right_in(program: str, adapter: "Adapter") -> bool:
    from lora_inspect.programs.verdict import loads_as_is
    from lora_inspect.reading.identify import adapter_candidates, with_paths

    families = adapter_candidates(adapter)
    return loads_as_is(with_paths(adapter, families), families, PROGRAMS[program])


def tell(result: "ConvertResult", with_errors: bool) -> None:
    """Print the whole result; `with_errors` includes the error of each module."""
    from lora_inspect.matching.orientation import in_words

    terminal.line(headline(result))
    terminal.line(f"{_size(result.source)} to {_size(result.target)}")
    if with_errors:
        for module, error in result.relative_errors.items():
            terminal.line(f"  {shortened(module)}: relative error {error:.3g}")
    if layout := result.target["layout"]:
        terminal.line(f"layout: {layout}, {result.target['scheme']} names")
    terminal.line(loss(result))
    if result.verified:
        terminal.line(
            f"verified: the re-read changes of all {result.verified.modules} modules differ from the input's "
            f"by at most {result.verified.max_relative_error:.1g}"
        )
    if words := in_words(result.orientations):
        terminal.line(f"orientation: {words}")
    for remark in result.remarks:
        terminal.line(remark)
    if result.no_longer_right:
        terminal.line(f"no longer right in {listed(result.titles_no_longer_right, 'and')}, where the input is right")
    if result.dropped:
        terminal.line(f"left out: {some(result.dropped, 5)}")
    if result.passed_through:
        terminal.aside(f"copied unchanged: {some(result.passed_through, 5)}")


def headline(result: "ConvertResult") -> str:
    """Return the output, its modules, and the algorithms and names before and after."""
    was = _kinds(result.was, "RS-LoRA" if result.source["rslora"] else "LoRA")
    was += " with DoRA" if result.source["dora"] else ""
    becomes = _kinds(result.becomes, "LoRA" if result.target["dora"] else "plain LoRA")
    becomes += " with its magnitudes" if result.target["dora"] else ""
    kinds = was if was == becomes else f"{was} to {becomes}"
    before, after = (f"{side['scheme']} names" for side in (result.source, result.target))
    names = f" of {before}" if before == after else f", {before} to {after}"
    return f"{result.output}: {result.modules} modules{names}, {kinds}"


def _kinds(titles: Sequence[str], lora: str) -> str:
    """Return the algorithms as text, with `lora` as the name of LoRA."""
    return listed([lora if title == "LoRA" else title for title in titles], "and")


def _size(described: dict[str, Any]) -> str:
    ranks = described["ranks"]
    shown = "/".join(list(ranks)[:8]) + ("/…" if len(ranks) > 8 else "")
    return f"rank {shown}, {described['bytes']:,} bytes" if ranks else f"{described['bytes']:,} bytes"


def loss(result: "ConvertResult") -> str:
    """Describe the loss of the modules' changes."""
    known = [error for error in result.relative_errors.values() if error is not None]
    if len(known) < len(result.relative_errors):
        lost = len(result.relative_errors) - len(known)
        if result.biased:
            return f"not exact: the biases of {result.biased} modules are left out"
        return f"not exact: {lost} magnitudes are lost; each row now has the length of W + delta"
    worst = max(known)
    if not result.exact:
        return f"not exact: relative error at most {worst:.3g}"
    return "exact" if worst == 0 else f"exact except for the rounding of float32: relative error at most {worst:.1g}"


def convert_folder(
    folder: str, output: str, options: ConvertOptions, force: bool, with_right: bool, as_json: bool
) -> None:
    """Convert every adapter below `folder` to the same place below `output`, and print all results.

    It exits if one failed, or if none can be read. `with_right` includes the adapters that the program of the output
    already loads with the same meaning. Raises LoraInspectError as `make_in_folder` does.
    """
    from lora_inspect.converting.plan import ending_of_output
    from lora_inspect.ops.convert import convert_to_standard
    from lora_inspect.ops.folder import find_in_folder, find_unread_refusal, make_in_folder

    def options_for(adapter: "Adapter") -> ConvertOptions:
        present = {module.name.component for module in adapter.modules.values()}
        own = tuple(component for component in options.only if component in present)
        return replace(options, only=own or options.only)

    def convert_one(adapter: "Adapter", target: str) -> "ConvertResult":
        return convert_to_standard(adapter.checkpoint.path, target, options_for(adapter), force)

    def ending(adapter: "Adapter") -> str:
        return ending_of_output(adapter, options_for(adapter))

    def is_right(adapter: "Adapter") -> bool:
        return not with_right and options.program is not None and _is_right_in(options.program, adapter)

    options = replace(options, settings=options.settings._replace(of_several=True))
    found = find_in_folder(folder, output)
    with progress_bar("Converting", len(found)) as progress:
        outcomes = make_in_folder(found, folder, output, options.settings, ending, convert_one, progress, is_right)
    set_complete_outputs(one.target for one in outcomes if one.result)
    failures = terminal.failures_of(outcomes)
    if as_json:
        terminal.json_text([_record(one, failures.get(one.path)) for one in outcomes])
    else:
        _tell(outcomes, options.program)
    unread = {one.path for one in found if one.is_unread}
    if refusal := find_unread_refusal(folder, [one.path for one in found], unread):
        failures[folder] = terminal.failure(folder, refusal)
    terminal.exit_with(failures)


def _losses(result: "ConvertResult") -> str:
    titles = result.titles_no_longer_right
    return f"no longer right in {some(titles, 3)}" if titles else ""


def _record(outcome: "Outcome[ConvertResult]", failed: CommandFailure | None) -> dict[str, Any]:
    if outcome.result:
        record = outcome.result.to_dict()
        return {"schema": record["schema"], "path": outcome.path, **record}
    if failed:
        return failed.record()
    skipped = "it loads with the same meaning" if outcome.is_right else outcome.skipped
    return {"schema": "lora-inspect/convert-skipped/1", "path": outcome.path, "skipped": skipped}


def _tell(outcomes: "Sequence[Outcome[ConvertResult]]", program: str | None) -> None:
    """Print a line per converted adapter, the counts of each kind, and the skipped files."""
    done = [outcome.result for outcome in outcomes if outcome.result]
    for result in done:
        terminal.row("; ".join(filter(None, (headline(result), loss(result), _losses(result)))))
    terminal.tell_counts(outcomes, "converted", f"already load in {PROGRAMS[program].title}" if program else "")
    for result in done:
        for note in result.notes:
            terminal.note(note)
    terminal.tell_skipped(outcomes)
