"""From a checkpoint to an adapter: what every tensor means, on which evidence, and what is wrong with the file."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from lora_inspect.errors import RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.reading import rare_steps as rare
from lora_inspect.reading.file_reading import FileReading
from lora_inspect.reading.keys.groups import alike, changes_of_kinds, computed, kinds_of, read_numbers
from lora_inspect.reading.metadata.trainers import find_trainer
from lora_inspect.reading.model.contribution import Contribution, Module
from lora_inspect.reading.model.evidence import ERROR, DoraReading, Evidence, Problem, RsloraReading
from lora_inspect.reading.model.settings import Settings
from lora_inspect.reading.peft.config_lookup import find_configs
from lora_inspect.reading.peft.regex import Steps
from lora_inspect.reading.problems import ALPHA_MISSING, DAMAGED, REPEATS, find_problems, kind_of_error, open_settings
from lora_inspect.reading.scale.dora_evidence import dora_claims, read_dora
from lora_inspect.reading.scale.scale_rules import facts_of, read_groups, read_ruled, rslora_of_groups, scaled_modules
from lora_inspect.reading.scale.scales import about_hidden_ranks, about_parts

if TYPE_CHECKING:  # where a file has some, and few have
    from lora_inspect.reading.embeddings import Embedding


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
    def unknown(self) -> tuple[str, ...]:
        """The keys that nobody claims, but for copies of what the base has below a module."""
        if not self.unclaimed:
            return ()
        from lora_inspect.reading.peft.saved_tensors import copies_below  # few files have such keys

        copies = copies_below(self.unclaimed, self.modules)
        return tuple(key for key in self.unclaimed if key not in copies)

    @property
    def contributions(self) -> Iterable[Contribution]:
        """Every contribution of every module."""
        return (contribution for module in self.modules.values() for contribution in module.contributions)

    @property
    def open(self) -> tuple[str, ...]:
        """What a user has to settle before every change is known, of "alpha", "rslora" and "expert_packing"."""
        packing = any(one.algorithm.packed and one.unsettled for one in changes_of_kinds(self.modules))
        return (*open_settings(self.contributions), *(("expert_packing",) if packing else ()))

    @property
    def notes(self) -> list[str]:
        """What the settings said without need, and what was lost of the evidence or of the alphas, a sentence each."""
        told = [problem for problem in self.problems if problem.code in (REPEATS, DAMAGED, ALPHA_MISSING)]
        return [f"{self.checkpoint.path}: {problem.message}." for problem in told]

    def refuse(self) -> None:
        """Raises LoraInspectError with the first problem that is an error, or where the file is no adapter at all."""
        for problem in self.problems:
            if problem.severity == ERROR:
                raise kind_of_error(problem).of(self.checkpoint.path, problem.message)
        if not self.modules and self.embeddings:
            from lora_inspect.reading.embeddings import in_words

            raise RefusedError(
                self.checkpoint.path,
                f"it holds {in_words(self.embeddings)} and no adapter: an embedding changes no weight, so leave it as "
                "it is and load it beside the model",
            )
        if not self.modules:
            tensors = len(self.checkpoint.tensors)
            raise RefusedError(
                self.checkpoint.path, f"none of its {tensors} tensors belongs to a known adapter", "name an adapter"
            )


def read_adapter(checkpoint: Checkpoint, settings: Settings = Settings()) -> Adapter:  # noqa: B008 (frozen)
    """Reads the meaning of every tensor. Problems are listed, not raised; unreadable numbers raise LoraInspectError."""
    claims, about_names = rare.named(rare.claimed(checkpoint), checkpoint.metadata)
    claims = rare.with_shared(claims, checkpoint.tensors)
    claims = rare.with_stacked(rare.with_alpha_of_all(claims, checkpoint.alpha))
    rules = rare.rules_of(checkpoint, claims)
    claims = rules.claimed(claims)
    numbers = read_numbers(checkpoint, claims)
    steps = Steps()
    configs = find_configs(checkpoint, lambda found: [c for _, c in rare.with_experts(claims, [found]).computed], steps)
    claims = rare.with_experts(claims, configs)
    claims = rare.with_saved(claims, checkpoint.tensors, configs, steps)
    claims, embeddings = rare.without_embeddings(claims, checkpoint)
    claims, norms, about_norms, wrong_norms = rare.with_norms(claims, checkpoint.metadata)
    counting = rare.counting(checkpoint, steps)
    by_path = counting.by_name or any(found.modules.tells_apart for found in configs)
    kinds = kinds_of(claims.modules, numbers, by_path)
    ruled = read_ruled(kinds, numbers, configs, counting)
    groups = read_groups(ruled, claims, numbers, configs, checkpoint.metadata)
    settled = {voice: group.settled(settings.rslora) for voice, group in groups.items()}
    rslora = rslora_of_groups(list(settled.values()))
    known = {id(one.contribution): one.facts for one in ruled}
    facts = [
        known.get(id(contribution)) or facts_of(kind, contribution, numbers)
        for kind, contribution in computed(kinds)
        if contribution.algorithm.decomposes
    ]
    said = [*dora_claims(ruled, facts, numbers.flags), *rules.dora(facts, claims)]
    dora, about_dora, about_magnitudes = read_dora(facts, said, checkpoint.metadata)

    def scaled(settings: Settings) -> dict[str, Module]:
        return rules.scaled(scaled_modules(claims, kinds, numbers, configs, ruled, settled, settings), settings)

    modules = rare.with_settings(scaled(settings), configs, checkpoint.metadata, numbers)
    modules = rare.with_packing(modules, configs, checkpoint.metadata, settings.expert_packing)
    modules = alike(rare.with_residual_bases(modules, configs, checkpoint.metadata, settings.residual))
    reading = FileReading(
        checkpoint=checkpoint,
        settings=settings,
        claims=claims,
        configs=configs,
        rules=rules,
        modules=modules,
        contributions=[contribution for module in modules.values() for contribution in module.contributions],
        scaled=scaled,
        stated=[group.reading for group in groups.values()],
        rslora=rslora,
        about_magnitudes=[*about_magnitudes, *wrong_norms],
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
        dora=dora._replace(norms=norms),
        evidence=(
            *about_names,
            *rare.about_method(configs, bool(claims.modules)),
            *about_rules,
            *about_dora,
            *about_norms,
            *rare.about_alpha_of_all(checkpoint),
            *about_parts((one.counted, one.facts.modules) for one in ruled),
            *rare.about_saved(claims, configs),
            *rules.about(reading.contributions),
            *rare.about_experts(reading),
            *rare.about_attention(reading),
            *rare.about_residuals(reading),
            *about_hidden_ranks(reading.contributions, claims.flags),
        ),
        flags=claims.flags,
        unclaimed=claims.unclaimed,
        problems=find_problems(reading),
        settings=settings,
        embeddings=embeddings,
    )
