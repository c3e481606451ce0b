"""From a checkpoint to an adapter: what every tensor means, on which evidence, and what is wrong with the file."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from lora_inspect.errors import LoraInspectError
from lora_inspect.files.checkpoint import Checkpoint, read_row
from lora_inspect.reading.alpha_of_all import about_alpha_of_all, claim_alpha_of_all
from lora_inspect.reading.claim import Claims, claim
from lora_inspect.reading.claim_plan import claim_as_before
from lora_inspect.reading.config_alone import about_method
from lora_inspect.reading.config_problems import DAMAGED
from lora_inspect.reading.contribution import Contribution, Module
from lora_inspect.reading.dora_evidence import dora_claims, read_dora
from lora_inspect.reading.evidence import DoraReading, Evidence, RsloraReading
from lora_inspect.reading.expert_packing import about_experts, with_packing
from lora_inspect.reading.expert_parameters import claim_experts
from lora_inspect.reading.file_reading import FileReading
from lora_inspect.reading.formula_settings import with_settings
from lora_inspect.reading.found_configs import find_configs
from lora_inspect.reading.magnitude_norms import with_stated_norms
from lora_inspect.reading.module_scales import scaled_modules
from lora_inspect.reading.own_rules import NoRules, OwnRules
from lora_inspect.reading.peft_config import is_peft_config
from lora_inspect.reading.problem import ERROR, Problem
from lora_inspect.reading.problems import find_problems
from lora_inspect.reading.residual_base import about_residuals, with_residual_bases
from lora_inspect.reading.saved_tensors import about_saved, claim_saved
from lora_inspect.reading.scale_problems import REPEATS, open_settings
from lora_inspect.reading.scale_rules import facts_of, read_groups, read_ruled, sum_up
from lora_inspect.reading.scales import Counted, about_hidden_ranks, about_parts
from lora_inspect.reading.settings import Settings
from lora_inspect.reading.shared_tensors import claim_shared
from lora_inspect.reading.stacked_factors import claim_stacked
from lora_inspect.reading.steps import Steps
from lora_inspect.reading.stored_numbers import read_numbers
from lora_inspect.reading.trainers import find_trainer, is_musubi
from lora_inspect.records import NamedTuple
from lora_inspect.schemes.cloneofsimo import CLONEOFSIMO
from lora_inspect.schemes.mlx import MLX

if TYPE_CHECKING:  # where a file has some, and few have
    from lora_inspect.reading.embeddings import Embedding

_NUMBERED = tuple(CLONEOFSIMO.prefixes)


class Adapter(NamedTuple):
    """A file read: modules by name, readings with their evidence, problems, and the keys that nobody claims.

    `rslora` sums up the modules: where settled rules differ between them its value is None, and each
    contribution has its own. `settings` are what the user settled. `embeddings` are of tokens, and of no module.
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
    embeddings: "tuple[Embedding, ...]" = ()

    @property
    def beside(self) -> tuple[str, ...]:
        """The keys beside the modules: embeddings, and what nobody claims."""
        return (*(key for embedding in self.embeddings for key in embedding.keys), *self.unclaimed)

    @property
    def contributions(self) -> Iterable[Contribution]:
        """Every contribution of every module."""
        return (contribution for module in self.modules.values() for contribution in module.contributions)

    @property
    def open(self) -> tuple[str, ...]:
        """What a user has to settle before every change is known, of "alpha", "rslora" and "expert_packing"."""
        packing = any(contribution.algorithm.packed and contribution.unsettled for contribution in self.contributions)
        return (*open_settings(self.contributions), *(("expert_packing",) if packing else ()))

    @property
    def notes(self) -> list[str]:
        """What the settings said without need, and what was lost of the evidence, a sentence each."""
        told = [problem for problem in self.problems if problem.code in (REPEATS, DAMAGED)]
        return [f"{self.checkpoint.path}: {problem.message}." for problem in told]

    def refuse(self) -> None:
        """Raises LoraInspectError with the first problem that is an error, or where the file is no adapter at all."""
        for problem in self.problems:
            if problem.severity == ERROR:
                raise LoraInspectError(f"{self.checkpoint.path}: {problem.message}.")
        if not self.modules and self.embeddings:
            from lora_inspect.reading.embeddings import in_words

            raise LoraInspectError(
                f"{self.checkpoint.path}: it holds {in_words(self.embeddings)} and no adapter: an embedding changes no "
                "weight, so leave it as it is and load it beside the model."
            )
        if not self.modules:
            tensors = len(self.checkpoint.tensors)
            raise LoraInspectError(
                f"{self.checkpoint.path}: none of its {tensors} tensors belongs to a known adapter; name an adapter."
            )


