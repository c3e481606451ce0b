"""What stands beside the factors of a module and decides how they are computed: settings, or why they are unknown."""

import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from lora_inspect import algorithms
from lora_inspect.algorithms.record import Algorithm, Surroundings
from lora_inspect.reading.file_reading import FileReading
from lora_inspect.reading.keys.groups import StoredNumbers
from lora_inspect.reading.keys.special_claims import missing_shared
from lora_inspect.reading.model.contribution import Contribution, Module
from lora_inspect.reading.model.evidence import Finding
from lora_inspect.reading.peft.config_lookup import FoundConfig, Speakers


def with_settings(
    modules: Mapping[str, Module], configs: Sequence[FoundConfig], metadata: Mapping[str, str], numbers: StoredNumbers
) -> dict[str, Module]:
    """The modules with the settings of every contribution whose algorithm asks for some, or has variants."""
    speakers = Speakers(configs)
    options = dict(_options(configs))

    def settled(contribution: Contribution, module: Module) -> Contribution:
        if missing := missing_shared(contribution):
            return contribution._replace(unsettled=missing)
        algorithm = contribution.algorithm
        asked = options.get(algorithm.name) or algorithm.variant or algorithm.settings
        if not asked:
            return contribution
        around = _around(contribution, module, speakers.of(contribution), metadata)
        own = {
            role: numbers.factors[info.name]
            for role, info in contribution.factors.items()
            if info.name in numbers.factors
        }
        found = asked(around._replace(numbers=own))
        if isinstance(found, str):
            return contribution._replace(unsettled=found)
        if isinstance(found, Algorithm):
            return contribution._replace(algorithm=found)
        return contribution._replace(settings=found)

    found: dict[str, Module] = {}
    for name, module in modules.items():
        contributions = tuple([settled(contribution, module) for contribution in module.contributions])
        is_same = all(map(operator.is_, contributions, module.contributions))
        found[name] = module if is_same else module._replace(contributions=contributions)
    return found


def _options(configs: Sequence[FoundConfig]) -> Iterator[tuple[str, Callable[[Surroundings], Algorithm | str]]]:
    """What is asked of the contributions of an algorithm that a setting of a config may make those of another one."""
    for found in configs:
        for algorithm in algorithms.options_in(found.config):
            if algorithm.option_of and algorithm.variant:
                yield algorithm.option_of[0], algorithm.variant


def _around(
    contribution: Contribution, module: Module, configs: Sequence[FoundConfig], metadata: Mapping[str, str]
) -> Surroundings:
    alpha = contribution.alpha
    return Surroundings(
        key=module.name.key,
        roles=contribution.factors,
        config=configs[0].config if configs else None,
        metadata=metadata,
        alpha=math.nan if module.alpha and alpha is None else alpha,
        shares_alpha=sum(other.algorithm.has_alpha for other in module.contributions) > 1,
        shapes=contribution.shapes,
        beside=tuple(
            other.algorithm.title
            for other in module.contributions
            if other is not contribution and other.algorithm.parameter == contribution.algorithm.parameter
        ),
        chooses=partial(configs[0].modules.chooses, path=module.name.body) if configs else lambda field: None,
    )


def unknown_formulas(reading: FileReading) -> Iterator[Finding]:
    """Contributions whose formula is unknown, by the reason."""
    keys: dict[tuple[str, str], list[str]] = {}
    for contribution in reading.contributions:
        if contribution.unsettled:
            same = (contribution.algorithm.title, contribution.unsettled)
            keys.setdefault(same, []).append(contribution.module.key)
    for (title, why), own in keys.items():
        others = f" and {len(own) - 1} more modules" if len(own) > 1 else ""
        yield Finding("formula-unknown", f"{title} of {own[0]}{others} is unknown: {why}", tuple(own[:5]))
