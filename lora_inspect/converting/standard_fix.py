"""The command that fixes a wrong scale by the alpha that all programs read, without a planned conversion.

`find_fix` tries every way for a program; a look at the adapter is enough for this one way. The name of the output, next
to its input, is here too.
"""

import math
import os
from collections.abc import Sequence

from lora_inspect import schemes
from lora_inspect.files.outputs import GGUF_ENDING, SAFETENSORS_ENDING
from lora_inspect.programs.verdict import STRENGTH, Verdict
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.model.settings import spell_argument
from lora_inspect.shell import command_line, operand
from lora_inspect.stores.address import is_remote

# What a scheme without alphas says of a scale where that stands in a config, so that a folder is written.
_IN_CONFIG = ("config", "scale")


def output_ending(adapter: Adapter, asked: str | None) -> str:
    """Return the ending of the requested scheme's files, or of the adapter's own; empty if the output is a folder."""
    named = [asked] if asked else [module.name.scheme for module in adapter.modules.values()]
    found = [schemes.by_name(name) for name in named]
    if any(scheme.absent_alpha in _IN_CONFIG for scheme in found):
        return ""
    return GGUF_ENDING if any(scheme.alpha_of_all for scheme in found) else SAFETENSORS_ENDING


def output_beside(adapter: Adapter, purpose: str, asked: str | None) -> str:
    """Return a name next to the input for the `purpose`, with the ending of the requested scheme."""
    path = adapter.checkpoint.path
    if is_remote(path):
        path = os.path.basename(path)  # nothing is written where it lies
    path = os.path.normpath(path)
    stem = path if os.path.isdir(path) else os.path.splitext(path)[0]
    return f"{stem}-{purpose}{output_ending(adapter, asked)}"


def standard_fix(adapter: Adapter, verdicts: Sequence[Verdict]) -> str | None:
    """Return the command for an RS-LoRA that programs read as alpha/rank, or None if more than that is wrong.

    It is `convert` without any option: the file keeps its names, and gets the alpha of its scale.
    """
    wrong = [one for one in verdicts if one.verdict == STRENGTH]
    if not wrong or not all(map(_applies_alpha_over_rank, wrong)) or not _takes_other_alphas(adapter):
        return None
    given = spell_argument(operand(adapter.checkpoint.path), adapter.settings)
    output = operand(output_beside(adapter, "standard", None))
    return command_line(["lora-inspect", "convert", given, "-o", output])


def _takes_other_alphas(adapter: Adapter) -> bool:
    """Return True if all modules are LoRA with an alpha of their own, under names that carry one, and nothing else."""
    contributions = list(adapter.contributions)
    return (
        not adapter.dora.value
        and not adapter.unclaimed
        and all(contribution.algorithm.name == "lora" and contribution.rank for contribution in contributions)
        and all(
            module.alpha and schemes.by_name(module.name.scheme).carries_alpha for module in adapter.modules.values()
        )
    )


def _applies_alpha_over_rank(verdict: Verdict) -> bool:
    return all(
        one.scale is not None
        and one.contribution.alpha is not None
        and one.contribution.rank
        and math.isclose(one.scale, one.contribution.alpha / one.contribution.rank, rel_tol=2.0**-10)
        for one in verdict.taken
    )
