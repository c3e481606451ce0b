"""Qwen-Image 2.1: no layers for the text in its blocks, and one modulation for all of them.

Leaves as in the QwenImage21Transformer2DModel of diffusers. ComfyUI's checkpoint has the two upper layers of a
feed-forward in one, the gate above, and is alike otherwise; the source is diffusers' converter of it.
"""

from ..correspondence import Correspondence, stack
from ..record import Architecture, Layout, Size, under
from ..text_encoders import SOME_LANGUAGE_MODEL

BLOCK = "transformer_blocks.{i}"
ATTENTION = under(f"{BLOCK}.attn", "to_q", "to_k", "to_v", "to_out.0")
COMMON = (
    *under("time_text_embed.timestep_embedder", "linear_1", "linear_2"),
    *under("txt_in", "in_layer", "out_layer"),
    "img_in",
    "modulation.1",
    *ATTENTION,
    f"{BLOCK}.img_mlp.out",
    "norm_out.linear",
    "proj_out",
)
UPPER = under(f"{BLOCK}.img_mlp", "gate_layer", "proj")
FUSED = f"{BLOCK}.img_mlp.gate_up"
NORMS = ("txt_in.text_norm", *under(f"{BLOCK}.attn", "norm_q", "norm_k"))
BLOCKS = (("transformer_blocks", 32),)

ARCHITECTURE = Architecture(
    name="qwen_image_2",
    title="Qwen-Image 2.1",
    layouts=(
        Layout("diffusers", (*COMMON, *UPPER), blocks=BLOCKS, norms=NORMS),
        Layout("comfyui", (*COMMON, FUSED), blocks=BLOCKS, norms=NORMS),
    ),
    sizes=(
        *(Size(None, path, 4096, 4096) for path in ATTENTION),
        *(Size(None, path, 12288, 4096) for path in UPPER),
        Size(None, FUSED, 24576, 4096),
        Size(None, f"{BLOCK}.img_mlp.out", 4096, 12288),
    ),
    metadata_names=("qwenimage21transformer2dmodel",),
    base_names=("qwen-image-2",),
    text_encoders=(SOME_LANGUAGE_MODEL,),
    correspondence=Correspondence(lambda: (stack(FUSED, *UPPER),)),
)
