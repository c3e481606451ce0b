"""The adapter: the meaning of every tensor of a checkpoint, with its evidence and problems."""

from collections.abc import Iterable

from lora_inspect.algorithms.record import BIAS
from lora_inspect.errors import RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.files.system import without_collecting
from lora_inspect.reading.keys.groups import changes_of_kinds, claim_as_before
from lora_inspect.reading.metadata.trainers import find_trainer
from lora_inspect.reading.model.contribution import Contribution, Embedding, Module
from lora_inspect.reading.model.evidence import ERROR, REPEATS, DoraReading, Evidence, Problem, RsloraReading
from lora_inspect.reading.model.settings import Settings
from lora_inspect.reading.peft.regex import Steps
from lora_inspect.reading.problems import DAMAGED, find_problems, kind_of_error
from lora_inspect.reading.scale.scales import ALPHA_MISSING, SCALE_UNKNOWN, open_settings
from lora_inspect.reading.state import Reading
from lora_inspect.reading.steps import STEPS


class Adapter(NamedTuple):
    """The meaning of a checkpoint: modules by name, evidence, problems and unclaimed keys.

    `rslora` sums up the modules: its value is None if their settled rules differ; each contribution has its own.
    `settings` are those of the user. `embeddings` are of tokens and belong to no module.
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
    embeddings: tuple[Embedding, ...] = ()

    @property
    def other_keys(self) -> tuple[str, ...]:
        """The keys outside the modules: embeddings and unclaimed keys."""
        return (*(key for embedding in self.embeddings for key in embedding.keys), *self.unclaimed)

    def without_biases(self) -> "tuple[Adapter, list[Contribution]]":
        """Return the adapter without its changes of biases, and these; a module that changes nothing else is dropped.

        Raises LoraInspectError if it has no other change.
        """
        biases = [change for change in self.contributions if change.algorithm.parameter == BIAS]
        if not biases:
            return self, biases
        others = {
            key: tuple(change for change in module.contributions if change.algorithm.parameter != BIAS)
            for key, module in self.modules.items()
        }
        modules = {key: self.modules[key]._replace(contributions=changes) for key, changes in others.items() if changes}
        if not modules:
            raise RefusedError(self.checkpoint.path, "it changes only biases", "leave --drop-biases out")
        return self._replace(modules=modules), biases

    @property
    def unknown(self) -> tuple[str, ...]:
        """The unclaimed keys, except copies of base tensors below a module."""
        if not self.unclaimed:
            return ()
        from lora_inspect.reading.peft.saved_tensors import copies_below  # few files have such keys

        copies = copies_below(self.unclaimed, self.modules)
        return tuple(key for key in self.unclaimed if key not in copies)

    @property
    def contributions(self) -> Iterable[Contribution]:
        """All contributions of all modules."""
        return (contribution for module in self.modules.values() for contribution in module.contributions)

    @property
    def open(self) -> tuple[str, ...]:
        """The facts that a user must settle to make every change known: "alpha", "rslora", "expert_packing"."""
        packing = any(one.algorithm.packed and one.unsettled for one in changes_of_kinds(self.modules))
        return (*open_settings(self.contributions), *(("expert_packing",) if packing else ()))

    def settings_with(self, alpha: float, rslora: bool) -> Settings:
        """Return the settings of the user, with these answers where the scale waits for them."""
        waits = self.open
        return self.settings._replace(
            alpha=alpha if "alpha" in waits else self.settings.alpha,
            rslora=rslora if "rslora" in waits else self.settings.rslora,
        )

    @property
    def is_scale_open(self) -> bool:
        """Return True if an unknown scale is the only error."""
        return {problem.code for problem in self.problems if problem.severity == ERROR} == {SCALE_UNKNOWN}

    @property
    def notes(self) -> list[str]:
        """Sentences on settings that were not needed, and on damaged evidence or alphas."""
        told = [problem for problem in self.problems if problem.code in (REPEATS, DAMAGED, ALPHA_MISSING)]
        return [f"{self.checkpoint.path}: {problem.message}." for problem in told]

    def refuse(self) -> None:
        """Raise LoraInspectError for the first problem that is an error, or if there is no module."""
        for problem in self.problems:
            if problem.severity == ERROR:
                raise kind_of_error(problem).of(self.checkpoint.path, problem.message)
        if not self.modules and self.embeddings:
            from lora_inspect.reading.embeddings import in_words

            raise RefusedError(
                self.checkpoint.path,
                f"it holds {in_words(self.embeddings)} but no adapter, and an embedding changes no weight",
                "load it next to the model as it is",
            )
        if not self.modules:
            tensors = len(self.checkpoint.tensors)
            raise RefusedError(
                self.checkpoint.path, f"none of its {tensors} tensors belongs to a known adapter", "name an adapter"
            )


def read_adapter(checkpoint: Checkpoint, settings: Settings = Settings()) -> Adapter:  # noqa: B008 (frozen)
    """Read the meaning of every tensor.

    Problems are listed, not raised. Unreadable numbers raise LoraInspectError.
    """
    with without_collecting():
        reading = Reading(checkpoint, settings, claim_as_before(checkpoint.tensors), Steps())
        for step in STEPS:
            reading = step(reading)
        return Adapter(
            checkpoint=checkpoint,
            modules=reading.modules,
            scheme=reading.claims.scheme,
            trainer=find_trainer(
                checkpoint.metadata,
                checkpoint.tensors,
                has_peft_config=bool(reading.configs),
                is_of_mlx=reading.rules.config is not None,
            ),
            rslora=reading.rslora,
            dora=reading.dora,
            evidence=reading.evidence,
            flags=reading.claims.flags,
            unclaimed=reading.claims.unclaimed,
            problems=find_problems(reading),
            settings=settings,
            embeddings=reading.embeddings,
        )
