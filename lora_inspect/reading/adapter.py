"""From a checkpoint to an adapter: what every tensor means, on which evidence, and what is wrong with the file."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from lora_inspect import schemes
from lora_inspect.errors import LoraInspectError
from lora_inspect.files.checkpoint import Checkpoint, read_row
from lora_inspect.reading.claim import Claims, claim
from lora_inspect.reading.contribution import Contribution, Module
from lora_inspect.reading.dora_evidence import DoraClaim, config_claim, flag_claim, read_dora
from lora_inspect.reading.evidence import (
    DORA_FLAG,
    RSLORA_FLAG,
    DoraReading,
    Evidence,
    LoraFacts,
    RsloraReading,
    read_flag,
)
from lora_inspect.reading.file_reading import FileReading
from lora_inspect.reading.found_configs import FoundConfig, Speakers, find_configs
from lora_inspect.reading.peft_config import LORA_TYPE
from lora_inspect.reading.problem import ERROR, Problem
from lora_inspect.reading.problems import find_problems
from lora_inspect.reading.scale_problems import REPEATS, open_settings
from lora_inspect.reading.scale_rules import RuledGroup, Voice, read_group, sum_up, voice_of
from lora_inspect.reading.scales import Counted, ScaleSources, with_scales
from lora_inspect.reading.settings import Settings
from lora_inspect.reading.steps import Steps
from lora_inspect.reading.trainers import find_trainer

if TYPE_CHECKING:
    from lora_inspect.reading.asked_ranks import AskedRanks


class Adapter(NamedTuple):
    """A file read: modules by name, readings with their evidence, problems, and the keys that nobody claims.

    `rslora` sums up the modules: where settled rules differ between them its value is None, and each
    contribution has its own. `settings` are what the user settled.
    """

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
    settings: Settings = Settings()

    @property
    def contributions(self) -> Iterable[Contribution]:
        """Every contribution of every module."""
        return (contribution for module in self.modules.values() for contribution in module.contributions)

    @property
    def open(self) -> tuple[str, ...]:
        """What a user has to settle before every scale is known: "alpha", "rslora", both or neither."""
        return open_settings(self.contributions)

    @property
    def notes(self) -> list[str]:
        """What the settings said without need, a sentence each."""
        told = [problem for problem in self.problems if problem.code == REPEATS]
        return [f"{self.checkpoint.path}: {problem.message}." for problem in told]

    def refuse(self) -> None:
        """Raises LoraInspectError with the first problem that is an error, or where the file is no adapter at all."""
        for problem in self.problems:
            if problem.severity == ERROR:
                raise LoraInspectError(f"{self.checkpoint.path}: {problem.message}.")
        if not self.modules:
            tensors = len(self.checkpoint.tensors)
            raise LoraInspectError(
                f"{self.checkpoint.path}: none of its {tensors} tensors belongs to a known adapter; name an adapter."
            )


Numbers = Mapping[str, float | int | bool | None]


# What no evidence for RS-LoRA speaks of.
_STANDARD = RsloraReading(False, "default")


class _Part(NamedTuple):
    """One contribution whose scale may be rank-stabilised, with all that it is read from."""

    module: Module
    contribution: Contribution
    facts: LoraFacts
    configs: tuple[FoundConfig, ...]
    voice: Voice
    counted: Counted


def read_adapter(checkpoint: Checkpoint, settings: Settings = Settings()) -> Adapter:  # noqa: B008 (frozen)
    """Reads the meaning of every tensor. Problems are listed, not raised; unreadable numbers raise LoraInspectError."""
    claims = claim(checkpoint.tensors)
    numbers = _read_numbers(checkpoint, claims)
    steps = Steps()
    configs = find_configs(checkpoint, [c for _, c in _computed(claims)], steps)
    asked = _read_asked_ranks(checkpoint.metadata, steps)
    parts = _parts(claims, numbers, configs, asked, checkpoint)
    groups = _read_groups(parts, claims, numbers, configs, checkpoint.metadata)
    settled = {voice: group.settled(settings.rslora) for voice, group in groups.items()}
    facts = [_facts(c, numbers.get(module.name.key)) for module, c in _computed(claims) if c.algorithm.decomposes]
    dora, about_dora, about_magnitudes = read_dora(
        facts, _dora_claims(parts, facts, claims, numbers), checkpoint.metadata
    )
    scaled = partial(_with_scales, claims, numbers, configs, parts, settled)
    modules = scaled(settings)
    rslora = sum_up(list(settled.values()))
    reading = FileReading(
        checkpoint=checkpoint,
        settings=settings,
        claims=claims,
        configs=configs,
        modules=modules,
        scaled=scaled,
        stated=[group.reading for group in groups.values()],
        rslora=rslora,
        about_magnitudes=about_magnitudes,
    )
    return Adapter(
        checkpoint=checkpoint,
        modules=modules,
        scheme=_scheme_of(claims),
        trainer=find_trainer(checkpoint.metadata, checkpoint.tensors, has_peft_config=bool(configs)),
        rslora=rslora,
        dora=dora,
        evidence=(*_about_rules(settled.values()), *about_dora, *_about_parts(parts)),
        flags=claims.flags,
        unclaimed=claims.unclaimed,
        problems=find_problems(reading),
        settings=settings,
    )


def _computed(claims: Claims) -> Iterable[tuple[Module, Contribution]]:
    """The contributions whose algorithm is built, with their modules."""
    return (
        (module, contribution)
        for module in claims.modules.values()
        for contribution in module.contributions
        if contribution.algorithm.formula
    )


def _parts(
    claims: Claims,
    numbers: Numbers,
    configs: Sequence[FoundConfig],
    asked: "AskedRanks | None",
    checkpoint: Checkpoint,
) -> list[_Part]:
    flags = {
        module.rslora_flag.name: read_flag(numbers[module.rslora_flag.name])
        for module in claims.modules.values()
        if module.rslora_flag
    }
    speakers = Speakers(configs)
    parts = []
    for module, contribution in _computed(claims):
        if not contribution.formula.rslora:
            continue
        found = speakers.of(contribution)
        voice = voice_of(module, contribution, flags, found, bool(flags))
        facts = _facts(contribution, numbers.get(contribution.module.key))
        counted = asked.counted(contribution, facts.alpha, partial(read_row, checkpoint)) if asked else Counted()
        parts.append(_Part(module, contribution, facts, found, voice, counted))
    return parts


def _read_asked_ranks(metadata: Mapping[str, str], steps: Steps) -> "AskedRanks | None":
    """What sd-scripts was asked for; its tables are loaded only for a file that names one of its networks."""
    if not metadata.get("ss_network_module", "").startswith("networks."):
        return None
    from lora_inspect.reading.asked_ranks import read_asked_ranks

    return read_asked_ranks(metadata, steps)


def _read_groups(
    parts: Sequence[_Part],
    claims: Claims,
    numbers: Numbers,
    configs: Sequence[FoundConfig],
    metadata: Mapping[str, str],
) -> dict[Voice, RuledGroup]:
    """The scale rule by voice; a file without a single part has one group of no modules."""
    members: dict[Voice, list[_Part]] = {}
    for part in parts:
        members.setdefault(part.voice, []).append(part)
    if not members:
        where = tuple(found.where for found in configs if found.peft_type == LORA_TYPE)
        names = [module.name for module in claims.modules.values() if not module.alpha]
        in_config = any(schemes.by_name(name.scheme).absent_alpha == "config" for name in names)
        members[Voice(None, where, in_config and not where, False)] = []
    network = [key for key in claims.flags if key == RSLORA_FLAG]
    groups = {}
    for voice, own in members.items():
        keys = dict.fromkeys([*network, *(part.module.rslora_flag.name for part in own if part.module.rslora_flag)])
        flags = {key: read_flag(numbers[key]) for key in keys}
        groups[voice] = read_group(voice, [part.facts for part in own], flags, metadata, configs)
    return groups


def _about_rules(groups: Iterable[RuledGroup]) -> Iterable[Evidence]:
    return dict.fromkeys(item for group in groups for item in group.evidence)


def _about_parts(parts: Sequence[_Part]) -> list[Evidence]:
    split = Counter(part.counted.parts for part in parts if part.counted.parts > 1)
    return [
        Evidence(
            "scale",
            f"{modules} modules were trained in {count} parts and saved as one: their alpha counts {count} times",
            "metadata ss_network_args split_qkv",
        )
        for count, modules in sorted(split.items())
    ]


def _dora_claims(
    parts: Sequence[_Part], facts: Sequence[LoraFacts], claims: Claims, numbers: Numbers
) -> list[DoraClaim]:
    """What the flag says of all modules, and each config of those that it gives the rank of."""
    found = [flag_claim(read_flag(numbers[DORA_FLAG]), facts)] if DORA_FLAG in claims.flags else []
    theirs: dict[str, list[LoraFacts]] = {}
    configs = {config.where: config.config for part in parts for config in part.configs}
    for part in parts:
        for where in part.voice.configs:
            theirs.setdefault(where, []).append(part.facts)
    return [*found, *(config_claim(where, configs[where], own) for where, own in theirs.items())]


def _read_numbers(checkpoint: Checkpoint, claims: Claims) -> dict[str, float | int | bool | None]:
    """Alphas by module name and flags by key."""
    alphas = {name: module.alpha.name for name, module in claims.modules.items() if module.alpha}
    flags = [module.rslora_flag.name for module in claims.modules.values() if module.rslora_flag]
    values = checkpoint.numbers([*alphas.values(), *flags, *claims.flags])
    return {**values, **{name: values[key] for name, key in alphas.items()}}


def _facts(contribution: Contribution, alpha: float | int | bool | None) -> LoraFacts:
    return LoraFacts(
        module=contribution.module.key,
        rank=contribution.formula.rank(contribution.shapes) or 0,
        alpha=None if alpha is None else float(alpha),
        linear=contribution.is_linear,
        split=contribution.rows is not None,
        magnitude_axis=contribution.magnitude.axis if contribution.magnitude else None,
    )


def _scheme_of(claims: Claims) -> str | None:
    names = {module.name.scheme for module in claims.modules.values()}
    return names.pop() if len(names) == 1 else ("mixed" if names else None)


def _with_scales(
    claims: Claims,
    numbers: Numbers,
    configs: Sequence[FoundConfig],
    parts: Sequence[_Part],
    groups: Mapping[Voice, RuledGroup],
    settings: Settings,
) -> dict[str, Module]:
    """The modules with rank, alpha and scale in every contribution that is computed."""
    speakers = Speakers(configs)
    stabilised = iter(parts)

    def sources(module: Module, contribution: Contribution) -> ScaleSources:
        if contribution.formula.rslora:
            part = next(stabilised)
            return ScaleSources(module, part.facts.alpha, part.configs, groups[part.voice].reading, part.counted)
        return ScaleSources(module, numbers.get(module.name.key), speakers.of(contribution), _STANDARD)

    return {
        name: module._replace(contributions=with_scales(module.contributions, partial(sources, module), settings))
        for name, module in claims.modules.items()
    }
