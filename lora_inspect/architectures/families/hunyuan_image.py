"""HunyuanImage 2.1: the blocks of HunyuanVideo at another width, with a second text encoder for glyphs.

Leaves as in the HYImageDiffusionTransformer of the original repository, in ComfyUI's class, and in the
HunyuanImageTransformer2DModel of diffusers.
"""

from ..correspondence import Correspondence, Relation, same
from ..record import Architecture, Layout, Size, Training, under
from ..text_encoders import BYT5_GLYPH, QWEN25_VL_7B
from .flux import DIFFUSERS_DOUBLE, DIFFUSERS_SINGLE, ORIGINAL_DOUBLE, ORIGINAL_SINGLE, PROPORTIONS
from .hunyuan_video import (
    COMFYUI_NORMS,
    COMFYUI_TEXT,
    DIFFUSERS_BLOCKS,
    DIFFUSERS_NORMS,
    DIFFUSERS_TEXT,
    ORIGINAL_BLOCKS,
    ORIGINAL_NORMS,
    ORIGINAL_PROPORTIONS,
    ORIGINAL_STREAMS,
    ORIGINAL_TEXT,
    blocks_in_diffusers,
    ends_in_diffusers,
    with_comfyui,
)

ORIGINAL = (
    "img_in.proj",
    *under("byt5_in", "fc1", "fc2", "fc3"),
    *ORIGINAL_TEXT,
    *under("time_in.mlp", "0", "2"),
    *under("guidance_in.mlp", "0", "2"),
    *under(
        "double_blocks.{i}",
        "img_attn_qkv",
        "img_attn_proj",
        "txt_attn_qkv",
        "txt_attn_proj",
        *ORIGINAL_STREAMS,
    ),
    *under("single_blocks.{i}", "linear1", "linear2", "modulation.linear"),
    "final_layer.linear",
    "final_layer.adaLN_modulation.1",
)
COMFYUI = (
    "img_in.proj",
    *under("byt5_in", "fc1", "fc2", "fc3"),
    *COMFYUI_TEXT,
    *under("time_in", "in_layer", "out_layer"),
    *under("guidance_in", "in_layer", "out_layer"),
    *under("double_blocks.{i}", *ORIGINAL_DOUBLE, "img_mod.lin", "txt_mod.lin"),
    *under("single_blocks.{i}", *ORIGINAL_SINGLE, "modulation.lin"),
    "final_layer.linear",
    "final_layer.adaLN_modulation.1",
)
DIFFUSERS = (
    "x_embedder.proj",
    *DIFFUSERS_TEXT,
    *under("context_embedder_2", "linear_1", "linear_2", "linear_3"),
    *under("time_guidance_embed.timestep_embedder", "linear_1", "linear_2"),
    *under("time_guidance_embed.guidance_embedder", "linear_1", "linear_2"),
    *under("transformer_blocks.{i}", *DIFFUSERS_DOUBLE, "norm1.linear", "norm1_context.linear"),
    *under("single_transformer_blocks.{i}", *DIFFUSERS_SINGLE, "norm.linear"),
    "norm_out.linear",
    "proj_out",
)
GLYPH_NORM = "byt5_in.layernorm"


def relations() -> tuple[Relation, ...]:
    """Return the relations of the layouts, as in the conversion script of diffusers."""
    return with_comfyui(
        (
            *ends_in_diffusers(),
            *blocks_in_diffusers(),
            *(same(f"byt5_in.fc{number}", f"context_embedder_2.linear_{number}") for number in (1, 2, 3)),
            same(GLYPH_NORM, "context_embedder_2.norm"),
            *(
                same(f"{original}.mlp.{number}", f"time_guidance_embed.{diffusers}.{layer}")
                for original, diffusers in (("time_in", "timestep_embedder"), ("guidance_in", "guidance_embedder"))
                for number, layer in ((0, "linear_1"), (2, "linear_2"))
            ),
        )
    )


ARCHITECTURE = Architecture(
    name="hunyuan_image",
    title="HunyuanImage 2.1",
    descends_from="hunyuan_video",
    layouts=(
        Layout("original", ORIGINAL, blocks=ORIGINAL_BLOCKS, norms=(*ORIGINAL_NORMS, GLYPH_NORM)),
        Layout("comfyui", COMFYUI, blocks=ORIGINAL_BLOCKS, norms=(*COMFYUI_NORMS, GLYPH_NORM)),
        Layout(
            "diffusers",
            DIFFUSERS,
            kohya_prefix="lora_transformer_",
            blocks=DIFFUSERS_BLOCKS,
            norms=(*DIFFUSERS_NORMS, "context_embedder_2.norm"),
        ),
    ),
    sizes=tuple(Size(None, path, out * 3584, in_ * 3584) for path, out, in_ in (*ORIGINAL_PROPORTIONS, *PROPORTIONS)),
    metadata_names=("hunyuan-image-2.1", "hunyuan-image"),
    text_encoders=(QWEN25_VL_7B, BYT5_GLYPH),
    correspondence=Correspondence(relations),
    training=Training(
        classes=("MMDoubleStreamBlock", "MMSingleStreamBlock"),
        diffusers_classes=("HunyuanImageTransformerBlock", "HunyuanImageSingleTransformerBlock"),
        models=("HYImageDiffusionTransformer", "HunyuanImageTransformer2DModel"),
        excludes=(),
        keys=("hunyuan_image",),
        searches_names=True,
    ),
)
