"""The names of llama.cpp's adapters: its name of a weight, and the factor.

The header of the file states alpha, once for all modules. Source: `convert_lora_to_gguf.py` of llama.cpp.
"""

from lora_inspect.schemes.record import LOST, MODEL, OWN, Scheme, Writing

GGUF = Scheme(
    name="gguf",
    prefixes={"": MODEL},
    flat=False,
    suffixes={"down": ".weight.lora_a", "up": ".weight.lora_b"},
    carries_alpha=False,
    dialect="gguf",
    marks=(".weight.lora_a", ".weight.lora_b"),
    alpha_of_all=True,
    writing=Writing(
        title="llama.cpp",
        layout=lambda family: OWN,
        prefix="",
        dialects=("gguf",),
        magnitudes=LOST,
    ),
)
