"""OneTrainer's underscored names over diffusers' paths: `lora_transformer_`, `lora_unet_`, `lora_te1_`, ….

Sources: `to_canonical` in `modules/util/load_lora_util.py` of OneTrainer, and its models and loaders there.
"""

from lora_inspect.architectures.record import Architecture
from lora_inspect.architectures.text_encoders import CLIP, LANGUAGE_MODEL
from lora_inspect.schemes.kohya import KOHYA
from lora_inspect.schemes.record import Scheme, Writing, first_of

# The text encoders of the families that it trains, in the order that the families have them in.
_ENCODERS = {
    "sd15": ("lora_te1_",),
    "sd2": ("lora_te1_",),
    "sdxl": ("lora_te1_", "lora_te2_"),
    "sd3": ("lora_te1_", "lora_te2_", "lora_te3_"),
    "flux": ("lora_te1_", "lora_te2_"),
    "chroma": ("lora_te_",),
    "hunyuan_video": ("lora_te1_", "lora_te2_"),
    "hidream_i1": ("lora_te1_", "lora_te2_", "lora_te3_", "lora_te4_"),
    "qwen_image": ("lora_te_",),
    **dict.fromkeys(("flux2", "z_image", "ideogram4", "krea2", "anima"), ()),
}
# The classes of transformers that it holds have the blocks of a language model in different places.
_LANGUAGE_ROOTS = {
    "hidream_i1": "model.layers.{i}",
    "hunyuan_video": "layers.{i}",
    "qwen_image": "model.language_model.layers.{i}",
}
# It has never written these as `lora_transformer_`, and reads diffusers' names of them below kohya's prefix alone.
_BELOW_KOHYAS = ("anima", "hidream_i1", "ideogram4", "krea2", "qwen_image", "z_image")


def _roots(family: Architecture) -> dict[str, str]:
    language = _LANGUAGE_ROOTS.get(family.name)
    return {CLIP: "text_model.encoder.layers.{i}", **({LANGUAGE_MODEL: language} if language else {})}


ONETRAINER = Scheme(
    name="onetrainer",
    prefixes={},  # a file of it is read as one of kohya's names
    flat=True,
    suffixes=KOHYA.suffixes,
    carries_alpha=True,
    writing=Writing(
        title="OneTrainer",
        layout=lambda family: first_of(family, "diffusers") if family and family.name in _ENCODERS else None,
        prefix="lora_{pipeline}_",
        prefixes=dict.fromkeys(_BELOW_KOHYAS, "lora_unet_"),
        encoders=lambda family: _ENCODERS.get(family.name, ()),
        encoder_roots=_roots,
        algorithms=frozenset(("lora", "loha", "lokr")),
        embeddings=True,
    ),
)
