"""`lora-inspect merge`."""

from functools import partial
from typing import TYPE_CHECKING, Any

import click

from lora_inspect.cli import terminal
from lora_inspect.cli.complete_outputs import set_complete_outputs
from lora_inspect.cli.verb import VERBS, FilePath, Verb, declared_options, json_option, writing_options
from lora_inspect.merging.options import MergeRequest, ProcessShare, contradiction, merge_options

if TYPE_CHECKING:
    from lora_inspect.ops.merge import MergePlan, MergeResult

# No docstring: python -OO leaves those out.
_HELP = """\
Fold each ADAPTER, with its own multiplier (default 1), into BASE and write the result.

BASE is a file, a sharded set or a folder; the output has the same form. Settings follow the colon of an ADAPTER. A
number is the multiplier; 0 changes nothing. COMPONENT=number, blocks.0-9=number and GLOB=number are multipliers of a
part of its modules. Facts that the file does not state are alpha=N, rslora=yes|no, architecture=NAME and
expert-packing=rank_major|grouped_by_expert. With residual=yes, BASE is the residual that PiSSA or another
initialisation left of the original model; with residual=no it is the original model.

`merge` folds adapters in the given order. The order matters only if DoRA or OFT meets another change of the same
weight; the summary then reports it.

\b
Example: lora-inspect merge base.safetensors style.safetensors:0.8 \\
  face.safetensors -o merged.safetensors
"""


# How much is printed.
_QUIET, _USUAL, _VERBOSE = range(3)


def _share(context: click.Context, parameter: click.Parameter, value: str | None) -> ProcessShare | None:
    """Return the share of the shards for I/N, one of 1/N to N/N."""
    try:
        return None if value is None else ProcessShare.parse(value)
    except ValueError as error:
        raise click.BadParameter(f"{error}.") from None


@click.command(cls=Verb, help=_HELP, short_help=VERBS["merge"])
@click.argument("base", type=FilePath())
@click.argument("adapters", nargs=-1, required=True, type=FilePath(), metavar="ADAPTER[:SETTING,...]...")
@writing_options(dry_run=True)
@declared_options(MergeRequest, but=("hash_base",))
@click.option(
    "--shard",
    "share",
    callback=_share,
    metavar="I/N",
    help="Make only part I of N of a sharded base, in OUT.parts; the job that makes the last part writes OUT.",
)
@click.option(
    "--finish",
    "is_finish",
    is_flag=True,
    help="Assemble OUT from OUT.parts; give the other options exactly as in the shard jobs.",
)
@declared_options(MergeRequest, names=("hash_base",))
@click.option(
    "--dry-run", is_flag=True, is_eager=True, help="Print the planned merge, with or without -o; write nothing."
)
@click.option(
    "-v", "--verbose", is_flag=True, help="Also print the rules that applied, and the numbers of copied tensors."
)
@click.option("-q", "--quiet", is_flag=True, help="Print only errors.")
@json_option()
def merge(
    base: str,
    adapters: tuple[str, ...],
    output: str | None,
    force: bool,
    share: ProcessShare | None,
    is_finish: bool,
    dry_run: bool,
    verbose: bool,
    quiet: bool,
    as_json: bool,
    **asked: Any,
) -> None:
    """Plan, merge and print."""
    from lora_inspect.cli.progress_bar import in_bytes, progress_bar
    from lora_inspect.ops.merge import check_merge_output, merge_bytes, merge_output, plan_merge, planned_record
    from lora_inspect.ops.merge import merge as merge_files
    from lora_inspect.reading.model.settings import parse_arguments
    from lora_inspect.torchrun import launched

    request = MergeRequest(**asked)
    if wrong := contradiction(request):
        raise click.UsageError(wrong)
    if (share or is_finish) and launched():
        raise click.UsageError("torchrun deals the shards and finishes by itself; leave out --shard and --finish.")
    if share and is_finish:
        raise click.UsageError("--shard makes shards and --finish makes the output of them; give only one.")

    if verbose and quiet:
        raise click.UsageError("-v prints more and -q nothing; give only one.")
    verbosity = _QUIET if quiet else _VERBOSE if verbose else _USUAL

    def planned() -> "MergePlan":
        return plan_merge(base, parse_arguments(adapters), merge_options(request))

    rank = launched()
    if rank and not dry_run:
        from lora_inspect.cli import merge_jobs

        assert output is not None  # the option asks for it where there is no dry run
        merge_jobs.run_processes(
            rank,
            planned,
            output,
            force,
            lambda plan, made: _print(made.to_dict(), made, plan, as_json, verbosity),
            as_json,
        )
        return
    plan = planned()
    for note in () if quiet else plan.notes:
        terminal.note(note)
    if share or is_finish:
        from lora_inspect.cli import merge_jobs

        tell = partial(_print, plan=plan, as_json=as_json, verbosity=verbosity)
        merge_jobs.run_shard(plan, output, share, force, dry_run, as_json, tell)
        return
    if dry_run:
        if output is not None:
            output = merge_output(plan, output)
            check_merge_output(plan, output, force)
        _print(planned_record(plan, output), None, plan, as_json, verbosity)
        return
    assert output is not None
    with progress_bar("Merging", merge_bytes(plan, output), in_bytes) as progress:
        result = merge_files(plan, output, force, progress)
    set_complete_outputs([result.output])
    for note in () if quiet else result.notes[len(plan.notes) :]:
        terminal.note(note)
    _print(result.to_dict(), result, plan, as_json, verbosity)


