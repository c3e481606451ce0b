"""ComfyUI's generic names: `diffusion_model.` and the model's own dotted path. Its loader honours alpha there."""

from lora_inspect.schemes.record import MODEL, Scheme

COMFYUI = Scheme(
    name="comfyui",
    prefixes={
        "diffusion_model.": MODEL,
        "text_encoders.clip_l.transformer.": "text_encoder",
        "text_encoders.clip_g.transformer.": "text_encoder_2",
        "text_encoders.t5xxl.transformer.": "text_encoder_3",
    },
    flat=False,
    suffixes={
        "down": ".lora_down.weight",
        "up": ".lora_up.weight",
        "mid": ".lora_mid.weight",
        "alpha": ".alpha",
        "magnitude": ".dora_scale",
    },
    carries_alpha=True,
)
