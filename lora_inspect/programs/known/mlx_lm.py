"""mlx-lm: its own folders with a config of adapted layers, one rank and one scale.

Source: `load_adapters` and `linear_to_lora_layers` of mlx-lm.
"""

from lora_inspect.files.discovery import ADAPTER_CONFIG
from lora_inspect.programs.known.peft import names_in
from lora_inspect.programs.record import COMPUTES, FAILS, Loader, Program, Rule, Strangers, intended_scale
from lora_inspect.reading.adapter import Adapter
from lora_inspect.schemes.mlx import MLX

_BLOCKS = ".layers."
_FOREIGN = "not an adapter parameter in the model"


def _refused(adapter: Adapter) -> str | None:
    """Return the error that loading raises, if it does not depend on the model."""
    from lora_inspect.reading.mlx_config import find_mlx_config

    config = find_mlx_config(adapter.checkpoint)
    if config is None:
        if adapter.checkpoint.config is None:
            return f"FileNotFoundError: {ADAPTER_CONFIG}"
        return "AttributeError: 'types.SimpleNamespace' object has no attribute 'num_layers'"
    if adapter.scheme != MLX.name:
        return f"ValueError: {next(iter(adapter.checkpoint.tensors))}: {_FOREIGN}"
    if not isinstance(config.config.get("num_layers"), int):
        return "AttributeError: 'types.SimpleNamespace' object has no attribute 'num_layers'"
    if "scale" not in config.parameters or "rank" not in config.parameters or "dropout" not in config.parameters:
        return "KeyError: LoRA config is missing a required key"
    if any(contribution.rank != config.parameters["rank"] for contribution in adapter.contributions):
        return "ValueError: adapter shape does not match model parameter shape"
    has_keys, keys = config.parameters.get("keys") is not None, names_in(config.parameters, "keys")
    for module in adapter.modules.values():
        path = module.name.body
        if has_keys and _below_block(path) not in keys and path not in keys:
            return f"ValueError: {path}: {_FOREIGN}"
    return None


def _below_block(path: str) -> str:
    """Return the name of a layer below its block."""
    return path.partition(_BLOCKS)[2].partition(".")[2]


PROGRAM = Program(
    name="mlx-lm",
    title="mlx-lm",
    version="0.32.2",
    ran="2026-12-01",
    distributions={"mlx-lm": "0.32.2"},
    sets_multiplier=False,
    loaders=(
        Loader(
            families=("llm",),
            rules=(
                Rule(
                    layouts=("hf",),
                    dialects=("mlx",),
                    kinds={"mlx": COMPUTES},
                    scale=intended_scale,
                    magnitudes={
                        **dict.fromkeys((".m output", ".m input"), COMPUTES),
                        **dict.fromkeys((".lora_magnitude_vector output", ".dora_scale output"), FAILS),
                    },
                    says=f"ValueError: {_FOREIGN}",
                ),
            ),
            strangers=Strangers(FAILS, f"ValueError: {_FOREIGN}"),
            refuses=_refused,
        ),
    ),
    schemes={"": "mlx"},
)
