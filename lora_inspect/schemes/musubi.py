"""The names of musubi-tuner, which are kohya's over the model that it trains, without text encoders.

Sources: `networks/lora_*.py` and `utils/lora_utils.py` of musubi-tuner, which merges LoRA, LoHa and LoKr on loading
and knows neither a magnitude nor a rule for the scale but alpha/rank.
"""

from lora_inspect.schemes.kohya import KOHYA
from lora_inspect.schemes.record import LOST, Scheme, Writing

# The layouts of the families that it trains.
_LAYOUTS = {
    "flux": "original",
    "flux2": "original",
    "framepack": "diffusers",
    "hidream_o1": "original",
    "hunyuan_video": "original",
    "hunyuan_video_1_5": "original",
    "ideogram4": "original",
    "kandinsky5": "diffusers",
    "krea2": "original",
    "qwen_image": "diffusers",
    "wan": "original",
    "z_image": "diffusers",
}

MUSUBI = Scheme(
    name="musubi",
    prefixes={},  # a file of it is read as one of kohya's names
    flat=True,
    suffixes=KOHYA.suffixes,
    carries_alpha=True,
    writing=Writing(
        title="musubi-tuner",
        layout=lambda family: _LAYOUTS.get(family.name) if family else None,
        prefix="lora_unet_",
        algorithms=frozenset(("lora", "loha", "lokr")),
        magnitudes=LOST,
    ),
)
