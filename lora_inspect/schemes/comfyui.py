"""ComfyUI's generic names: `diffusion_model.` and the model's own dotted path. Its loader honours alpha there."""

from lora_inspect.architectures.record import Architecture
from lora_inspect.architectures.text_encoders import (
    CLIP,
    CLIP_L,
    GEMMA2_2B,
    LANGUAGE_MODEL,
    LLAMA_8B,
    OPENCLIP_BIGG,
    OPENCLIP_H,
    PILE_T5_XL,
    QWEN3_06B,
    QWEN3_4B,
    QWEN25_VL_7B,
    T5_XXL,
)
from lora_inspect.schemes.record import MODEL, Scheme, Writing, first_of, of_trainers

# What ComfyUI calls the text encoders, of which Wan has another T5 than the others.
_ENCODERS = {
    CLIP_L: "clip_l",
    GEMMA2_2B: "gemma2_2b",
    LLAMA_8B: "llama",
    OPENCLIP_BIGG: "clip_g",
    OPENCLIP_H: "clip_h",
    PILE_T5_XL: "pile_t5xl",
    QWEN25_VL_7B: "qwen25_7b",
    QWEN3_06B: "qwen3_06b",
    QWEN3_4B: "qwen3_4b",
    T5_XXL: "t5xxl",
}
_OF_WAN = {T5_XXL: "umt5xxl"}
# Which component each stands for: no two of one pipeline are the same. All others are a pipeline's only one.
_COMPONENTS = {
    "clip_l": "text_encoder",
    "clip_g": "text_encoder_2",
    "qwen25_7b": "text_encoder_2",
    "t5xxl": "text_encoder_3",
    "llama": "text_encoder_4",
}
# Where its classes of them have the blocks.
_ROOTS = {CLIP: "text_model.encoder.layers.{i}", LANGUAGE_MODEL: "model.layers.{i}"}
# What its weight adapters compute. They read no (IA)3 and no T-LoRA, and nothing of what has no layer of its own.
ALGORITHMS = frozenset(
    (
        *("lora", "loha", "lokr", "glora", "old_glora", "oft", "lycoris_boft"),
        *("full", "full_bias", "norm", "norm_bias", "set_weight"),
    )
)


_OF_ENCODER = "text_encoders.{}.transformer."


def _encoders(family: Architecture) -> tuple[str, ...]:
    names = {**_ENCODERS, **(_OF_WAN if family.name == "wan" else {})}
    return tuple(_OF_ENCODER.format(names[one]) if one in names else "" for one in family.text_encoders)


def _layout(family: Architecture | None) -> str | None:
    """Return the layout of ComfyUI's own class; it has none for FramePack."""
    known = family is not None and family.name != "framepack"
    return first_of(family, "comfyui", "original") or of_trainers(family) if known else None


COMFYUI = Scheme(
    name="comfyui",
    prefixes={
        "diffusion_model.": MODEL,
        **{
            _OF_ENCODER.format(encoder): _COMPONENTS.get(encoder, "text_encoder")
            for encoder in (*_ENCODERS.values(), *_OF_WAN.values())
        },
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
    writing=Writing(
        title="ComfyUI",
        layout=_layout,
        prefix="diffusion_model.",
        encoders=_encoders,
        encoder_roots=lambda family: _ROOTS,
        dialects=("kohya", "lycoris", "comfyui"),
        algorithms=ALGORITHMS,
        # What a program adds to a bias it does not scale.
        instead={"lora_bias": "full_bias"},
        parameters=True,
        # Its `weight_decompose`, whatever the file is.
        over_base=True,
        # It takes alpha itself for the limit of a rotation, not alpha times the rows, and passes over OFT's gains.
        misread={"oft": frozenset(("alpha", "rescale")), "lycoris_boft": frozenset(("alpha",))},
        embeddings=True,
        extras=True,
    ),
)
