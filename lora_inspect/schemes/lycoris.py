"""The names of LyCORIS's stand-alone wrapper, which SimpleTuner writes too."""

from lora_inspect.schemes.kohya import KOHYA
from lora_inspect.schemes.record import MODEL, Scheme

LYCORIS = Scheme(
    name="lycoris",
    prefixes={"lycoris_": MODEL},
    flat=True,
    suffixes=KOHYA.suffixes,
    carries_alpha=True,
)
