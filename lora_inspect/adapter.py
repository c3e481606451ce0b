"""From a checkpoint to an adapter: what every tensor means, on which evidence, and what is wrong with the file."""

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from lora_inspect import evidence, peft_config, problems, schemes
from lora_inspect.checkpoint import PEFT_WEIGHTS, Checkpoint
from lora_inspect.contribution import Claims, Contribution, Module, claim
from lora_inspect.errors import LoraInspectError
from lora_inspect.evidence import DoraReading, Evidence, LoraFacts, Problem, RsloraReading
from lora_inspect.scaling import RANK_STABILISED, STANDARD, scale_of
from lora_inspect.trainers import find_trainer


class Overrides(NamedTuple):
    """What the user settles: the scale rule, an alpha for modules whose own is unknown, and a partial DoRA."""

    rslora: bool | None = None
    alpha: float | None = None
    allow_partial_dora: bool = False


class FoundConfig(NamedTuple):
    """A LoraConfig and `where` it stands; `prefix` is the component that it speaks of, "" for all."""

    where: str
    prefix: str
    config: dict[str, Any]


class Adapter(NamedTuple):
    """A file read: modules by name, readings with their evidence, problems, and the keys that nobody claims."""

    checkpoint: Checkpoint
    modules: dict[str, Module]
    scheme: str | None
    trainer: str | None
    rslora: RsloraReading
    dora: DoraReading
    evidence: tuple[Evidence, ...]
    flags: tuple[str, ...]
    unclaimed: tuple[str, ...]
    problems: tuple[Problem, ...]

    @property
    def contributions(self) -> Iterable[Contribution]:
        """Every contribution of every module."""
        return (contribution for module in self.modules.values() for contribution in module.contributions)

    def refuse(self) -> None:
        """Raises LoraInspectError with the first problem that is an error, or where the file is no adapter at all."""
        for problem in self.problems:
            if problem.severity == "error":
                raise LoraInspectError(f"{self.checkpoint.path}: {problem.message}.")
        if not self.modules:
            tensors = len(self.checkpoint.tensors)
            raise LoraInspectError(
                f"{self.checkpoint.path}: none of its {tensors} tensors belongs to a known adapter; name an adapter."
            )


def read_adapter(checkpoint: Checkpoint, overrides: Overrides = Overrides()) -> Adapter:  # noqa: B008 (frozen)
    """Reads the meaning of every tensor. Problems are listed, not raised; unreadable numbers raise LoraInspectError."""
    claims = claim(checkpoint.tensors)
    numbers = _read_numbers(checkpoint, claims)
    configs = _find_configs(checkpoint, claims)
    lora_configs = {found.where: found.config for found in configs if found.config.get("peft_type", "LORA") == "LORA"}
    facts = [_facts(contribution, numbers.get(contribution.module.key)) for contribution in _computed(claims)]
    stated, about_rslora = _read_rslora(facts, claims, numbers, checkpoint.metadata, lora_configs)
    rslora = stated
    if overrides.rslora is not None and not stated.settled:
        rslora = RsloraReading(overrides.rslora, "option")
        says = f"the scale is {RANK_STABILISED if overrides.rslora else STANDARD}"
        about_rslora.append(Evidence("rslora", says, "--rslora"))
    dora_flag = bool(numbers[evidence.DORA_FLAG]) if evidence.DORA_FLAG in claims.flags else None
    dora, about_dora, about_magnitudes = evidence.read_dora(facts, dora_flag, checkpoint.metadata, lora_configs)
    modules = {
        name: _with_scales(module, numbers, configs, rslora, overrides) for name, module in claims.modules.items()
    }
    return Adapter(
        checkpoint=checkpoint,
        modules=modules,
        scheme=_scheme_of(claims),
        trainer=find_trainer(checkpoint.metadata, checkpoint.tensors, has_peft_config=bool(configs)),
        rslora=rslora,
        dora=dora,
        evidence=(*about_rslora, *about_dora),
        flags=claims.flags,
        unclaimed=claims.unclaimed,
        problems=(
            *claims.problems,
            *problems.of_configs({found.where: found.config for found in configs}, checkpoint.metadata),
            *(p for p in about_magnitudes if p.code != "dora-partial" or not overrides.allow_partial_dora),
            *problems.of_algorithms(modules.values()),
            *problems.of_option(stated, overrides.rslora),
            *problems.of_scales(modules.values()),
            *problems.of_schemes(claims),
            *problems.of_unclaimed(claims),
            *problems.of_hint(rslora),
        ),
    )


