"""The names of PEFT's `adapter_model.safetensors`; alpha and the scale rule stand in `adapter_config.json`."""

from lora_inspect.schemes.record import MODEL, Scheme

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
)
