"""HunyuanVideo 1.5: only double-stream blocks, with separate query, key and value layers.

Leaves as in the HunyuanVideo_1_5_DiffusionTransformer of the original repository and in the
HunyuanVideo15Transformer3DModel of diffusers. ComfyUI fuses query, key and value.
"""

from ..correspondence import Correspondence, Relation, below, renamed, same, stack
from ..record import MODULATION, NORM, Architecture, Layout, Size, Training, under
from ..text_encoders import BYT5_GLYPH, QWEN25_VL_7B
from .flux import DIFFUSERS_DOUBLE, ORIGINAL_DOUBLE, PROPORTIONS, double_relations
from .flux import DIFFUSERS_NORMS as NORMS
from .flux import ORIGINAL_NORMS as FLUX_NORMS
from .hunyuan_video import (
    COMFYUI_TEXT,
    DIFFUSERS_TEXT,
    DIFFUSERS_TEXT_NORMS,
    ORIGINAL_DOUBLE_NORMS,
    ORIGINAL_PROPORTIONS,
    ORIGINAL_STREAMS,
    ORIGINAL_TEXT,
    ORIGINAL_TEXT_NORMS,
    ends_in_comfyui,
    ends_in_diffusers,
)

SPLIT_ATTENTION = (
    "img_attn_q",
    "img_attn_k",
    "img_attn_v",
    "img_attn_proj",
    "txt_attn_q",
    "txt_attn_k",
    "txt_attn_v",
    "txt_attn_proj",
)
ORIGINAL = (
    "img_in.proj",
    *under("byt5_in", "fc1", "fc2", "fc3"),
    *under("vision_in.proj", "1", "3"),
    "cond_type_embedding",
    *ORIGINAL_TEXT,
    *under("time_in.mlp", "0", "2"),
    *under("double_blocks.{i}", *SPLIT_ATTENTION, *ORIGINAL_STREAMS),
    "final_layer.linear",
    "final_layer.adaLN_modulation.1",
)
COMFYUI = (
    "img_in.proj",
    *under("byt5_in", "fc1", "fc2", "fc3"),
    *under("vision_in.proj", "1", "3"),
    "cond_type_embedding",
    *COMFYUI_TEXT,
    *under("time_in", "in_layer", "out_layer"),
    *under("double_blocks.{i}", *ORIGINAL_DOUBLE, "img_mod.lin", "txt_mod.lin"),
    "final_layer.linear",
    "final_layer.adaLN_modulation.1",
)
DIFFUSERS = (
    "x_embedder.proj",
    *under("image_embedder", "linear_1", "linear_2"),
    *DIFFUSERS_TEXT,
    *under("context_embedder_2", "linear_1", "linear_2", "linear_3"),
    *under("time_embed.timestep_embedder", "linear_1", "linear_2"),
    "cond_type_embed",
    *under("transformer_blocks.{i}", *DIFFUSERS_DOUBLE, "norm1.linear", "norm1_context.linear"),
    "norm_out.linear",
    "proj_out",
)
# Beside the blocks of text and picture there are none of one stream.
ORIGINAL_END_NORMS = ("byt5_in.layernorm", *under("vision_in.proj", "0", "4"), *ORIGINAL_TEXT_NORMS)
DIFFUSERS_END_NORMS = (
    "context_embedder_2.norm",
    *under("image_embedder", "norm_in", "norm_out"),
    *DIFFUSERS_TEXT_NORMS,
)
COMFYUI_DOUBLE_NORMS = tuple(path for path in FLUX_NORMS if path.startswith("double"))
DIFFUSERS_DOUBLE_NORMS = tuple(path for path in NORMS if path.startswith("transformer"))