def _read_rslora(
    facts: list[LoraFacts],
    claims: Claims,
    numbers: Mapping[str, float | int | bool | None],
    metadata: Mapping[str, str],
    configs: Mapping[str, Mapping[str, Any]],
) -> tuple[RsloraReading, list[Evidence]]:
    keys = [key for key in claims.flags if key == evidence.RSLORA_FLAG]
    keys += [module.rslora_flag.name for module in claims.modules.values() if module.rslora_flag]
    flags = {key: bool(numbers[key]) for key in keys}
    # PEFT itself never stores alpha, so a program that does has not left the rule in a config either.
    without_alpha = {module.name.scheme for module in claims.modules.values() if not module.alpha}
    needs_config = any(schemes.by_name(name).absent_alpha == "config" for name in without_alpha)
    return evidence.read_rslora(facts, flags, metadata, configs, needs_config and not configs)


def _computed(claims: Claims) -> list[Contribution]:
    """The contributions whose algorithm is built."""
    return [
        contribution
        for module in claims.modules.values()
        for contribution in module.contributions
        if contribution.algorithm.formula
    ]


def _read_numbers(checkpoint: Checkpoint, claims: Claims) -> dict[str, float | int | bool | None]:
    """Alphas by module name and flags by key."""
    alphas = {name: module.alpha.name for name, module in claims.modules.items() if module.alpha}
    flags = [module.rslora_flag.name for module in claims.modules.values() if module.rslora_flag]
    values = checkpoint.numbers([*alphas.values(), *flags, *claims.flags])
    return {**values, **{name: values[key] for name, key in alphas.items()}}


def _facts(contribution: Contribution, alpha: float | int | bool | None) -> LoraFacts:
    return LoraFacts(
        module=contribution.module.key,
        rank=contribution.formula.rank(contribution.factors),
        alpha=None if alpha is None else float(alpha),
        linear=contribution.is_linear,
        split=contribution.rows is not None,
        magnitude_axis=contribution.magnitude.axis if contribution.magnitude else None,
    )


def _scheme_of(claims: Claims) -> str | None:
    names = {module.name.scheme for module in claims.modules.values()}
    return names.pop() if len(names) == 1 else ("mixed" if names else None)


def _find_configs(checkpoint: Checkpoint, claims: Claims) -> list[FoundConfig]:
    """The LoraConfigs that belong to the file: those embedded in it, and the one beside it."""
    found = [
        FoundConfig(f"metadata {peft_config.EMBEDDED_KEY} {prefix}".rstrip(), prefix, config)
        for prefix, config in peft_config.embedded_configs(checkpoint.metadata).items()
    ]
    config, path = checkpoint.config, checkpoint.config_path
    if config is not None and path is not None and peft_config.is_peft_config(config):
        named = os.path.basename(checkpoint.files[0]).startswith(PEFT_WEIGHTS)
        if named or _config_fits(config, claims):
            found.append(FoundConfig(path, "", config))
    return found


def _config_fits(config: Mapping[str, Any], claims: Claims) -> bool:
    """Whether ranks and targets of a config are those of the tensors; names without dots cannot be compared."""
    contributions = _computed(claims)
    return bool(contributions) and all(
        not contribution.module.flat
        and peft_config.config_rank(config, contribution.module.body) == contribution.formula.rank(contribution.factors)
        and _is_target(config.get("target_modules"), contribution.module.body)
        for contribution in contributions
    )


