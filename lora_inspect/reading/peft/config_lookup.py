"""The LoraConfigs of a file, and the lookup of the config for a module."""

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.files.discovery import PEFT_WEIGHTS
from lora_inspect.reading.model.contribution import Contribution
from lora_inspect.reading.peft import peft_config
from lora_inspect.reading.peft.peft_config import LORA_TYPE, ModuleSettings
from lora_inspect.reading.peft.regex import Steps
from lora_inspect.schemes.diffusers import DIFFUSERS


class FoundConfig(NamedTuple):
    """A LoraConfig, its place (`where`) and its settings for single `modules`; `prefix` is its component or "".

    `embedded` says that it is in the file's own metadata and not next to the file.
    """

    where: str
    prefix: str
    config: dict[str, Any]
    embedded: bool
    modules: ModuleSettings

    @property
    def peft_type(self) -> Any:
        """The PEFT algorithm of the config."""
        return self.config.get("peft_type", LORA_TYPE)

    def gives_rank(self, contribution: Contribution) -> bool:
        """Return True if its rank for the module is that of the tensors: otherwise it is not theirs.

        Tensors without a rank cannot contradict it.
        """
        rank = contribution.formula.rank(contribution.shapes)
        return rank is None or self.modules.rank(contribution.config_path) == rank


def find_configs(
    checkpoint: Checkpoint, read: Callable[[FoundConfig], Iterable[Contribution]], steps: Steps
) -> list[FoundConfig]:
    """Return the LoraConfigs of the file: those embedded in it, and the one next to it.

    `read` gives the contributions of the file if a config is its own.
    """
    found = [
        FoundConfig(
            f"metadata {peft_config.EMBEDDED_KEY} {prefix}".rstrip(),
            prefix,
            config,
            embedded=True,
            modules=ModuleSettings(config, steps),
        )
        for prefix, config in peft_config.embedded_configs(checkpoint.metadata).items()
    ]
    config, path = checkpoint.config, checkpoint.config_path
    if config is not None and path is not None and peft_config.is_peft_config(config):
        beside = FoundConfig(path, "", config, embedded=False, modules=ModuleSettings(config, steps))
        named = not checkpoint.files or os.path.basename(checkpoint.files[0]).startswith(PEFT_WEIGHTS)
        # One that cannot be compared with the tensors may be theirs.
        if named or _fits(beside, list(read(beside))) or beside.modules.refused:
            found.append(beside)
    return found


class Speakers:
    """The lookup of a file's configs that apply to a contribution."""

    def __init__(self, configs: Sequence[FoundConfig]) -> None:
        self._beside = tuple(found for found in configs if not found.embedded)
        self._by_prefix: dict[str, FoundConfig] = {}
        self._by_component: dict[str | None, FoundConfig] = {}
        for found in configs:
            if found.embedded:
                self._by_prefix.setdefault(found.prefix, found)
                self._by_component.setdefault(DIFFUSERS.prefixes.get(found.prefix), found)

    def of(self, contribution: Contribution) -> tuple[FoundConfig, ...]:
        """Return the configs that apply to it: at most one embedded config and the one next to the file.

        The embedded one is that of its prefix or component, else one of no particular component. If any gives the rank
        of the tensors, the others do not apply.
        """
        module = contribution.module
        embedded = (
            self._by_prefix.get(module.prefix) or self._by_component.get(module.component) or self._by_prefix.get("")
        )
        all_of_it = (*((embedded,) if embedded else ()), *self._beside)
        speaking = tuple(found for found in all_of_it if found.peft_type == contribution.algorithm.peft_type)
        return tuple(found for found in speaking if found.gives_rank(contribution)) or speaking[:1]


def _fits(found: FoundConfig, contributions: Sequence[Contribution]) -> bool:
    """Return True if a config's ranks and targets are those of the tensors; names without dots cannot be compared."""
    if not contributions or any(contribution.module.flat for contribution in contributions):
        return False
    # Targets that are not compared with modules are no matter where ranks differ already.
    return all(map(found.gives_rank, contributions)) and all(
        found.modules.is_target(path) or contribution.algorithm.experts or found.modules.is_parameter(path)
        for contribution in contributions
        for path in (contribution.config_path,)
    )
