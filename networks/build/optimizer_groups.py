"""The parameter groups that a network hands to an optimiser.

Source of the higher rate of the up factors: Hayou et al. 2024 (LoRA+).
"""

import logging
from collections.abc import Iterable
from typing import Any

from torch import nn

from ..modules.adapter_module import AdapterModule

logger = logging.getLogger(__name__)


def build_groups(
    modules: Iterable[AdapterModule], name: str, learning_rate: float | None, plus_ratio: float | None
) -> tuple[list[dict[str, Any]], list[str]]:
    """(groups, descriptions) of equal length and order: `name`, `name plus` and `name dora`, where not empty.

    The up factors have a group of their own, at `learning_rate` times `plus_ratio`, only with a ratio. Magnitudes
    always have one, at the plain rate: optimisers that estimate a rate per group would find one for two scales. A
    group without a rate is left out.
    """
    groups: dict[str, list[nn.Parameter]] = {"": [], "plus": [], "dora": []}
    for module in modules:
        for kind, parameters in module.parameter_groups().items():
            groups["" if kind == "plus" and plus_ratio is None else kind].extend(parameters)
    found: list[dict[str, Any]] = []
    descriptions: list[str] = []
    for kind, parameters in groups.items():
        rate = learning_rate if learning_rate is None or kind != "plus" else learning_rate * (plus_ratio or 1.0)
        description = f"{name} {kind}".rstrip()
        if not parameters:
            continue
        if not rate:
            logger.info(
                f"{description}: the learning rate is {rate}, so its {len(parameters)} parameters are not trained"
            )
            continue
        found.append({"params": parameters, "lr": rate})
        descriptions.append(description)
    return found, descriptions
