"""The scale of every contribution of a file: found for each kind of modules, with what it is read from."""

from collections.abc import Mapping, Sequence
from functools import partial

from lora_inspect.reading.keys.claims import Claims
from lora_inspect.reading.keys.groups import AlikeModules, Likeness
from lora_inspect.reading.keys.module_kinds import ModuleKind
from lora_inspect.reading.keys.stored_numbers import StoredNumbers
from lora_inspect.reading.model.contribution import Contribution, Module, with_scalings
from lora_inspect.reading.model.evidence import LOKR_FLAG, RsloraReading
from lora_inspect.reading.model.settings import Settings
from lora_inspect.reading.peft.config_lookup import FoundConfig, Speakers
from lora_inspect.reading.scale.scale_rules import Ruled, RuledGroup, Voice
from lora_inspect.reading.scale.scales import ScaleSources, scalings_of

# What no evidence for RS-LoRA speaks of.
_STANDARD = RsloraReading(False, "default")


def scaled_modules(
    claims: Claims,
    kinds: Sequence[ModuleKind],
    numbers: StoredNumbers,
    configs: Sequence[FoundConfig],
    ruled: Sequence[Ruled],
    groups: Mapping[Voice, RuledGroup],
    settings: Settings,
) -> AlikeModules:
    """The modules of the claims, of these kinds, with rank, alpha and scale in every contribution that is computed."""
    speakers = Speakers(configs)
    stabilised = {id(one.contribution): one for one in ruled}

    def sources(module: Module, contribution: Contribution) -> ScaleSources:
        if one := stabilised.get(id(contribution)):
            return ScaleSources(module, one.facts.alpha, one.configs, groups[one.voice].reading, one.counted)
        stored, found = numbers.alphas.get(module.name.key), speakers.of(contribution)
        return ScaleSources(module, stored, found, _STANDARD, hidden=LOKR_FLAG in claims.flags)

    modules = list(claims.modules.values())
    kind_of = [0] * len(modules)
    for number, kind in enumerate(kinds):
        scalings = scalings_of(kind.first.contributions, partial(sources, kind.first), settings)
        places = kind.places.values()
        for place, module in zip(places, with_scalings([modules[place] for place in places], scalings), strict=True):
            modules[place], kind_of[place] = module, number
    likeness = Likeness(kind_of, [next(iter(kind.places.values())) for kind in kinds])
    return AlikeModules(zip(claims.modules, modules, strict=True), likeness)
