"""The underscored names of sd-scripts and musubi-tuner, which most programs of the field read."""

from lora_inspect.architectures.record import Architecture
from lora_inspect.architectures.text_encoders import CLIP, LANGUAGE_MODEL
from lora_inspect.schemes import comfyui
from lora_inspect.schemes.record import MODEL, Scheme, Writing, first_of, of_trainers

# What sd-scripts puts before the text encoders of the families that it trains, in the order that the families have
# them in. It numbers FLUX's T5 as SD3's, as ComfyUI does.
_ENCODERS = {
    "sd15": ("lora_te_",),
    "sd2": ("lora_te_",),
    "sdxl": ("lora_te1_", "lora_te2_"),
    "sd3": ("lora_te1_", "lora_te2_", "lora_te3_"),
    "flux": ("lora_te1_", "lora_te3_"),
    "lumina2": ("lora_te_",),
    "anima": ("lora_te_",),
}
# It trains the models of Gemma and Qwen without their heads, and ComfyUI reads them so.
_ROOTS = {CLIP: "text_model.encoder.layers.{i}", LANGUAGE_MODEL: "layers.{i}"}
_OF_SD_SCRIPTS = frozenset((*_ENCODERS, "chroma", "hunyuan_image"))


def _layout(family: Architecture | None) -> str | None:
    """Return the layout that sd-scripts trains; for families that it does not know, ComfyUI's."""
    own = family is not None and family.name in _OF_SD_SCRIPTS
    return of_trainers(family) if own else first_of(family, "comfyui") or of_trainers(family)


KOHYA = Scheme(
    name="kohya",
    prefixes={
        "lora_unet__": MODEL,  # Wan-Fun writes two underscores
        "lora_unet_": MODEL,
        "lora_te1_": "text_encoder",
        "lora_te2_": "text_encoder_2",
        "lora_te3_": "text_encoder_3",
        "lora_te4_": "text_encoder_4",  # OneTrainer, of HiDream
        "lora_te_": "text_encoder",
        "lora_transformer_": MODEL,  # OneTrainer, over diffusers' names
        "lora_prior_unet_": MODEL,
        "lora_prior_te_": "text_encoder",
        "oft_unet_": MODEL,  # sd-scripts' networks.oft
    },
    flat=True,
    suffixes={
        "down": ".lora_down.weight",
        "up": ".lora_up.weight",
        "mid": ".lora_mid.weight",
        "alpha": ".alpha",
        "magnitude": ".dora_scale",
    },
    carries_alpha=True,
    writing=Writing(
        title="a reader of kohya's names",
        layout=_layout,
        prefix="lora_unet_",
        encoders=lambda family: _ENCODERS.get(family.name, ()),
        encoder_roots=lambda family: _ROOTS,
        dialects=("kohya", "lycoris", "comfyui"),
        # Most of them compute (IA)3, which ComfyUI and sd-scripts leave.
        algorithms=comfyui.ALGORITHMS | {"lycoris_ia3"},
        # What a program adds to a bias it does not scale.
        instead={"lora_bias": "full_bias"},
        # ComfyUI and Forge do, OneTrainer does not.
        over_base=None,
        embeddings=True,
    ),
)

# sd-scripts numbers the text encoders of models that have several.
_NUMBERED = {"text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_", "text_encoder_3": "lora_te3_"}


def text_encoder_prefix(component: str, components: set[str]) -> str:
    """Return the prefix of a text encoder in a file with `components`: numbered if there is a second one."""
    several = len(components & _NUMBERED.keys()) > 1 or component != "text_encoder"
    return _NUMBERED.get(component, "lora_te_") if several else "lora_te_"
