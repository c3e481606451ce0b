"""HunyuanVideo.

Leaves as in the HYVideoDiffusionTransformer of the original repository, in ComfyUI's HunyuanVideo class, which is
built of FLUX.1 blocks, and in the HunyuanVideoTransformer3DModel of diffusers.
"""

from ..correspondence import Correspondence, Relation, below, renamed, same, stack, swapped
from ..record import MODULATION, NORM, Architecture, Layout, Size, Training, under
from ..text_encoders import CLIP_L, LLAMA_8B
from .flux import DIFFUSERS_DOUBLE, DIFFUSERS_SINGLE, ORIGINAL_DOUBLE, ORIGINAL_SINGLE, PROPORTIONS, single_relations
from .flux import DIFFUSERS_NORMS as NORMS
from .flux import ORIGINAL_NORMS as FLUX_NORMS

ORIGINAL_TEXT = (
    "txt_in.input_embedder",
    *under("txt_in.t_embedder.mlp", "0", "2"),
    *under("txt_in.c_embedder", "linear_1", "linear_2"),
    *under(
        "txt_in.individual_token_refiner.blocks.{i}",
        "self_attn_qkv",
        "self_attn_proj",
        "mlp.fc1",
        "mlp.fc2",
        "adaLN_modulation.1",
    ),
)
ORIGINAL_STREAMS = (
    *under("img_mlp", "fc1", "fc2"),
    *under("txt_mlp", "fc1", "fc2"),
    "img_mod.linear",
    "txt_mod.linear",
)
ORIGINAL = (
    "img_in.proj",
    *ORIGINAL_TEXT,
    *under("time_in.mlp", "0", "2"),
    *under("vector_in", "in_layer", "out_layer"),
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
COMFYUI_TEXT = (
    "txt_in.input_embedder",
    *under("txt_in.t_embedder", "in_layer", "out_layer"),
    *under("txt_in.c_embedder", "in_layer", "out_layer"),
    *under(
        "txt_in.individual_token_refiner.blocks.{i}",
        "self_attn.qkv",
        "self_attn.proj",
        "mlp.0",
        "mlp.2",
        "adaLN_modulation.1",
    ),
)
COMFYUI = (
    "img_in.proj",
    *COMFYUI_TEXT,
    *under("time_in", "in_layer", "out_layer"),
    *under("vector_in", "in_layer", "out_layer"),
    *under("guidance_in", "in_layer", "out_layer"),
    *under("double_blocks.{i}", *ORIGINAL_DOUBLE, "img_mod.lin", "txt_mod.lin"),
    *under("single_blocks.{i}", *ORIGINAL_SINGLE, "modulation.lin"),
    "final_layer.linear",
    "final_layer.adaLN_modulation.1",
)
DIFFUSERS_TEXT = (
    *under("context_embedder.time_text_embed.timestep_embedder", "linear_1", "linear_2"),
    *under("context_embedder.time_text_embed.text_embedder", "linear_1", "linear_2"),
    "context_embedder.proj_in",
    *under(
        "context_embedder.token_refiner.refiner_blocks.{i}",
        *under("attn", "to_q", "to_k", "to_v", "to_out.0"),
        "ff.net.0.proj",
        "ff.net.2",
        "norm_out.linear",
    ),
)
DIFFUSERS = (
    "x_embedder.proj",
    *DIFFUSERS_TEXT,
    *under("time_text_embed.timestep_embedder", "linear_1", "linear_2"),
    *under("time_text_embed.text_embedder", "linear_1", "linear_2"),
    *under("time_text_embed.guidance_embedder", "linear_1", "linear_2"),
    *under("transformer_blocks.{i}", *DIFFUSERS_DOUBLE, "norm1.linear", "norm1_context.linear"),
    *under("single_transformer_blocks.{i}", *DIFFUSERS_SINGLE, "norm.linear"),
    "norm_out.linear",
    "proj_out",
)

ORIGINAL_PROPORTIONS = (
    ("double_blocks.{i}.img_attn_qkv", 3, 1),
    ("double_blocks.{i}.txt_attn_qkv", 3, 1),
    ("double_blocks.{i}.img_attn_proj", 1, 1),
    ("double_blocks.{i}.txt_attn_proj", 1, 1),
    ("double_blocks.{i}.img_mlp.fc1", 4, 1),
    ("double_blocks.{i}.img_mlp.fc2", 1, 4),
    ("double_blocks.{i}.txt_mlp.fc1", 4, 1),
    ("double_blocks.{i}.txt_mlp.fc2", 1, 4),
)
ORIGINAL_BLOCKS = (("double_blocks", 20), ("single_blocks", 40))
DIFFUSERS_BLOCKS = (("transformer_blocks", 20), ("single_transformer_blocks", 40))
# Norms of queries and keys, and those of the refiner of the text's tokens.
TEXT_BLOCK_NORMS = ("norm1", "norm2")
ORIGINAL_TEXT_NORMS = under("txt_in.individual_token_refiner.blocks.{i}", *TEXT_BLOCK_NORMS)
DIFFUSERS_TEXT_NORMS = under("context_embedder.token_refiner.refiner_blocks.{i}", *TEXT_BLOCK_NORMS)
ORIGINAL_DOUBLE_NORMS = under(
    "double_blocks.{i}", "img_attn_q_norm", "img_attn_k_norm", "txt_attn_q_norm", "txt_attn_k_norm"
)
ORIGINAL_STREAM_NORMS = (*ORIGINAL_DOUBLE_NORMS, *under("single_blocks.{i}", "q_norm", "k_norm"))
ORIGINAL_NORMS = (*ORIGINAL_STREAM_NORMS, *ORIGINAL_TEXT_NORMS)
COMFYUI_NORMS = (*FLUX_NORMS, *ORIGINAL_TEXT_NORMS)
DIFFUSERS_NORMS = (*NORMS, *DIFFUSERS_TEXT_NORMS)


def ends_in_diffusers() -> tuple[Relation, ...]:
    """Return the relations of the layers before and after the blocks that the descendants have too."""
    return (
        same("img_in.proj", "x_embedder.proj"),
        *below(
            "txt_in",
            "context_embedder",
            same("input_embedder", "proj_in"),
            same("t_embedder.mlp.0", "time_text_embed.timestep_embedder.linear_1"),
            same("t_embedder.mlp.2", "time_text_embed.timestep_embedder.linear_2"),
            same("c_embedder.linear_1", "time_text_embed.text_embedder.linear_1"),
            same("c_embedder.linear_2", "time_text_embed.text_embedder.linear_2"),
        ),
        *below(
            "txt_in.individual_token_refiner.blocks.{i}",
            "context_embedder.token_refiner.refiner_blocks.{i}",
            stack("self_attn_qkv", "attn.to_q", "attn.to_k", "attn.to_v"),
            same("self_attn_proj", "attn.to_out.0"),
            same("mlp.fc1", "ff.net.0.proj"),
            same("mlp.fc2", "ff.net.2"),
            same("adaLN_modulation.1", "norm_out.linear"),
        ),
        same("final_layer.linear", "proj_out"),
        swapped("final_layer.adaLN_modulation.1", "norm_out.linear"),
    )


def blocks_in_diffusers() -> tuple[Relation, ...]:
    """Return the relations of the blocks in the original layout to those of diffusers."""
    return (
        *below(
            "double_blocks.{i}",
            "transformer_blocks.{i}",
            stack("img_attn_qkv", "attn.to_q", "attn.to_k", "attn.to_v"),
            stack("txt_attn_qkv", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
            same("img_attn_proj", "attn.to_out.0"),
            same("txt_attn_proj", "attn.to_add_out"),
            same("img_mlp.fc1", "ff.net.0.proj"),
            same("img_mlp.fc2", "ff.net.2"),
            same("txt_mlp.fc1", "ff_context.net.0.proj"),
            same("txt_mlp.fc2", "ff_context.net.2"),
            same("img_mod.linear", "norm1.linear"),
            same("txt_mod.linear", "norm1_context.linear"),
        ),
        *single_relations(),
        same("single_blocks.{i}.modulation.linear", "single_transformer_blocks.{i}.norm.linear"),
        *map(same, ORIGINAL_NORMS, DIFFUSERS_NORMS),
    )


def ends_in_comfyui(*embedders: str) -> tuple[Relation, ...]:
    """Return ComfyUI's renamings before the blocks, with these embedders of the timestep and of guidance."""
    return (
        *(
            same(f"{parent}.mlp.{number}", f"{parent}.{layer}")
            for parent in ("txt_in.t_embedder", *embedders)
            for number, layer in ((0, "in_layer"), (2, "out_layer"))
        ),
        same("txt_in.c_embedder.linear_1", "txt_in.c_embedder.in_layer"),
        same("txt_in.c_embedder.linear_2", "txt_in.c_embedder.out_layer"),
        *below(
            "txt_in.individual_token_refiner.blocks.{i}",
            "txt_in.individual_token_refiner.blocks.{i}",
            same("self_attn_qkv", "self_attn.qkv"),
            same("self_attn_proj", "self_attn.proj"),
            same("mlp.fc1", "mlp.0"),
            same("mlp.fc2", "mlp.2"),
        ),
    )


def with_comfyui(to_diffusers: tuple[Relation, ...]) -> tuple[Relation, ...]:
    """Return the relations of all three layouts: ComfyUI renames the original layers, and keeps the names of some."""
    to_comfyui = (
        *ends_in_comfyui("time_in", "guidance_in"),
        *(
            same(f"double_blocks.{{i}}.{stream}_{original}", f"double_blocks.{{i}}.{stream}_{comfyui}")
            for stream in ("img", "txt")
            for original, comfyui in (
                ("attn_qkv", "attn.qkv"),
                ("attn_proj", "attn.proj"),
                ("mlp.fc1", "mlp.0"),
                ("mlp.fc2", "mlp.2"),
                ("mod.linear", "mod.lin"),
            )
        ),
        same("single_blocks.{i}.modulation.linear", "single_blocks.{i}.modulation.lin"),
        *map(same, ORIGINAL_STREAM_NORMS, FLUX_NORMS),
    )
    return (*to_diffusers, *to_comfyui, *renamed(to_diffusers, to_comfyui))


def in_diffusers() -> tuple[Relation, ...]:
    """Return the relations of the original layout to that of diffusers."""
    return (
        *ends_in_diffusers(),
        *blocks_in_diffusers(),
        *(
            same(original, f"time_text_embed.{diffusers}")
            for original, diffusers in (
                ("time_in.mlp.0", "timestep_embedder.linear_1"),
                ("time_in.mlp.2", "timestep_embedder.linear_2"),
                ("vector_in.in_layer", "text_embedder.linear_1"),
                ("vector_in.out_layer", "text_embedder.linear_2"),
                ("guidance_in.mlp.0", "guidance_embedder.linear_1"),
                ("guidance_in.mlp.2", "guidance_embedder.linear_2"),
            )
        ),
    )


ARCHITECTURE = Architecture(
    name="hunyuan_video",
    title="HunyuanVideo",
    layouts=(
        Layout("original", ORIGINAL, blocks=ORIGINAL_BLOCKS, norms=ORIGINAL_NORMS),
        Layout("comfyui", COMFYUI, blocks=ORIGINAL_BLOCKS, norms=COMFYUI_NORMS),
        Layout(
            "diffusers",
            DIFFUSERS,
            kohya_prefix="lora_transformer_",
            blocks=DIFFUSERS_BLOCKS,
            norms=DIFFUSERS_NORMS,
        ),
    ),
    sizes=tuple(Size(None, path, out * 3072, in_ * 3072) for path, out, in_ in (*ORIGINAL_PROPORTIONS, *PROPORTIONS)),
    metadata_names=("hunyuan_video", "hunyuan-video", "hunyuanvideotransformer3dmodel"),
    base_names=("hunyuanvideo",),
    text_encoders=(LLAMA_8B, CLIP_L),
    correspondence=Correspondence(lambda: with_comfyui(in_diffusers())),
    training=Training(
        classes=("MMDoubleStreamBlock", "MMSingleStreamBlock"),
        diffusers_classes=("HunyuanVideoTransformerBlock", "HunyuanVideoSingleTransformerBlock"),
        models=("HYVideoDiffusionTransformer", "HunyuanVideoTransformer3DModel"),
        # diffusers has its modulation inside the norms.
        excludes=(MODULATION, NORM),
        keys=("hv",),
    ),
)
