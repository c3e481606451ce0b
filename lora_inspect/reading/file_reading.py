"""All that is read of a file, before anything is said against it."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.reading.claim import Claims
from lora_inspect.reading.contribution import Contribution, Module
from lora_inspect.reading.embeddings import Embedding
from lora_inspect.reading.evidence import RsloraReading
from lora_inspect.reading.found_configs import FoundConfig
from lora_inspect.reading.mlx_config import MlxConfig
from lora_inspect.reading.problem import Finding
from lora_inspect.reading.settings import Settings


class FileReading(NamedTuple):
    """What problems are looked for in.

    `configs` are those of PEFT, and `mlx` is that of mlx-lm, None where there is none.
    `scaled` gives the modules with their scales under any settings, `modules` are those under the file's own.
    `stated` are the scale rules as the file states them, `rslora` is what they and the settings amount to.
    `about_magnitudes` is what was found while the evidence for DoRA was read. `embeddings` are none of the claims.
    """

    checkpoint: Checkpoint
    settings: Settings
    claims: Claims
    configs: Sequence[FoundConfig]
    mlx: MlxConfig | None
    modules: dict[str, Module]
    scaled: Callable[[Settings], dict[str, Module]]
    stated: Sequence[RsloraReading]
    rslora: RsloraReading
    about_magnitudes: Sequence[Finding]
    embeddings: Sequence[Embedding] = ()

    @property
    def contributions(self) -> Iterable[Contribution]:
        """Every contribution of every module."""
        return (contribution for module in self.modules.values() for contribution in module.contributions)
