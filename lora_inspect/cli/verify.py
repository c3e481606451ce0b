"""`lora-inspect verify`."""

import sys
from typing import TYPE_CHECKING

import click

from lora_inspect.cli import terminal
from lora_inspect.cli.options import (
    FilePath,
    architecture_option,
    choosing_options,
    dora_multiplier_option,
    reading_options,
    settings,
    transposed_option,
)
from lora_inspect.cli.progress_bar import in_bytes, progress_bar
from lora_inspect.cli.verb import VERBS, Verb

if TYPE_CHECKING:
    from lora_inspect.matching.orientation import Answers
    from lora_inspect.ops.verify import VerifyResult

# How many modules the table shows, how many columns a name has there, and what is too little for a row.
_ROWS, _NAME, _OFF = 10, 44, 0.01


# No docstring: python -OO leaves those out.
_HELP = """\
Says, module by module, how much of each ADAPTER is in MERGED, which was made of BASE by any program.

A share of 1 is the whole change at the ADAPTER's multiplier, 0 is nothing of it. What is missing, doubled, scaled,
or beside is named, and the exit status is 1 where anything is. Multipliers and other settings follow the colon of
an ADAPTER as they do for `merge`, and adapters stand in the order in which they were merged.

\b
Example: lora-inspect verify merged.safetensors base.safetensors style.safetensors:0.8 face.safetensors
"""


@click.command(cls=Verb, help=_HELP, short_help=VERBS["verify"])
@click.argument("merged", type=FilePath())
@click.argument("base", type=FilePath())
@click.argument("adapters", nargs=-1, required=True, type=FilePath(), metavar="ADAPTER[:SETTING,...]...")
@click.option(
    "--only",
    multiple=True,
    metavar="COMPONENT",
    help="Verify this component of the adapters: model, text_encoder, …; may be repeated.",
)
@choosing_options("Verify")
@click.option("--allow-unmatched", is_flag=True, help="Leave out modules and tensors without a target.")
@dora_multiplier_option
@architecture_option("the adapters are")
@transposed_option("the base stores")
@reading_options
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def verify(
    merged: str,
    base: str,
    adapters: tuple[str, ...],
    only: tuple[str, ...],
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    weights: str | None,
    allow_unmatched: bool,
    dora_multiplier: str | None,
    architecture: str | None,
    transposed: "Answers",
    rslora: str | None,
    alpha: float | None,
    allow_partial_dora: bool,
    expert_packing: str | None,
    as_json: bool,
) -> None:
    """Plans, verifies and prints."""
    from lora_inspect.ops.verify import MergeOptions, plan_verify
    from lora_inspect.ops.verify import verify as verify_files
    from lora_inspect.reading.ambiguous_options import Choice
    from lora_inspect.reading.model.settings import parse_arguments
    from lora_inspect.reading.weights_toml import read_weights

    options = MergeOptions(
        only=only,
        transposed=transposed,
        allow_unmatched=allow_unmatched,
        dora_rule=dora_multiplier,
        settings=settings(rslora, alpha, allow_partial_dora, expert_packing, architecture),
        choice=Choice(include, exclude),
        weights=read_weights(weights) if weights is not None else None,
    )
    plan = plan_verify(merged, base, parse_arguments(adapters), options)
    for note in plan.notes:
        terminal.note(note)
    with progress_bar("Verifying", plan.bytes, in_bytes) as progress:
        result = verify_files(plan, progress)
    if as_json:
        terminal.json_text(result.to_dict())
    else:
        _print(result)
    if not result.ok:
        sys.exit(1)


def _print(result: "VerifyResult") -> None:
    shares = ", ".join(f"{adapter} {_share(result.share[adapter], result.noise[adapter])}" for adapter in result.share)
    if result.ok:
        terminal.line(f"ok: {len(result.residuals)} modules carry {shares}; nothing else differs")
    else:
        terminal.line(f"not ok: {shares}")
    for finding in result.findings:
        terminal.line(f"{'' if finding.is_error else 'note: '}{finding.message}")
    if result.ok:
        return
    if rows := _worst(result):
        terminal.line("")
        terminal.table(rows, ("module", "adapter", "share", "±", "residual"))


def _worst(result: "VerifyResult") -> list[tuple[str, ...]]:
    """A row for each share that is farthest from 1, or whose module is farthest from being explained."""
    rows = []
    for name, shares in result.modules.items():
        left = result.residuals.get(name)
        for number, (adapter, share) in enumerate(shares.items(), 1):
            noise = result.module_noise[name][adapter]
            off = max(0.0 if share is None else abs(share - 1) - (noise or 0.0), left or 0.0)
            which = str(number) if len(shares) > 1 else ""
            rows.append((off, (_short(name), which, _number(share), _number(noise), _number(left))))
    rows.sort(key=lambda row: -row[0])
    return [row for off, row in rows[:_ROWS] if off > _OFF]


def _share(share: float | None, noise: float | None) -> str:
    return "no share" if share is None else f"{share:.3f} ± {noise:.3f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _short(name: str) -> str:
    """The end of a name, which is what tells it from others."""
    return name if len(name) <= _NAME else f"…{name[1 - _NAME :]}"
