"""ComfyUI: its own names of the model, kohya's, and diffusers' where it has a map of them; alpha/rank everywhere.

Sources: `comfy/lora.py`, `comfy/lora_convert.py`, `comfy/weight_adapter/` and `comfy/utils.py` of ComfyUI.
"""

from lora_inspect.consumers.record import BASE_NORM, COMPUTES, LEAVES, WARNS, Consumer, Loader, Rule, Strangers

_KINDS = {
    **dict.fromkeys(("lora", "loha", "lokr", "full", "full_bias", "norm", "norm_bias"), COMPUTES),
    **dict.fromkeys(("lora_bias", "lycoris_ia3", "ia3"), LEAVES),
}
_MAGNITUDES = {
    ".dora_scale output": BASE_NORM,
    ".dora_scale input": COMPUTES,
    **dict.fromkeys(
        (
            ".dora_layer.weight output",
            ".lora_magnitude_vector output",
            ".lora_magnitude_vector.weight output",
            ".magnitude output",
        ),
        LEAVES,
    ),
}
_LOADED = Rule(kinds=_KINDS, magnitudes=_MAGNITUDES)
# The layers that its class has under the names of the model's own repository.
_OWN = ("original", "comfyui")

CONSUMER = Consumer(
    name="comfyui",
    title="ComfyUI",
    version="0.33.0",
    loaders=(
        Loader(
            families=("flux", "qwen_image", "sdxl", "wan", "z_image"),
            rules=(
                _LOADED._replace(
                    families=("flux", "sdxl", "wan"), layouts=_OWN, prefixes=("lora_unet_", "diffusion_model.")
                ),
            ),
            strangers=Strangers(WARNS, "lora key not loaded"),
        ),
    ),
    schemes={"": "comfyui"},
)