def _print(
    record: dict[str, Any], result: "MergeResult | None", plan: "MergePlan", as_json: bool, verbosity: int
) -> None:
    """Print the output, the kept share of the adapters, and the time; details on request."""
    if as_json:
        terminal.json_text(record)
        return
    if verbosity == _QUIET:
        return
    from lora_inspect.merging.retention import in_summary
    from lora_inspect.sentences import shortened

    if record.get("dry_run"):
        for name, modules in record["targets"].items():
            terminal.line(f"{shortened(name)} <- {', '.join(map(shortened, modules))}")
    verb = "would merge" if record.get("dry_run") else "merged"
    multipliers = ", ".join(
        f"{path} at {_multiplier(multiplier)}" for path, multiplier in record["multipliers"].items()
    )
    into = "" if record["output"] is None else f" into {record['output']}"
    terminal.line(f"{verb} {record['modules_merged']} modules ({multipliers}){into}")
    if verbosity == _VERBOSE or record.get("dry_run"):
        _print_details(record, plan)
    _print_left_out(record, plan)
    if result:
        terminal.line(in_summary(result.kept, result.seed))
    if "seconds" in record:
        terminal.line(f"{record['bytes']:,} bytes in {record['seconds']:.1f} s")


def _print_details(record: dict[str, Any], plan: "MergePlan") -> None:
    """Print the numbers of copied and decoded tensors, and the rules by which weights were changed."""
    from lora_inspect.matching.orientation import in_words

    copied = "would be copied" if record.get("dry_run") else "copied"
    terminal.line(f"{record['tensors_copied']} tensors {copied} unchanged")
    decoded = "would be decoded" if record.get("dry_run") else "decoded"
    for title, count in plan.storage.titles(record["decoded"]).items():
        terminal.line(f"{count} {title} tensors {decoded}")
    recoded = "would stay" if record.get("dry_run") else "stayed"
    for title, count in plan.storage.titles(record["recoded"]).items():
        terminal.line(f"{count} {title} tensors changed and {recoded} in that format")
    if "dora_multiplier" in record:
        terminal.line(f"DoRA multiplier rule: {record['dora_multiplier']}")
    if ordered := record["order_matters"]:
        terminal.line(
            f"order: it matters for {len(ordered)} weights; merge applies the adapters in the order of the "
            "command line, and added changes of each before its DoRA and rotations"
        )
    if words := in_words(plan.orientations):
        terminal.line(f"orientation: {words}")
    if record["files_copied"]:
        terminal.line(f"{len(record['files_copied'])} other files {copied}")


def _print_left_out(record: dict[str, Any], plan: "MergePlan") -> None:
    """Print all that the output lacks."""
    from lora_inspect.matching.unmatched import in_components
    from lora_inspect.sentences import shortened, some

    if record["dropped"]:
        terminal.aside(f"left out, as they only describe codes: {some(record['dropped'], 5)}")
    if plan.left_out:
        terminal.aside(f"left out by --only: {in_components(plan.left_out)}")
    for path, keys in record["excluded"].items():
        terminal.aside(f"left out by {plan.options.choice.says}: {len(keys)} modules of {path} ({some(keys, 3)})")
    if record["unmatched"]:
        terminal.aside(f"{len(record['unmatched'])} keys left out: {some(record['unmatched'], 5)}")
    if record["left_behind"]:
        terminal.aside(f"left behind in the base's folder: {', '.join(map(shortened, record['left_behind']))}")


def _multiplier(multiplier: float | dict[str, float]) -> str:
    if isinstance(multiplier, dict):
        return " and ".join(f"{name}={number:g}" for name, number in multiplier.items())
    return f"{multiplier:g}"
