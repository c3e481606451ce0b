"""From the numbers of a module, its config and the scale rule to its scale, or to the reason why it is unknown."""

import math
from typing import NamedTuple

from lora_inspect import evidence, peft_config, schemes
from lora_inspect.asked_ranks import Counted
from lora_inspect.contribution import Contribution, Module
from lora_inspect.evidence import RsloraReading
from lora_inspect.found_configs import FoundConfig
from lora_inspect.scaling import neutral_alpha, scale_of
from lora_inspect.settings import Settings


class ScaleSources(NamedTuple):
    """What the scale of one contribution is read from.

    `stored` is the number in the alpha tensor, None where that is no plain number; `config` is the LoraConfig that
    speaks of the module, `rule` whether its scale is alpha/sqrt(rank), and `counted` how often the stored alpha counts.
    """

    module: Module
    stored: float | None
    config: FoundConfig | None
    rule: RsloraReading
    counted: Counted = Counted()


def with_scale(contribution: Contribution, sources: ScaleSources, settings: Settings) -> Contribution:
    """The contribution with rank, alpha and scale, or with the reason why the scale is unknown."""
    rank = contribution.formula.rank(contribution.factors)
    found, rule = sources.config, sources.rule.value
    transposed = peft_config.fan_in_fan_out(found.config) if found and contribution.is_linear else None
    contribution = contribution._replace(rank=rank, transposed=transposed, rslora=rule)
    alpha, why = _alpha(contribution, sources, rank)
    if why and settings.alpha is not None:
        alpha, why = settings.alpha, ""
    contribution = contribution._replace(alpha=alpha)
    if why:
        return contribution._replace(why=why)
    if alpha is None:
        return contribution._replace(
            scale=1.0, rslora=None, why=f"no alpha, which means scale 1 in the {contribution.module.scheme} scheme"
        )
    if rule is None and rank > 1:
        cause = "conflicts" if sources.rule.source == "conflict" else "is missing"
        return contribution._replace(why=f"the evidence for RS-LoRA {cause}")
    rslora = bool(rule)
    why = f"{alpha:g}/sqrt({rank})" if rslora else f"{alpha:g}/{rank}"
    if sources.counted.parts > 1 and sources.stored is not None:
        why += (
            f", as alpha {sources.stored:g} counts for each of the {sources.counted.parts} parts that it was saved in"
        )
    return contribution._replace(rslora=rslora, scale=scale_of(alpha, rank, rslora), why=why)


def _alpha(contribution: Contribution, sources: ScaleSources, rank: int) -> tuple[float | None, str]:
    """Alpha with an empty reason, or why it is unknown. (None, "") means that the scheme has none: scale 1."""
    found = sources.config
    theirs = found is not None and found.gives_rank(contribution)
    configured = peft_config.config_alpha(found.config, contribution.module.body) if found and theirs else None
    if sources.module.alpha:
        alpha, why = _stored_alpha(sources.module.alpha.name, sources.stored, configured)
        if alpha is None or sources.counted.contradiction:
            return None, why or sources.counted.contradiction
        return alpha * sources.counted.parts, ""
    if found:
        return _configured_alpha(contribution, found, configured, rank)
    if schemes.by_name(contribution.module.scheme).absent_alpha == "config":
        why = "PEFT keeps alpha and the scale rule in adapter_config.json, which is not there: put it beside the file"
        return None, why
    return None, ""


def _stored_alpha(name: str, stored: float | None, configured: float | None) -> tuple[float | None, str]:
    if stored is None or not math.isfinite(stored):
        return None, f"{name} is no finite number"
    if stored == 0:
        return None, f"{name} is 0, which programs read differently"
    if configured is not None and not evidence.close(configured, stored):
        return None, f"{name} is {stored:g} and the config's alpha {configured:g}"
    return stored, ""


def _configured_alpha(
    contribution: Contribution, found: FoundConfig, configured: float | None, rank: int
) -> tuple[float | None, str]:
    """The config's alpha, except where the names say that a program has folded the scale into the factors."""
    expected = peft_config.config_rank(found.config, contribution.module.body)
    if expected != rank:
        return None, f"the config's rank is {expected} and the tensors' is {rank}, so it is not theirs"
    if configured is None:
        return None, "the config's lora_alpha is no number"
    scheme = contribution.module.scheme
    # PEFT's names have no other place for alpha, and diffusers itself reads what it embeds: beside a pipeline's names
    # under their prefix, beside the bare ones that a model saves of itself without one.
    own = found.embedded and (scheme == "diffusers" or (scheme == "dotted" and not found.prefix))
    if own or schemes.by_name(scheme).absent_alpha == "config":
        return configured, ""
    if contribution.rslora is None and rank > 1:
        return None, f"no alpha means scale 1 in the {scheme} scheme, but {found.where} says alpha {configured:g}"
    scale = scale_of(configured, rank, bool(contribution.rslora))
    if math.isclose(scale, 1.0, rel_tol=1e-6):
        return configured, ""
    neutral = neutral_alpha(rank, bool(contribution.rslora))
    return None, (
        f"no alpha means scale 1 in the {scheme} scheme, but {found.where} says scale {scale:g} at rank {rank}: "
        f"alpha={neutral:.9g} means the first, alpha={configured:.9g} the second"
    )
