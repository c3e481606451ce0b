"""Qwen-Image, Edit and Layered; their adapters have the same names.

Leaves as in the QwenImageTransformer2DModel of diffusers; the original checkpoint has the same names.
"""

from ..record import MODULATION, Architecture, Layout, Size, Switch, Training, under
from ..text_encoders import QWEN25_VL_7B
from .flux import DIFFUSERS_ATTENTION

PATHS = (
    "img_in",
    "txt_in",
    *under("time_text_embed.timestep_embedder", "linear_1", "linear_2"),
    "time_text_embed.addition_t_embedding",  # of Layered
    *under(
        "transformer_blocks.{i}",
        *DIFFUSERS_ATTENTION,
        *under("img_mlp", "net.0.proj", "net.2"),
        *under("txt_mlp", "net.0.proj", "net.2"),
        "img_mod.1",
        "txt_mod.1",
    ),
    "norm_out.linear",
    "proj_out",
)

ARCHITECTURE = Architecture(
    name="qwen_image",
    title="Qwen-Image",
    layouts=(Layout("diffusers", PATHS, blocks=(("transformer_blocks", 60),), also=("original",)),),
    sizes=tuple(Size(None, path, 3072, 3072) for path in under("transformer_blocks.{i}", *DIFFUSERS_ATTENTION)),
    metadata_names=(
        "qwen_image",
        "qwen_image_edit",
        "qwen_image_layered",
        "qwen-image",
        "qwen-image-edit",
        "qwen-image-edit-plus",
        "qwen-image-edit-2511",
        "qwen-image-layered",
    ),
    text_encoders=(QWEN25_VL_7B,),
    training=Training(
        classes=("QwenImageTransformerBlock",),
        models=("QwenImageTransformer2DModel",),
        excludes=(),
        switches=(Switch("exclude_mod", default=True, excluding=True, excludes=(MODULATION,)),),
        keys=("qi", "qie", "qil"),
    ),
)
