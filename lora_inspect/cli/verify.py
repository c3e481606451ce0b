"""`lora-inspect verify`."""

import sys
from typing import TYPE_CHECKING, Any

import click

from lora_inspect.cli import terminal
from lora_inspect.cli.progress_bar import in_bytes, progress_bar
from lora_inspect.cli.verb import VERBS, FilePath, Verb, declared_options, json_option
from lora_inspect.merging.options import VerifyRequest, merge_options

if TYPE_CHECKING:
    from lora_inspect.ops.verify import VerifyResult

# How many modules the table shows, how many columns a name has there, and what is too little for a row.
_ROWS, _NAME, _OFF = 10, 44, 0.01


# No docstring: python -OO leaves those out.
_HELP = """\
Measure, in every module, how much of each ADAPTER is in MERGED. Any program may have made MERGED from BASE.

A share of 1 is the whole change at the ADAPTER's multiplier; 0 is none of it. `verify` names changes that are missing,
applied twice, scaled or unexpected; the exit status is 1 if there are any. Multipliers and other settings follow the
colon of an ADAPTER, as for `merge`. Name the adapters in the order of the merge.

\b
Example: lora-inspect verify merged.safetensors base.safetensors \\
  style.safetensors:0.8 face.safetensors
"""


@click.command(cls=Verb, help=_HELP, short_help=VERBS["verify"])
@click.argument("merged", type=FilePath())
@click.argument("base", type=FilePath())
@click.argument("adapters", nargs=-1, required=True, type=FilePath(), metavar="ADAPTER[:SETTING,...]...")
@declared_options(VerifyRequest)
@json_option()
def verify(merged: str, base: str, adapters: tuple[str, ...], as_json: bool, **asked: Any) -> None:
    """Plan, verify and print."""
    from lora_inspect.ops.verify import plan_verify
    from lora_inspect.ops.verify import verify as verify_files
    from lora_inspect.reading.model.settings import parse_arguments

    options = merge_options(VerifyRequest(**asked))
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
    """Return rows for the shares farthest from 1, or with modules that are explained worst."""
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
    """Return the end of a name, which distinguishes it from others."""
    return name if len(name) <= _NAME else f"…{name[1 - _NAME :]}"
