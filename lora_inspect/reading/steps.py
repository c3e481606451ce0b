"""The steps from a checkpoint to an adapter, in order; each takes a reading and returns the next.

`info` pays for every import. A step that few files need therefore has an address, below this folder, and a sign; it is
imported only for files with the sign. To add a step, add its row to STEPS.
"""

from collections.abc import Callable
from importlib import import_module
from itertools import repeat

from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.reading.keys.groups import changes_of_kinds, computed, group_equal, kinds_of
from lora_inspect.reading.keys.groups import read_numbers as numbers_of
from lora_inspect.reading.keys.suffixes import ROOT
from lora_inspect.reading.metadata.trainers import is_musubi
from lora_inspect.reading.model.contribution import Contribution, Module
from lora_inspect.reading.model.evidence import INIT_KEY
from lora_inspect.reading.model.settings import Settings
from lora_inspect.reading.peft import config_lookup
from lora_inspect.reading.peft.config_lookup import FoundConfig
from lora_inspect.reading.peft.peft_config import is_peft_config
from lora_inspect.reading.scale import scales
from lora_inspect.reading.scale.dora_evidence import dora_claims, read_dora
from lora_inspect.reading.scale.scale_rules import facts_of, read_groups, read_ruled, rslora_of_groups, scaled_modules
from lora_inspect.reading.state import Reading
from lora_inspect.schemes.cloneofsimo import CLONEOFSIMO
from lora_inspect.schemes.mlx import MLX

_NUMBERED = tuple(CLONEOFSIMO.prefixes)
# How modules end that PEFT trains all experts in: the experts themselves, and what its wrappers are around.
_OF_EXPERTS = ("experts", ".base_layer")
_BELOW_WRAPPERS = ".base_layer."
_SD_SCRIPTS = "networks."


class ReadingStep(NamedTuple):
    """One step of reading, and the sign of the files that need it.

    `run` is a function, or its address as `file:function`.
    """

    run: "Callable[[Reading], Reading] | str"
    sign: Callable[[Reading], bool] = lambda reading: True

    def __call__(self, reading: Reading) -> Reading:
        """Return the reading after the step, or the same one without the sign."""
        if not self.sign(reading):
            return reading
        if not isinstance(self.run, str):
            return self.run(reading)
        file, _, name = self.run.partition(":")
        found: Callable[[Reading], Reading] = getattr(import_module(f"lora_inspect.reading.{file}"), name)
        return found(reading)


def _has_numbered_layers(reading: Reading) -> bool:
    return any(map(str.startswith, reading.checkpoint.tensors, repeat(_NUMBERED)))


def _may_have_guessed_dots(reading: Reading) -> bool:
    modules = reading.claims.modules.values()
    return is_musubi(reading.checkpoint.metadata) and not all(module.name.flat for module in modules)


def _has_tensors_at_root(reading: Reading) -> bool:
    return any(key.startswith(f"{ROOT}.") for key in reading.claims.unclaimed)


def _has_alpha_of_all(reading: Reading) -> bool:
    return reading.checkpoint.alpha is not None


def _has_stacked_factors(reading: Reading) -> bool:
    return not all(contribution.algorithm.formula for contribution in changes_of_kinds(reading.claims.modules))


def _has_rules_of_its_own(reading: Reading) -> bool:
    config = reading.checkpoint.config
    has_names = any(module.name.scheme == MLX.name for module in reading.claims.modules.values())
    return has_names or (config is not None and not is_peft_config(config))


def _may_have_experts(reading: Reading) -> bool:
    names = reading.claims.modules
    return bool(reading.configs) or any(name.endswith(_OF_EXPERTS) or _BELOW_WRAPPERS in name for name in names)


def _has_configs(reading: Reading) -> bool:
    return bool(reading.configs)


def _has_unclaimed(reading: Reading) -> bool:
    return bool(reading.claims.unclaimed)


def _has_magnitudes(reading: Reading) -> bool:
    return any(contribution.magnitude for contribution in changes_of_kinds(reading.claims.modules))


def _is_of_sd_scripts(reading: Reading) -> bool:
    return reading.checkpoint.metadata.get("ss_network_module", "").startswith(_SD_SCRIPTS)


def _needs_settings(reading: Reading) -> bool:
    own = (contribution.algorithm for contribution in changes_of_kinds(reading.modules))
    return bool(reading.configs) or any(one.shared or one.variant or one.settings for one in own)


def _has_packed_factors(reading: Reading) -> bool:
    return any(contribution.algorithm.packed for contribution in changes_of_kinds(reading.modules))


def _may_have_residual_base(reading: Reading) -> bool:
    return bool(reading.configs) or INIT_KEY in reading.checkpoint.metadata


def _has_no_modules(reading: Reading) -> bool:
    return bool(reading.configs) and not reading.claims.modules


def _may_have_saved_tensors(reading: Reading) -> bool:
    return bool(reading.configs or reading.claims.unclaimed)


def _has_parts_in_configs(reading: Reading) -> bool:
    return any(contribution.in_config for contribution in changes_of_kinds(reading.modules))


def read_numbers(reading: Reading) -> Reading:
    """Read alphas, flags and one-number factors; raise LoraInspectError for any other tensor there."""
    return reading._replace(numbers=numbers_of(reading.checkpoint, reading.claims))


