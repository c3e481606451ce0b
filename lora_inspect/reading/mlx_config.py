"""The `adapter_config.json` of mlx-lm, which is not PEFT's and gives one scale to all modules.

Source: `load_adapters` and `linear_to_lora_layers` of mlx-lm 0.32.2, and the configs that earlier versions save.
Versions up to 0.21 write an `alpha`, but only versions up to 0.14.1 use it: they compute with scale · alpha/rank.
"""

from collections.abc import Mapping
from typing import Any

from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.files.strict_json import json_number
from lora_inspect.reading.peft.peft_config import is_peft_config

PARAMETERS, TYPE = "lora_parameters", "fine_tune_type"
LORA, DORA, FULL = _TYPES = ("lora", "dora", "full")
_MISSING = (
    "mlx-lm keeps it as lora_parameters.scale in adapter_config.json, which is missing: put that next to "
    "the file, or take the rank times the trained scale as alpha"
)


class MlxConfig(NamedTuple):
    """A config of mlx-lm, and its place (`where`)."""

    where: str
    config: Mapping[str, Any]

    @property
    def parameters(self) -> Mapping[str, Any]:
        """Its `lora_parameters`; empty where they are no object."""
        found = self.config.get(PARAMETERS)
        return found if isinstance(found, dict) else {}

    @property
    def method(self) -> str:
        """The trained method, in words."""
        return (
            "whole weights of mlx-lm"
            if self.is_full
            else f"{'DoRA' if self.dora and self.dora[0] else 'LoRA'} of mlx-lm"
        )

    @property
    def is_full(self) -> bool:
        """True if it says that whole weights were trained."""
        return self.config.get(TYPE) == FULL

    @property
    def dora(self) -> tuple[bool, str] | None:
        """The config's statement whether the modules have magnitudes, and its words, which changed in 0.17; or None."""
        kind, switch = self.config.get(TYPE), self.config.get("use_dora")
        if kind in _TYPES:
            return kind == DORA, f"{TYPE} is {kind}"
        return (switch, f"use_dora is {switch}") if isinstance(switch, bool) else None

    @property
    def trained_ratio(self) -> float | None:
        """The factor alpha/rank on the scale in the early version that trained the file, or may have; None for none."""
        alpha, rank = json_number(self.parameters.get("alpha")), json_number(self.parameters.get("rank"))
        if TYPE in self.config or not alpha or not rank or alpha == rank:
            return None
        return alpha / rank

    @property
    def is_early(self) -> bool:
        """True if a version before 0.13.1 wrote it: later ones have a switch for DoRA."""
        return TYPE not in self.config and "use_dora" not in self.config

    def scale(self, rank: int) -> tuple[float | None, str]:
        """Return the scale of modules of this rank and its place, or None and the reason why it is unknown."""
        own = self.parameters.get("rank", rank)
        if isinstance(own, bool) or own != rank:
            shown = own if isinstance(own, (int, float)) and not isinstance(own, bool) else "not a number"
            return (
                None,
                f"the rank in {self.where} is {str(shown)[:40]} but that of the tensors is {rank}, so the config does "
                "not match",
            )
        if (scale := json_number(self.parameters.get("scale"))) is None:
            return None, f"{PARAMETERS}.scale of {self.where} is not a number"
        return scale, f"{PARAMETERS}.scale {scale:g} in {self.where}"


def find_mlx_config(checkpoint: Checkpoint) -> MlxConfig | None:
    """Return the config of mlx-lm next to a file; None if there is none."""
    config, where = checkpoint.config, checkpoint.config_path
    return MlxConfig(where, config) if config is not None and where is not None and is_mlx_config(config) else None


def is_mlx_config(config: Mapping[str, Any]) -> bool:
    """Return True for an `adapter_config.json` of mlx-lm."""
    return not is_peft_config(config) and (PARAMETERS in config or TYPE in config)


def scale_of(config: MlxConfig | None, rank: int) -> tuple[float | None, str]:
    """Return the scale of modules of this rank and its place, or None and the reason why it is unknown."""
    return config.scale(rank) if config else (None, _MISSING)
