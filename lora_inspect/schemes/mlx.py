"""The names of mlx-lm: a model's own dotted paths, with suffixes that distinguish them from other names.

The scale is a number of its `adapter_config.json`, one for all modules. Source: `load_adapters` of mlx-lm.
"""

from lora_inspect.architectures.record import Architecture
from lora_inspect.schemes.record import EXACT, MODEL, OWN, Scheme, Writing


def _layout(family: Architecture | None) -> str | None:
    """Return OWN for the Llama line and for no known family; mlx-lm names other families differently, if at all."""
    return OWN if family is None or family.name == "llm" else None


MLX = Scheme(
    name="mlx",
    prefixes={"": MODEL},
    flat=False,
    suffixes={"down": ".lora_a", "up": ".lora_b", "magnitude": ".m"},
    carries_alpha=False,
    absent_alpha="scale",
    dialect="mlx",
    marks=(".lora_a", ".lora_b"),
    writing=Writing(
        title="mlx-lm",
        layout=_layout,
        prefix="",
        dialects=("mlx", "kohya", "peft"),
        algorithms=frozenset(("lora", "lora_embedding", "mlx", "mlx_experts")),
        magnitudes=EXACT,
        roots=("model.", "lm_head"),
        lacks=(".experts.",),
    ),
)
