"""Steps of reading that few files need, each loaded where something tells that this one does: `info` pays for imports.

A step whose sign is not there leaves everything as it is.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING

from lora_inspect.files.checkpoint import Checkpoint, read_row
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.reading.file_reading import FileReading, NoRules, OwnRules
from lora_inspect.reading.keys.claims import Claims, claim
from lora_inspect.reading.keys.groups import StoredNumbers, changes_of_kinds, claim_as_before
from lora_inspect.reading.keys.suffixes import ROOT
from lora_inspect.reading.metadata.trainers import is_musubi
from lora_inspect.reading.model.contribution import Module
from lora_inspect.reading.model.evidence import INIT_KEY, Evidence, Finding
from lora_inspect.reading.peft.config_lookup import FoundConfig
from lora_inspect.reading.peft.peft_config import is_peft_config
from lora_inspect.reading.peft.regex import Steps
from lora_inspect.reading.scale.scales import Counting
from lora_inspect.schemes.cloneofsimo import CLONEOFSIMO
from lora_inspect.schemes.mlx import MLX

if TYPE_CHECKING:
    from lora_inspect.reading.embeddings import Embedding

_NUMBERED = tuple(CLONEOFSIMO.prefixes)
# How modules end that PEFT trains all experts in: the experts themselves, and what its wrappers are around.
_OF_EXPERTS = ("experts", ".base_layer")
_BELOW_WRAPPERS = ".base_layer."


def claimed(checkpoint: Checkpoint) -> Claims:
    """The modules of a file, and what is wrong with layers that it numbers instead of naming them."""
    if not any(map(str.startswith, checkpoint.tensors, repeat(_NUMBERED))):
        return claim_as_before(checkpoint.tensors)
    from lora_inspect.reading.keys.numbered_layers import numbered_keys

    known, findings = numbered_keys(checkpoint.tensors, checkpoint.metadata)
    claims = claim(checkpoint.tensors, known)
    return claims._replace(findings=(*findings, *claims.findings))


def named(claims: Claims, metadata: Mapping[str, str]) -> tuple[Claims, tuple[Evidence, ...]]:
    """The claims under the names of the model, where a program is known to write others, and what is said of that."""
    if not is_musubi(metadata) or all(module.name.flat for module in claims.modules.values()):
        return claims, ()
    from lora_inspect.reading.keys.special_claims import with_true_dots

    return with_true_dots(claims, metadata)


def with_shared(claims: Claims, tensors: Mapping[str, TensorInfo]) -> Claims:
    """The claims with what all modules of a file share as factors of each."""
    if not any(key.startswith(f"{ROOT}.") for key in claims.unclaimed):
        return claims
    from lora_inspect.reading.keys.special_claims import claim_shared

    return claim_shared(claims, tensors)


def with_alpha_of_all(claims: Claims, alpha: TensorInfo | None) -> Claims:
    """The claims with the alpha that a header says once."""
    if alpha is None:
        return claims
    from lora_inspect.reading.keys.special_claims import claim_alpha_of_all

    return claim_alpha_of_all(claims, alpha)


def with_stacked(claims: Claims) -> Claims:
    """The claims with factors that are stacked for all experts of a layer."""
    if all(contribution.algorithm.formula for contribution in changes_of_kinds(claims.modules)):
        return claims
    from lora_inspect.reading.keys.special_claims import claim_stacked

    return claim_stacked(claims)


def rules_of(checkpoint: Checkpoint, claims: Claims) -> OwnRules:
    """The rules of the program that wrote the file, where those are its own."""
    config = checkpoint.config
    has_names = any(module.name.scheme == MLX.name for module in claims.modules.values())
    if not has_names and (config is None or is_peft_config(config)):
        return NoRules()
    from lora_inspect.reading.mlx import MlxRules

    return MlxRules(checkpoint)


def with_experts(claims: Claims, configs: Sequence[FoundConfig]) -> Claims:
    """The claims with the parameters that PEFT trains, and with what lies in the modules that it wraps for them."""
    if not configs and not any(name.endswith(_OF_EXPERTS) or _BELOW_WRAPPERS in name for name in claims.modules):
        return claims
    from lora_inspect.reading.expert_parameters import claim_wrapped

    return claim_wrapped(claims, configs)


def with_saved(
    claims: Claims, tensors: Mapping[str, TensorInfo], configs: Sequence[FoundConfig], steps: Steps
) -> Claims:
    """The claims with tensors of the base that PEFT saves whole."""
    if not configs:
        return claims
    from lora_inspect.reading.peft.saved_tensors import claim_saved

    return claim_saved(claims, tensors, configs, steps)


def without_embeddings(claims: Claims, checkpoint: Checkpoint) -> tuple[Claims, "tuple[Embedding, ...]"]:
    """The claims without embeddings of tokens, which are among the keys that no module has, and these."""
    if not claims.unclaimed:
        return claims, ()
    from lora_inspect.reading.embeddings import claim_embeddings

    return claim_embeddings(claims, checkpoint.tensors, checkpoint.metadata)


def with_norms(
    claims: Claims, metadata: Mapping[str, str]
) -> tuple[Claims, str | None, tuple[Evidence, ...], tuple[Finding, ...]]:
    """What is said of whose norms magnitudes are over, as `StatedNorms` has it."""
    if not any(contribution.magnitude for contribution in changes_of_kinds(claims.modules)):
        return claims, None, (), ()
    from lora_inspect.reading.scale.dora_evidence import with_stated_norms

    return with_stated_norms(claims, metadata)


def with_settings(
    modules: dict[str, Module], configs: Sequence[FoundConfig], metadata: Mapping[str, str], numbers: StoredNumbers
) -> dict[str, Module]:
    """The modules with what else than their factors decides how they are computed."""
    own = (contribution.algorithm for contribution in changes_of_kinds(modules))
    if not configs and not any(algorithm.shared or algorithm.variant or algorithm.settings for algorithm in own):
        return modules
    from lora_inspect.reading.peft import unsupported

    return unsupported.with_settings(modules, configs, metadata, numbers)


def with_packing(
    modules: dict[str, Module], configs: Sequence[FoundConfig], metadata: Mapping[str, str], chosen: str | None
) -> dict[str, Module]:
    """The modules with how the factors of all experts lie in their tensors."""
    if not any(contribution.algorithm.packed for contribution in changes_of_kinds(modules)):
        return modules
    from lora_inspect.reading import packed_experts

    return packed_experts.with_packing(modules, configs, metadata, chosen)


def with_residual_bases(
    modules: dict[str, Module], configs: Sequence[FoundConfig], metadata: Mapping[str, str], is_given: bool | None
) -> dict[str, Module]:
    """The modules with what was moved out of their base."""
    if not configs and INIT_KEY not in metadata:
        return modules
    from lora_inspect.reading.peft import residual_adapters

    return residual_adapters.with_residual_bases(modules, configs, metadata, is_given)


def about_method(configs: Sequence[FoundConfig], has_modules: bool) -> Iterable[Evidence]:
    """The method of each config, where no modules tell it."""
    if has_modules or not configs:
        return ()
    from lora_inspect.reading.peft import unsupported

    return unsupported.about_method(configs, has_modules)


def about_alpha_of_all(checkpoint: Checkpoint) -> Iterable[Evidence]:
    """What a header says of the scale of all modules."""
    if checkpoint.alpha is None:
        return ()
    from lora_inspect.reading.keys import special_claims

    return special_claims.about_alpha_of_all(checkpoint)


def about_saved(claims: Claims, configs: Sequence[FoundConfig]) -> Iterable[Evidence]:
    """What PEFT saved whole."""
    if not configs and not claims.unclaimed:
        return ()
    from lora_inspect.reading.peft import saved_tensors

    return saved_tensors.about_saved(claims, configs)


def about_experts(reading: FileReading) -> Iterable[Evidence]:
    """How the factors of all experts are packed."""
    if not any(contribution.algorithm.packed for contribution in changes_of_kinds(reading.modules)):
        return ()
    from lora_inspect.reading import packed_experts

    chosen = reading.settings.expert_packing
    return packed_experts.about_experts(
        list(reading.contributions), reading.configs, reading.checkpoint.metadata, chosen
    )


def about_attention(reading: FileReading) -> Iterable[Evidence]:
    """How often PEFT counts the change of an attention's output."""
    if not any(contribution.in_config for contribution in changes_of_kinds(reading.modules)):
        return ()
    from lora_inspect.reading import expert_parameters

    return expert_parameters.about_attention(reading)


def about_residuals(reading: FileReading) -> Iterable[Evidence]:
    """Which base the factors change."""
    if not reading.configs and INIT_KEY not in reading.checkpoint.metadata:
        return ()
    from lora_inspect.reading.peft import residual_adapters

    return residual_adapters.about_residuals(reading)


def counting(checkpoint: Checkpoint, steps: Steps) -> Counting:
    """How often an alpha counts, by what sd-scripts was asked for.

    The tables of that are loaded only for a file that names one of its networks.
    """
    if checkpoint.metadata.get("ss_network_module", "").startswith("networks."):
        from lora_inspect.reading.scale.requested_rank import read_asked_ranks

        if asked := read_asked_ranks(checkpoint.metadata, steps):
            return Counting(partial(asked.counted, read_row=partial(read_row, checkpoint)), asked.by_name)
    return Counting()
