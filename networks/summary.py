"""What a new network says of itself in the log."""

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_inspect import __version__

from .targets import Selection

logger = logging.getLogger(__name__)

# In the order in which the summary names them.
DORA_OBSTACLES = ("non-Linear", "split_dims", "dropout", "rank_dropout")


def announce() -> None:
    """Which package this is: a trainer may have one of the same name."""
    logger.info(f"{__package__} {__version__} from {Path(__file__).resolve().parent}")


def log_dora(loras: Sequence[Any]) -> None:
    """On how many modules DoRA is, and on how many it is not, by the reason."""
    reasons = Counter(getattr(lora, "dora_disabled_reason", None) for lora in loras)
    disabled = {reason: reasons[reason] for reason in DORA_OBSTACLES if reasons[reason]}
    text = f"DoRA enabled on {sum(getattr(lora, 'use_dora', False) for lora in loras)} modules"
    if disabled:
        text += f", disabled on: {', '.join(f'{count} {reason}' for reason, count in disabled.items())}"
    logger.info(text)
    if disabled:
        logger.info(f"DoRA disabled for {sum(disabled.values())} modules, which are standard LoRA")


def log_selection(loras: Sequence[Any], selection: Selection, verbose: bool) -> None:
    """What the user's patterns did and did not do; with `verbose` every layer, adapted or not, and why."""
    for option, patterns in selection.unmatched.items():
        logger.warning(
            f"{option}: {', '.join(map(repr, patterns))} matches no layer that could be adapted; "
            "a pattern has to match the whole dotted name"
        )
    if selection.rescued:
        logger.info(f"include_patterns keeps {len(selection.rescued)} excluded layers: {', '.join(selection.rescued)}")
    if not verbose:
        return
    for lora, target in zip(loras, selection.targets, strict=True):
        count = sum(parameter.numel() for parameter in lora.parameters())
        logger.info(f"{target.path}: {lora.lora_name}, rank {lora.lora_dim}, {count} parameters")
    for path, reason in selection.skipped.items():
        logger.info(f"{path}: not adapted, because {reason}")
    total = sum(parameter.numel() for lora in loras for parameter in lora.parameters())
    logger.info(f"{len(loras)} modules adapted, {total} parameters; {len(selection.skipped)} left out")
