"""The state of a reading, which each step takes and returns, and the rules of the file's program."""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.reading.keys.claims import Claims
from lora_inspect.reading.keys.groups import StoredNumbers
from lora_inspect.reading.model.contribution import Contribution, Counting, Embedding, Module
from lora_inspect.reading.model.evidence import DoraClaim, DoraReading, Evidence, LoraFacts, RawProblem, RsloraReading
from lora_inspect.reading.model.settings import Settings
from lora_inspect.reading.peft.config_lookup import FoundConfig
from lora_inspect.reading.peft.regex import Steps

if TYPE_CHECKING:
    from lora_inspect.reading.mlx_config import MlxConfig


class OwnRules(Protocol):
    """The rules of the program that wrote a file; these defaults change nothing."""

    @property
    def config(self) -> "MlxConfig | None":
        """The program's config, if its files have one."""
        return None

    def claimed(self, claims: "Claims") -> "Claims":
        """Return the claims with each module in the form that the program gives it."""
        return claims

    def dora(self, facts: Sequence[LoraFacts], claims: "Claims") -> Sequence[DoraClaim]:
        """Return the claims on DoRA in the program's config."""
        return ()

    def scaled(self, modules: dict[str, Module], settings: Settings) -> dict[str, Module]:
        """Return the modules with the program's scales."""
        return modules

    def about(self, contributions: Iterable[Contribution]) -> Iterable[Evidence]:
        """Return the evidence in the program's config."""
        return ()

    def no_adapter(self, files: Sequence[str]) -> Iterable[RawProblem]:
        """Return findings that show why the program's `files` are no adapter."""
        return ()

    def trained_otherwise(self, contributions: Iterable[Contribution]) -> Iterable[RawProblem]:
        """Return findings on another scale that the file was trained with."""
        return ()


class NoRules(OwnRules):
    """The rules of most programs: none."""


class Reading(NamedTuple):
    """All facts that are known of a file so far; every step takes one and returns the next.

    `budget` is the effort left for comparing patterns with names. `configs` are those of PEFT. `rules` are those of the
    program that wrote the file. `norms` names the weights with the norms that magnitudes of outputs refer to. `scaled`
    gives the modules with their scales under any settings, `modules` those under the file's own, and `contributions`
    all of theirs. `stated` are the scale rules as the file states them; `rslora` sums them up with the settings.
    `about_rules`, `about_dora`, `about_norms` and `about_parts` wait for their turn in `evidence`. `wrong_norms` and
    `about_magnitudes` are findings.
    """

    checkpoint: Checkpoint
    settings: Settings
    claims: Claims
    budget: Steps
    evidence: tuple[Evidence, ...] = ()
    rules: OwnRules = NoRules()
    numbers: StoredNumbers = StoredNumbers({}, {}, {})
    configs: Sequence[FoundConfig] = ()
    embeddings: tuple[Embedding, ...] = ()
    norms: str | None = None
    about_norms: tuple[Evidence, ...] = ()
    wrong_norms: tuple[RawProblem, ...] = ()
    counting: Counting = Counting()
    rslora: RsloraReading = RsloraReading(None, "default")
    stated: Sequence[RsloraReading] = ()
    about_rules: Sequence[Evidence] = ()
    dora: DoraReading = DoraReading(None, "default", 0, None)
    about_dora: Sequence[Evidence] = ()
    about_magnitudes: Sequence[RawProblem] = ()
    about_parts: Sequence[Evidence] = ()
    scaled: Callable[[Settings], dict[str, Module]] = lambda settings: {}
    modules: dict[str, Module] = {}  # noqa: RUF012 (replaced, never changed)
    contributions: Sequence[Contribution] = ()

    def with_evidence(self, evidence: Iterable[Evidence]) -> "Reading":
        """Return the reading with more evidence after the present one."""
        return self._replace(evidence=(*self.evidence, *evidence))
