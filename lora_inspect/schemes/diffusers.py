"""diffusers' `save_lora_weights`: the pipeline's component and the dotted path. Its loaders ignore alpha."""

from lora_inspect.architectures.record import Architecture
from lora_inspect.schemes.record import EXACT, MODEL, Scheme, Writing, first_of

# How many text encoders the loader of a pipeline reads: those of CLIP. It leaves out others in a file silently.
_ENCODERS = {"sd15": 1, "sd2": 1, "sdxl": 2, "sd3": 2, "flux": 1}


def _encoders(family: Architecture) -> tuple[str, ...]:
    return ("text_encoder.", "text_encoder_2.")[: _ENCODERS.get(family.name, 0)]


# Before 0.20 the attention processors of a UNet held the factors, so that a suffix hides which layer they are of.
_PROCESSORS = {
    f".processor.{layer}_lora.{side}.weight": (side, end)
    for layer, end in {"to_q": ".to_q", "to_k": ".to_k", "to_v": ".to_v", "to_out": ".to_out.0"}.items()
    for side in ("down", "up")
}

DIFFUSERS = Scheme(
    name="diffusers",
    prefixes={
        "transformer.": MODEL,
        "unet.": MODEL,
        "transformer_2.": "model_2",
        "text_encoder.": "text_encoder",
        "text_encoder_2.": "text_encoder_2",
        "text_encoder_3.": "text_encoder_3",
        "text_encoder_4.": "text_encoder_4",
        "conditional_transformer.": MODEL,
    },
    flat=False,
    suffixes={
        "down": ".lora_A.weight",
        "up": ".lora_B.weight",
        "magnitude": ".lora_magnitude_vector",
    },
    carries_alpha=False,
    dialect="peft",
    hiding=_PROCESSORS,
    writing=Writing(
        title="diffusers",
        layout=lambda family: first_of(family, "diffusers"),
        prefix="{pipeline}.",
        encoders=_encoders,
        dialects=("peft",),
        algorithms=frozenset(("lora", "lora_bias")),
        magnitudes=EXACT,
    ),
)
