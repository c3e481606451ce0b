"""The names of LyCORIS's stand-alone wrapper, which SimpleTuner writes too."""

from lora_inspect.schemes.kohya import KOHYA
from lora_inspect.schemes.record import MODEL, Scheme, Writing, of_diffusers_or_own

LYCORIS = Scheme(
    name="lycoris",
    prefixes={"lycoris_": MODEL},
    flat=True,
    suffixes=KOHYA.suffixes,
    carries_alpha=True,
    writing=Writing(
        title="LyCORIS's wrapper",
        layout=of_diffusers_or_own,
        prefix="lycoris_",
        algorithms=frozenset(
            ("lora", "loha", "lokr", "glora", "full", "full_bias", "norm", "norm_bias", "oft", "lycoris_boft", "tlora")
        ),
        input_magnitudes=False,
    ),
)
