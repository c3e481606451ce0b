"""The parameter groups that a network hands to an optimiser.

Source of the higher rate of the up factors: Hayou et al. 2024 (LoRA+).
"""

import logging
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from torch import nn

from ..modules.adapter_module import AdapterModule
from .patterns import value_at

logger = logging.getLogger(__name__)

# Classes of prodigyopt and dadaptation that end a step with an error where the rates of two groups differ.
_OF_ONE_RATE = ("prodigy", "dadaptation", "dadaptadam", "dadaptadampreprint", "dadaptlion", "dadaptsgd")


class Rates(NamedTuple):
    """The learning rate of each module: that of the first pattern that matches its dotted path, or else the trainer's.

    `paths` are the dotted paths by module name.
    """

    trainer_s: float | None
    by_pattern: Mapping[str, float]
    paths: Mapping[str, str]

    def own(self, name: str) -> float | None:
        """The rate that a pattern gives to the module called `name`; None where it has the trainer's."""
        return value_at(self.by_pattern, self.paths.get(name, ""), None)

    def of(self, name: str) -> float | None:
        """The rate of the module called `name`; 0 and None leave it as it is."""
        own = self.own(name)
        return self.trainer_s if own is None else own


def check_optimizer(
    optimizer_type: str, modules: Iterable[AdapterModule], rates: Rates, plus_ratio: float | None
) -> None:
    """Raises ValueError, with the options, for groups of several rates with an optimiser that finds one for all."""
    name = optimizer_type.rpartition(".")[2]
    if name.lower() not in _OF_ONE_RATE:
        return
    plain = {rate for module in modules if (rate := rates.of(module.lora_name))}
    options = ["loraplus_lr_ratio"] if plus_ratio not in (None, 1) else []
    options += ["lr_pattern"] if len(plain) > 1 else []
    if options:
        raise ValueError(
            f"{' and '.join(options)}: {name} finds one learning rate for all parameters, and takes no groups of "
            "others but 0; leave it out, or train with another optimizer"
        )


def build_groups(
    modules: Iterable[AdapterModule], name: str, rates: Rates, plus_ratio: float | None
) -> tuple[list[dict[str, Any]], list[str]]:
    """(groups, descriptions) of equal length and order: `name`, `name plus` and `name dora`, where not empty.

    The up factors have a group of their own, at the rate of the others times `plus_ratio`, only with a ratio.
    Magnitudes always have one, at the plain rate: optimisers that estimate a rate per group would find one for two
    scales. After these three the same ones follow for each rate of a pattern, in the order of the patterns, so that
    the order depends on the options alone; `name 5e-05` and so on describe them. A group without a rate is left out.
    """
    kinds = ("", "plus", "dora")
    groups: dict[tuple[float | None, str], list[nn.Parameter]] = {
        (own, kind): [] for own in (None, *rates.by_pattern.values()) for kind in kinds
    }
    for module in modules:
        own = rates.own(module.lora_name)
        for kind, parameters in module.parameter_groups().items():
            groups[own, "" if kind == "plus" and plus_ratio is None else kind].extend(parameters)
    found: list[dict[str, Any]] = []
    descriptions: list[str] = []
    for (own, kind), parameters in groups.items():
        if not parameters:
            continue
        rate = rates.trainer_s if own is None else own
        description = " ".join(part for part in (name, "" if own is None else str(own), kind) if part)
        if not rate:
            logger.info(
                f"{description}: the learning rate is {rate}, so its {len(parameters)} parameters are not trained"
            )
            continue
        rate *= (plus_ratio or 1.0) if kind == "plus" else 1.0
        if rates.by_pattern:
            logger.info(f"{description}: {len(parameters)} parameters at the learning rate {rate:g}")
        found.append({"params": parameters, "lr": rate})
        descriptions.append(description)
    return found, descriptions
