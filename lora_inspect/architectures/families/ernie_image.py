"""ERNIE-Image.

Leaves as in the ErnieImageTransformer2DModel of diffusers, which ComfyUI and the trainers name alike. Widths as in
ComfyUI's class.
"""

from ..record import Architecture, Layout, Size, Training, under
from ..text_encoders import SOME_LANGUAGE_MODEL

LAYER = (
    *under("self_attention", "to_q", "to_k", "to_v", "to_out.0"),
    *under("mlp", "gate_proj", "up_proj", "linear_fc2"),
)
PATHS = (
    "x_embedder.proj",
    "text_proj",
    *under("time_embedding", "linear_1", "linear_2"),
    "adaLN_modulation.1",
    *under("layers.{i}", *LAYER),
    "final_norm.linear",
    "final_linear",
)
NORMS = under("layers.{i}", "self_attention.norm_q", "self_attention.norm_k", "adaLN_sa_ln", "adaLN_mlp_ln")
# Multiples of the hidden width: (path, out, in).
PROPORTIONS = (
    *((path, 1, 1) for path in under("self_attention", "to_q", "to_k", "to_v", "to_out.0")),
    *((path, 3, 1) for path in under("mlp", "gate_proj", "up_proj")),
    ("mlp.linear_fc2", 1, 3),
)

ARCHITECTURE = Architecture(
    name="ernie_image",
    title="ERNIE-Image",
    layouts=(Layout("diffusers", PATHS, blocks=(("layers", 36),), also=("original",), norms=NORMS),),
    sizes=tuple(Size(None, f"layers.{{i}}.{path}", out * 4096, in_ * 4096) for path, out, in_ in PROPORTIONS),
    metadata_names=("ernie", "ernie_image", "ernieimagetransformer2dmodel"),
    base_names=("ernie-image",),
    text_encoders=(SOME_LANGUAGE_MODEL,),
    training=Training(
        classes=("ErnieImageSharedAdaLNBlock",), models=("ErnieImageTransformer2DModel",), keys=("ernie_image",)
    ),
)
