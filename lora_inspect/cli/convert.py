"""`lora-inspect convert`."""

from typing import TYPE_CHECKING

import click

from lora_inspect.cli import terminal
from lora_inspect.cli.file_paths import FilePath
from lora_inspect.cli.options import (
    architecture_option,
    finite,
    reading_options,
    settings,
    transposed_option,
    writing_options,
)
from lora_inspect.cli.path_settings import parse_without_strength
from lora_inspect.cli.progress_bar import progress_bar
from lora_inspect.cli.summaries import VERBS
from lora_inspect.cli.verb import Verb
from lora_inspect.converting.options import ALGORITHMS, EXPERT_LAYOUTS, LAYOUTS
from lora_inspect.files.discovery import is_collection
from lora_inspect.programs import CONSUMERS
from lora_inspect.schemes import written

if TYPE_CHECKING:
    from lora_inspect.matching.orientation import Answers

# No docstring: python -OO leaves those out.
_HELP = """\
Writes ADAPTER anew so that alpha/rank is its scale: the one rule that every loader follows.

RS-LoRA is exact. DoRA needs one of --keep-dora, --base or --drop-magnitude.

The output has the names of ADAPTER, in another layout with --layout; PEFT's names need a folder, for the config that
says their scale. Of a folder of adapters each file is converted into the folder OUT, under its name.

\b
Example: lora-inspect convert rslora.safetensors -o standard.safetensors
"""


@click.command(cls=Verb, help=_HELP, short_help=VERBS["convert"])
@click.argument("adapter", type=FilePath(), metavar="ADAPTER[:SETTING,...]")
@writing_options()
@click.option(
    "--to-standard", is_flag=True, help="Scale alpha/rank in every module, no flags, corrected metadata (the default)."
)
@click.option(
    "--keep-dora", is_flag=True, help="DoRA: keep the magnitude, as the readers of the file's names spell it."
)
@click.option(
    "--base",
    type=FilePath(),
    metavar="BASE",
    help="DoRA: approximate the true change of BASE's weights by plain LoRA; without --rank and --max-error write the "
    "magnitudes that make it in programs that divide by BASE's norms (--to comfyui).",
)
@click.option("--rank", type=click.IntRange(min=1), help="With --base or --algorithm: the rank of the approximation.")
@click.option(
    "--max-error",
    type=click.FloatRange(0, 1, max_open=True),
    callback=finite,
    help="With --base or --algorithm: the least rank whose relative error is at most this, per module.",
)
@click.option("--lossy", is_flag=True, help="Accept modules that lose more than 5% of their change.")
@click.option(
    "--allow-growth", is_flag=True, help="Accept an output above 64 MB and above 16 times the input's tensors."
)
@click.option(
    "--drop-magnitude", is_flag=True, help="DoRA: leave the magnitude out; each row keeps the length of W + delta."
)
@click.option(
    "--drop-unclaimed", is_flag=True, help="Leave out tensors that belong to no known algorithm, and list them."
)
@click.option("--drop-biases", is_flag=True, help="Leave out what changes biases; what that loses is not measured.")
@click.option(
    "--layout",
    type=click.Choice((*LAYOUTS, *EXPERT_LAYOUTS)),
    help="Arrange and name the modules as the model's original repository or diffusers has them, only fuse or split "
    "layers as Phi-3 does, or put the experts of a mixture in one module or take them apart (with --base).",
)
@click.option(
    "--to",
    "target",
    type=click.Choice(sorted({*written(), *CONSUMERS})),
    metavar="NAME",
    help="Spell everything as a program, or the programs of a naming scheme, load it, in the layout that they have of "
    f"the model. Programs: {', '.join(sorted(CONSUMERS))}; schemes: {', '.join(sorted({*written()} - {*CONSUMERS}))}.",
)
@click.option(
    "--model-config",
    type=FilePath(),
    metavar="CONFIG",
    help="GGUF: the model's config.json, or its folder, for what llama.cpp calls it and for its number of heads.",
)
@click.option(
    "--only",
    multiple=True,
    metavar="COMPONENT",
    help="Write this component of the adapter alone: model, text_encoder, …; may be repeated.",
)
@click.option(
    "--no-verify", is_flag=True, help="Do not read the output anew and compare every module with that of ADAPTER."
)
@architecture_option("the adapter is")
@click.option(
    "--algorithm",
    type=click.Choice(ALGORITHMS),
    help="lora: make plain LoRA of LoHa, LoKr, OFT and the like, exact where it can be, else of a --rank or a "
    "--max-error. full: write the difference of every weight of --base, exact for any algorithm and large.",
)
@transposed_option("--base stores")
@reading_options
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def convert(
    adapter: str,
    output: str,
    force: bool,
    to_standard: bool,
    keep_dora: bool,
    base: str | None,
    rank: int | None,
    max_error: float | None,
    lossy: bool,
    drop_magnitude: bool,
    drop_biases: bool,
    drop_unclaimed: bool,
    allow_growth: bool,
    layout: str | None,
    target: str | None,
    model_config: str | None,
    only: tuple[str, ...],
    no_verify: bool,
    architecture: str | None,
    algorithm: str | None,
    transposed: "Answers",
    rslora: str | None,
    alpha: float | None,
    allow_partial_dora: bool,
    expert_packing: str | None,
    as_json: bool,
) -> None:
    """Converts and prints."""
    from lora_inspect.cli.conversion_told import tell
    from lora_inspect.converting.options import contradiction
    from lora_inspect.ops.convert import ConvertOptions, convert_planned, plan_conversion

    adapter, own = parse_without_strength(adapter, "convert")
    options = ConvertOptions(
        keep_dora=keep_dora,
        drop_magnitude=drop_magnitude,
        drop_biases=drop_biases,
        drop_unclaimed=drop_unclaimed,
        base=base,
        rank=rank,
        max_error=max_error,
        lossy=lossy,
        allow_growth=allow_growth,
        transposed=transposed,
        layout=layout,
        scheme=None if target in CONSUMERS else target,
        consumer=target if target in CONSUMERS else None,
        model_config=model_config,
        only=only,
        verify=not no_verify,
        algorithm=algorithm,
        settings=own.joined(settings(rslora, alpha, allow_partial_dora, expert_packing, architecture), adapter),
    )
    if wrong := contradiction(options, architecture):
        raise click.UsageError(wrong)
    if is_collection(adapter):
        from lora_inspect.cli.convert_folder import convert_folder

        convert_folder(adapter, output, options, force, as_json)
        return
    plan = plan_conversion(adapter, output, options)
    with progress_bar("Converting", len(plan.destinations)) as progress:
        result = convert_planned(plan, force, progress)
    for note in result.notes:
        terminal.note(note)
    if as_json:
        terminal.json_text(result.to_dict())
        return
    tell(result, with_errors=base is not None or algorithm is not None)