def relations() -> tuple[Relation, ...]:
    """Return the relations of the layouts; ComfyUI's and diffusers' share the blocks of FLUX.1's layouts."""
    modulation = (("img_mod", "norm1"), ("txt_mod", "norm1_context"))
    ends = (
        *ends_in_diffusers(),
        *(
            same(f"time_in.mlp.{layer}", f"time_embed.timestep_embedder.linear_{number}")
            for layer, number in ((0, 1), (2, 2))
        ),
    )
    in_comfyui = ends_in_comfyui("time_in")
    return (
        *ends,
        *in_comfyui,
        *renamed(ends, in_comfyui),
        *(same(f"byt5_in.fc{number}", f"context_embedder_2.linear_{number}") for number in (1, 2, 3)),
        same("vision_in.proj.1", "image_embedder.linear_1"),
        same("vision_in.proj.3", "image_embedder.linear_2"),
        same("cond_type_embedding", "cond_type_embed"),
        *below(
            "double_blocks.{i}",
            "transformer_blocks.{i}",
            same("img_attn_q", "attn.to_q"),
            same("img_attn_k", "attn.to_k"),
            same("img_attn_v", "attn.to_v"),
            same("img_attn_proj", "attn.to_out.0"),
            same("txt_attn_q", "attn.add_q_proj"),
            same("txt_attn_k", "attn.add_k_proj"),
            same("txt_attn_v", "attn.add_v_proj"),
            same("txt_attn_proj", "attn.to_add_out"),
            same("img_mlp.fc1", "ff.net.0.proj"),
            same("img_mlp.fc2", "ff.net.2"),
            same("txt_mlp.fc1", "ff_context.net.0.proj"),
            same("txt_mlp.fc2", "ff_context.net.2"),
            *(same(f"{original}.linear", f"{diffusers}.linear") for original, diffusers in modulation),
        ),
        *map(same, ORIGINAL_END_NORMS, DIFFUSERS_END_NORMS),
        *map(same, ORIGINAL_DOUBLE_NORMS, DIFFUSERS_DOUBLE_NORMS),
        *map(same, COMFYUI_DOUBLE_NORMS, ORIGINAL_DOUBLE_NORMS),
        *map(same, COMFYUI_DOUBLE_NORMS, DIFFUSERS_DOUBLE_NORMS),
        *double_relations(),
        *below(
            "double_blocks.{i}",
            "transformer_blocks.{i}",
            *(same(f"{comfyui}.lin", f"{diffusers}.linear") for comfyui, diffusers in modulation),
        ),
        *(
            relation
            for stream in ("img", "txt")
            for relation in below(
                "double_blocks.{i}",
                "double_blocks.{i}",
                stack(f"{stream}_attn.qkv", *(f"{stream}_attn_{part}" for part in "qkv")),
                same(f"{stream}_attn.proj", f"{stream}_attn_proj"),
                same(f"{stream}_mlp.0", f"{stream}_mlp.fc1"),
                same(f"{stream}_mlp.2", f"{stream}_mlp.fc2"),
                same(f"{stream}_mod.lin", f"{stream}_mod.linear"),
            )
        ),
    )


ARCHITECTURE = Architecture(
    name="hunyuan_video_1_5",
    title="HunyuanVideo 1.5",
    descends_from="hunyuan_video",
    layouts=(
        Layout(
            "original",
            ORIGINAL,
            blocks=(("double_blocks", 54),),
            norms=(*ORIGINAL_DOUBLE_NORMS, *ORIGINAL_END_NORMS),
        ),
        Layout(
            "comfyui",
            COMFYUI,
            blocks=(("double_blocks", 54),),
            norms=(*COMFYUI_DOUBLE_NORMS, *ORIGINAL_END_NORMS),
        ),
        Layout(
            "diffusers",
            DIFFUSERS,
            kohya_prefix="lora_transformer_",
            blocks=(("transformer_blocks", 54),),
            norms=(*DIFFUSERS_DOUBLE_NORMS, *DIFFUSERS_END_NORMS),
        ),
    ),
    sizes=(
        *(Size(None, path, 2048, 2048) for path in under("double_blocks.{i}", *SPLIT_ATTENTION)),
        *(
            Size(None, path, out * 2048, in_ * 2048)
            for path, out, in_ in (*ORIGINAL_PROPORTIONS, *PROPORTIONS)
            if path in (*ORIGINAL, *COMFYUI, *DIFFUSERS)
        ),
    ),
    metadata_names=("hunyuan_video_1_5", "hunyuan-video-1.5"),
    text_encoders=(QWEN25_VL_7B, BYT5_GLYPH),
    correspondence=Correspondence(relations),
    training=Training(
        classes=("MMDoubleStreamBlock",),
        diffusers_classes=("HunyuanVideo15TransformerBlock",),
        models=("HunyuanVideo_1_5_DiffusionTransformer", "HunyuanVideo15Transformer3DModel"),
        # diffusers has its modulation inside the norms.
        excludes=(MODULATION, NORM),
        keys=("hv15",),
    ),
)
