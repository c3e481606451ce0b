"""The command that mends a strength by writing the alpha that all programs read: found without planning a conversion.

`mending` tries every way to mend a file for a program. This one way is told by a look at the adapter.
"""

import math
from collections.abc import Sequence

from lora_inspect import schemes
from lora_inspect.converting.target.key_names import output_beside
from lora_inspect.programs.verdict import STRENGTH, Verdict
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.model.settings import spell_argument
from lora_inspect.shell import command_line, operand


def standard_fix(adapter: Adapter, verdicts: Sequence[Verdict]) -> str | None:
    """The command for an RS-LoRA of which programs read alpha/rank; None where that is not all that is wrong in them.

    It is `convert` without any option: the file keeps its names, and gets the alpha of its scale.
    """
    wrong = [one for one in verdicts if one.verdict == STRENGTH]
    if not wrong or not all(map(_applies_alpha_over_rank, wrong)) or not _takes_other_alphas(adapter):
        return None
    given = spell_argument(operand(adapter.checkpoint.path), adapter.settings)
    output = operand(output_beside(adapter, "standard", None))
    return command_line(["lora-inspect", "convert", given, "-o", output])


def _takes_other_alphas(adapter: Adapter) -> bool:
    """Whether every module is a LoRA with an alpha of its own, under names that have one, and nothing else is there."""
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