def _is_target(targets: Any, path: str) -> bool:
    if isinstance(targets, str):
        try:
            return targets == "all-linear" or re.fullmatch(targets, path) is not None
        except re.error:
            return False
    return isinstance(targets, list) and any(path == target or path.endswith(f".{target}") for target in targets)


def _config_for(contribution: Contribution, configs: Sequence[FoundConfig]) -> dict[str, Any] | None:
    """The config of the contribution's own component, else one that speaks of no component in particular."""
    for prefix in (contribution.module.prefix, ""):
        for found in configs:
            if found.prefix == prefix:
                return found.config
    return None


def _with_scales(
    module: Module,
    numbers: Mapping[str, float | int | bool | None],
    configs: Sequence[FoundConfig],
    rslora: RsloraReading,
    overrides: Overrides,
) -> Module:
    return module._replace(
        contributions=tuple(
            _with_scale(contribution, module, numbers, _config_for(contribution, configs), rslora, overrides)
            for contribution in module.contributions
        )
    )


def _with_scale(
    contribution: Contribution,
    module: Module,
    numbers: Mapping[str, float | int | bool | None],
    config: Mapping[str, Any] | None,
    rslora: RsloraReading,
    overrides: Overrides,
) -> Contribution:
    """The contribution with rank, alpha and scale, or with the reason why the scale is unknown."""
    if contribution.algorithm.formula is None:
        return contribution
    rank = contribution.formula.rank(contribution.factors)
    transposed = bool(config and config.get("fan_in_fan_out")) and contribution.is_linear
    contribution = contribution._replace(rank=rank, transposed=transposed)
    alpha, why = _alpha(contribution, module, numbers, config, rank)
    if alpha is None and overrides.alpha is not None and why:
        alpha, why = overrides.alpha, ""
    if why:
        return contribution._replace(alpha=alpha, why=why)
    if alpha is None:
        return contribution._replace(
            scale=1.0, why=f"no alpha, which means scale 1 in the {contribution.module.scheme} scheme"
        )
    if rslora.value is None and rank > 1:
        cause = "conflicts" if rslora.source == "conflict" else "is missing"
        return contribution._replace(
            alpha=alpha, why=f"the evidence for RS-LoRA {cause}; settle it with --rslora yes|no"
        )
    rule = bool(rslora.value)
    why = f"{alpha:g}/sqrt({rank})" if rule else f"{alpha:g}/{rank}"
    return contribution._replace(alpha=alpha, rslora=rule, scale=scale_of(alpha, rank, rule), why=why)


def _alpha(
    contribution: Contribution,
    module: Module,
    numbers: Mapping[str, float | int | bool | None],
    config: Mapping[str, Any] | None,
    rank: int,
) -> tuple[float | None, str]:
    """Alpha with an empty reason, or why it is unknown. (None, "") means that the scheme has none: scale 1."""
    configured = peft_config.config_alpha(config, contribution.module.body) if config else None
    if module.alpha:
        stored = numbers[module.name.key]
        if stored is None or not math.isfinite(stored):
            return None, f"{module.alpha.name} is no finite number; give --alpha N"
        if stored == 0:
            return None, f"{module.alpha.name} is 0, which programs read differently; give --alpha N"
        if configured is not None and not evidence.close(configured, float(stored)):
            return None, f"{module.alpha.name} is {stored:g} and the config's alpha {configured:g}; give --alpha N"
        return float(stored), ""
    if config is not None:
        expected = peft_config.config_rank(config, contribution.module.body)
        if expected != rank:
            return (
                None,
                f"the config's rank is {expected} and the tensors' is {rank}, so it is not theirs; give --alpha N",
            )
        if configured is None:
            return None, "the config's lora_alpha is no number; give --alpha N"
        return configured, ""
    if schemes.by_name(contribution.module.scheme).absent_alpha == "config":
        return None, (
            "PEFT keeps alpha and the scale rule in adapter_config.json, which is not there; "
            "put it beside the file, or give --alpha N and --rslora yes|no"
        )
    return None, ""