def find_configs(reading: Reading) -> Reading:
    """Find the configs of PEFT that belong to the file."""

    def computed_under(found: FoundConfig) -> list[Contribution]:
        return [one for _, one in EXPERTS(reading._replace(configs=[found])).claims.computed]

    configs = config_lookup.find_configs(reading.checkpoint, computed_under, reading.budget)
    return reading._replace(configs=configs)


def read_scales(reading: Reading) -> Reading:
    """Read the scale rule and DoRA from all evidence, and give each module its scale."""
    claims, numbers, configs, counting = reading.claims, reading.numbers, reading.configs, reading.counting
    metadata, rules, own = reading.checkpoint.metadata, reading.rules, reading.settings
    by_path = counting.by_name or any(found.modules.tells_apart for found in configs)
    kinds = kinds_of(claims.modules, numbers, by_path)
    ruled = read_ruled(kinds, numbers, configs, counting)
    groups = read_groups(ruled, claims, numbers, configs, metadata)
    settled = {voice: group.settled(own.rslora) for voice, group in groups.items()}
    known = {id(one.contribution): one.facts for one in ruled}
    facts = [
        known.get(id(contribution)) or facts_of(kind, contribution, numbers)
        for kind, contribution in computed(kinds)
        if contribution.algorithm.decomposes
    ]
    said = [*dora_claims(ruled, facts, numbers.flags), *rules.dora(facts, claims)]
    dora, about_dora, about_magnitudes = read_dora(facts, said, metadata)

    def scaled(settings: Settings) -> dict[str, Module]:
        return rules.scaled(scaled_modules(claims, kinds, numbers, configs, ruled, settled, settings), settings)

    return reading._replace(
        rslora=rslora_of_groups(list(settled.values())),
        stated=[group.reading for group in groups.values()],
        about_rules=list(dict.fromkeys(evidence for group in settled.values() for evidence in group.evidence)),
        dora=dora._replace(norms=reading.norms),
        about_dora=about_dora,
        about_magnitudes=[*about_magnitudes, *reading.wrong_norms],
        about_parts=scales.about_parts((one.counted, one.facts.modules) for one in ruled),
        scaled=scaled,
        modules=scaled(own),
    )


def collect_contributions(reading: Reading) -> Reading:
    """List the contributions of all modules; they stay the same from here on."""
    contributions = [contribution for module in reading.modules.values() for contribution in module.contributions]
    return reading._replace(modules=group_equal(reading.modules), contributions=contributions)


def about_scales(reading: Reading) -> Reading:
    """Add the evidence for the scale rule, for DoRA and for its norms."""
    return reading.with_evidence([*reading.about_rules, *reading.about_dora, *reading.about_norms])


def about_parts(reading: Reading) -> Reading:
    """Add evidence for layers that were trained in parts and saved as one."""
    return reading.with_evidence(reading.about_parts)


def about_own_rules(reading: Reading) -> Reading:
    """Add the evidence in the config of the program that wrote the file."""
    return reading.with_evidence(reading.rules.about(reading.contributions))


def about_hidden_ranks(reading: Reading) -> Reading:
    """Add evidence for alphas divided by a rank that a flag states and no tensor shows."""
    return reading.with_evidence(scales.about_hidden_ranks(reading.contributions, reading.claims.flags))


EXPERTS = ReadingStep("expert_parameters:claim_wrapped", _may_have_experts)
STEPS = (
    # Which key is which tensor of which module.
    ReadingStep("keys.numbered_layers:name_layers", _has_numbered_layers),
    ReadingStep("keys.special_claims:restore_dots", _may_have_guessed_dots),
    ReadingStep("keys.special_claims:claim_shared", _has_tensors_at_root),
    ReadingStep("keys.special_claims:claim_alpha_of_all", _has_alpha_of_all),
    ReadingStep("keys.special_claims:claim_stacked", _has_stacked_factors),
    ReadingStep("mlx:read_rules", _has_rules_of_its_own),
    ReadingStep(read_numbers),
    ReadingStep(find_configs),
    EXPERTS,
    ReadingStep("peft.saved_tensors:claim_saved", _has_configs),
    ReadingStep("embeddings:claim_embeddings", _has_unclaimed),
    # How each change is scaled and computed.
    ReadingStep("scale.dora_evidence:state_norms", _has_magnitudes),
    ReadingStep("scale.requested_rank:count_requested", _is_of_sd_scripts),
    ReadingStep(read_scales),
    ReadingStep("peft.unsupported:settle_formulas", _needs_settings),
    ReadingStep("packed_experts:settle_packing", _has_packed_factors),
    ReadingStep("peft.residual_adapters:note_residuals", _may_have_residual_base),
    ReadingStep(collect_contributions),
    # The evidence, in the order in which it is told.
    ReadingStep("peft.unsupported:about_method", _has_no_modules),
    ReadingStep(about_scales),
    ReadingStep("keys.special_claims:about_alpha_of_all", _has_alpha_of_all),
    ReadingStep(about_parts),
    ReadingStep("peft.saved_tensors:about_saved", _may_have_saved_tensors),
    ReadingStep(about_own_rules),
    ReadingStep("packed_experts:about_experts", _has_packed_factors),
    ReadingStep("expert_parameters:about_attention", _has_parts_in_configs),
    ReadingStep("peft.residual_adapters:about_residuals", _may_have_residual_base),
    ReadingStep(about_hidden_ranks),
)
