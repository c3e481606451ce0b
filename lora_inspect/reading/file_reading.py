"""All that is read of a file, before anything is said against it."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.reading.keys.claims import Claims
from lora_inspect.reading.model.contribution import Contribution, Module
from lora_inspect.reading.model.evidence import RsloraReading
from lora_inspect.reading.model.problem import Finding
from lora_inspect.reading.model.settings import Settings
from lora_inspect.reading.own_rules import OwnRules
from lora_inspect.reading.peft.config_lookup import FoundConfig

if TYPE_CHECKING:  # where a file has some, and few have
    from lora_inspect.reading.embeddings import Embedding


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
