"""The names of mlx-lm: a model's own dotted paths, with suffixes by which alone they are told from others.

The scale is a number of its `adapter_config.json`, one for all modules. Source: `load_adapters` of mlx-lm.
"""

from lora_inspect.schemes.record import MODEL, Scheme

MLX = Scheme(
    name="mlx",
    prefixes={"": MODEL},
    flat=False,
    suffixes={"down": ".lora_a", "up": ".lora_b", "magnitude": ".m"},
    carries_alpha=False,
    absent_alpha="scale",
    dialect="mlx",
    marks=(".lora_a", ".lora_b"),
)