def read_adapter(checkpoint: Checkpoint, settings: Settings = Settings()) -> Adapter:  # noqa: B008 (frozen)
    """Reads the meaning of every tensor. Problems are listed, not raised; unreadable numbers raise LoraInspectError."""
    claims, about_names = _named(_claimed(checkpoint), checkpoint.metadata)
    claims = claim_shared(claims, checkpoint.tensors)
    claims = claim_stacked(claim_alpha_of_all(claims, checkpoint.alpha))
    rules = _rules_of(checkpoint, claims)
    claims = rules.claimed(claims)
    numbers = read_numbers(checkpoint, claims)
    steps = Steps()
    configs = find_configs(checkpoint, lambda found: [c for _, c in claim_experts(claims, [found]).computed], steps)
    claims = claim_experts(claims, configs)
    claims = claim_saved(claims, checkpoint.tensors, configs, steps)
    claims, embeddings = _without_embeddings(claims, checkpoint)
    stated = with_stated_norms(claims, checkpoint.metadata)
    claims = stated.claims
    ruled = read_ruled(claims, numbers, configs, _counting(checkpoint, steps))
    groups = read_groups(ruled, claims, numbers, configs, checkpoint.metadata)
    settled = {voice: group.settled(settings.rslora) for voice, group in groups.items()}
    rslora = sum_up(list(settled.values()))
    known = {id(one.contribution): one.facts for one in ruled}
    facts = [
        known.get(id(contribution)) or facts_of(contribution, numbers)
        for _, contribution in claims.computed
        if contribution.algorithm.decomposes
    ]
    said = [*dora_claims(ruled, facts, numbers.flags), *rules.dora(facts, claims)]
    dora, about_dora, about_magnitudes = read_dora(facts, said, checkpoint.metadata)

    def scaled(settings: Settings) -> dict[str, Module]:
        return dict(rules.scaled(scaled_modules(claims, numbers, configs, ruled, settled, settings), settings))

    modules = with_settings(scaled(settings), configs, checkpoint.metadata, numbers)
    modules = with_packing(modules, configs, checkpoint.metadata, settings.expert_packing)
    modules = with_residual_bases(modules, configs, checkpoint.metadata, settings.residual)
    reading = FileReading(
        checkpoint=checkpoint,
        settings=settings,
        claims=claims,
        configs=configs,
        rules=rules,
        modules=modules,
        scaled=scaled,
        stated=[group.reading for group in groups.values()],
        rslora=rslora,
        about_magnitudes=[*about_magnitudes, *stated.findings],
        embeddings=embeddings,
    )
    about_rules = dict.fromkeys(evidence for group in settled.values() for evidence in group.evidence)
    return Adapter(
        checkpoint=checkpoint,
        modules=reading.modules,
        scheme=claims.scheme,
        trainer=find_trainer(
            checkpoint.metadata, checkpoint.tensors, has_peft_config=bool(configs), is_of_mlx=rules.config is not None
        ),
        rslora=rslora,
        dora=dora._replace(norms=stated.norms),
        evidence=(
            *about_names,
            *about_method(configs, bool(claims.modules)),
            *about_rules,
            *about_dora,
            *stated.evidence,
            *about_alpha_of_all(checkpoint),
            *about_parts(one.counted for one in ruled),
            *about_saved(claims, configs),
            *rules.about(reading.contributions),
            *about_experts(list(reading.contributions), configs, checkpoint.metadata, settings.expert_packing),
            *about_residuals(reading),
            *about_hidden_ranks(reading.contributions, claims.flags),
        ),
        flags=claims.flags,
        unclaimed=claims.unclaimed,
        problems=find_problems(reading),
        settings=settings,
        embeddings=embeddings,
    )


def _claimed(checkpoint: Checkpoint) -> Claims:
    """The modules of a file, and what is wrong with layers that it numbers instead of naming them, as few files do."""
    if not any(key.startswith(_NUMBERED) for key in checkpoint.tensors):
        return claim_as_before(checkpoint.tensors)
    from lora_inspect.reading.numbered_layers import numbered_keys

    known, findings = numbered_keys(checkpoint.tensors, checkpoint.metadata)
    claims = claim(checkpoint.tensors, known)
    return claims._replace(findings=(*findings, *claims.findings))


def _named(claims: Claims, metadata: Mapping[str, str]) -> tuple[Claims, tuple[Evidence, ...]]:
    """The claims under the names of the model, where a program is known to write others, and what is said of that."""
    if not is_musubi(metadata) or all(module.name.flat for module in claims.modules.values()):
        return claims, ()
    from lora_inspect.reading.guessed_dots import with_true_dots

    return with_true_dots(claims, metadata)


def _rules_of(checkpoint: Checkpoint, claims: Claims) -> OwnRules:
    """The rules of the program that wrote the file, where those are its own."""
    config = checkpoint.config
    has_names = any(module.name.scheme == MLX.name for module in claims.modules.values())
    if not has_names and (config is None or is_peft_config(config)):
        return NoRules()
    from lora_inspect.reading.mlx_modules import MlxRules

    return MlxRules(checkpoint)


def _without_embeddings(claims: Claims, checkpoint: Checkpoint) -> tuple[Claims, "tuple[Embedding, ...]"]:
    """The claims without embeddings of tokens, which are among the keys that no module has, and these."""
    if not claims.unclaimed:
        return claims, ()
    from lora_inspect.reading.embeddings import claim_embeddings

    return claim_embeddings(claims, checkpoint.tensors, checkpoint.metadata)


def _counting(checkpoint: Checkpoint, steps: Steps) -> Callable[[Contribution, float | None], Counted]:
    """How often an alpha counts, by what sd-scripts was asked for.

    The tables of that are loaded only for a file that names one of its networks.
    """
    if checkpoint.metadata.get("ss_network_module", "").startswith("networks."):
        from lora_inspect.reading.asked_ranks import read_asked_ranks

        if asked := read_asked_ranks(checkpoint.metadata, steps):
            return partial(asked.counted, read_row=partial(read_row, checkpoint))
    return lambda contribution, alpha: Counted()
