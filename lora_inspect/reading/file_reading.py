"""All that is read of a file, before anything is said against it.

What the files of a program mean by rules of its own, which are loaded for these files alone.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.reading.keys.claims import Claims
from lora_inspect.reading.model.contribution import Contribution, Module
from lora_inspect.reading.model.evidence import Evidence, Finding, LoraFacts, RsloraReading
from lora_inspect.reading.model.settings import Settings
from lora_inspect.reading.peft.config_lookup import FoundConfig
from lora_inspect.reading.scale.dora_evidence import DoraClaim

if TYPE_CHECKING:
    from lora_inspect.reading.embeddings import Embedding
    from lora_inspect.reading.mlx_config import MlxConfig


class OwnRules(Protocol):
    """The rules of a program; by default there are none, and everything stays as it is."""

    @property
    def config(self) -> "MlxConfig | None":
        """The config of the program, where its files have one."""
        return None

    def claimed(self, claims: "Claims") -> "Claims":
        """The claims with each module as what it is to the program."""
        return claims

    def dora(self, facts: Sequence[LoraFacts], claims: "Claims") -> Sequence[DoraClaim]:
        """What its config says of DoRA."""
        return ()

    def scaled(self, modules: dict[str, Module], settings: Settings) -> dict[str, Module]:
        """The modules with the scales that it has."""
        return modules

    def about(self, contributions: Iterable[Contribution]) -> Iterable[Evidence]:
        """What its config says."""
        return ()

    def no_adapter(self, files: Sequence[str]) -> Iterable[Finding]:
        """Why the `files` of it are no adapter."""
        return ()

    def trained_otherwise(self, contributions: Iterable[Contribution]) -> Iterable[Finding]:
        """With which other scale it was trained."""
        return ()


class NoRules(OwnRules):
    """Those of most programs."""


class FileReading(NamedTuple):
    """What problems are looked for in.

    `configs` are those of PEFT, and `rules` are those of the program that wrote the file.
    `scaled` gives the modules with their scales under any settings, `modules` are those under the file's own, and
    `contributions` all of theirs.
    `stated` are the scale rules as the file states them, `rslora` is what they and the settings amount to.
    `about_magnitudes` is what was found while the evidence for DoRA was read. `embeddings` are none of the claims.
    """

    checkpoint: Checkpoint
    settings: Settings
    claims: Claims
    configs: Sequence[FoundConfig]
    rules: OwnRules
    modules: dict[str, Module]
    contributions: Sequence[Contribution]
    scaled: Callable[[Settings], dict[str, Module]]
    stated: Sequence[RsloraReading]
    rslora: RsloraReading
    about_magnitudes: Sequence[Finding]
    embeddings: "Sequence[Embedding]" = ()
