"""The names of PEFT's `adapter_model.safetensors`; alpha and the scale rule are in `adapter_config.json`."""

from lora_inspect.schemes.record import EXACT, MODEL, Scheme, Writing, of_diffusers_or_own

PEFT = Scheme(
    name="peft",
    prefixes={"base_model.model.": MODEL},
    flat=False,
    suffixes={
        "down": ".lora_A.weight",
        "up": ".lora_B.weight",
        "magnitude": ".lora_magnitude_vector",
    },
    carries_alpha=False,
    absent_alpha="config",
    dialect="peft",
    writing=Writing(
        title="PEFT",
        layout=of_diffusers_or_own,
        prefix="base_model.model.",
        dialects=("peft",),
        alike=frozenset(("loha",)),
        magnitudes=EXACT,
        extras=True,
    ),
)
