"""Stable Diffusion 3 and 3.5.

Leaves as in the MMDiT class of the original repository and in the SD3Transformer2DModel of diffusers; `attn2` is the
second attention of 3.5 medium.
"""

from ..correspondence import Correspondence, Relation, below, pair_swapped, same, stack, swapped
from ..record import Architecture, Layout, Size, TrainedEncoder, Training, under
from ..text_encoders import CLIP_BLOCKS, CLIP_L, OPENCLIP_BIGG, T5_BLOCKS, T5_XXL

ORIGINAL = (
    "x_embedder.proj",
    "t_embedder.mlp.0",
    "t_embedder.mlp.2",
    "y_embedder.mlp.0",
    "y_embedder.mlp.2",
    "context_embedder",
    *under(
        "joint_blocks.{i}.x_block",
        "attn.qkv",
        "attn.proj",
        "attn2.qkv",
        "attn2.proj",
        "mlp.fc1",
        "mlp.fc2",
        "adaLN_modulation.1",
    ),
    *under("joint_blocks.{i}.context_block", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "adaLN_modulation.1"),
    "final_layer.linear",
    "final_layer.adaLN_modulation.1",
)
DIFFUSERS = (
    "pos_embed.proj",
    *under("time_text_embed.timestep_embedder", "linear_1", "linear_2"),
    *under("time_text_embed.text_embedder", "linear_1", "linear_2"),
    "context_embedder",
    *under(
        "transformer_blocks.{i}",
        "norm1.linear",
        "norm1_context.linear",
        *under("attn", "to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_out.0", "to_add_out"),
        *under("attn2", "to_q", "to_k", "to_v", "to_out.0"),
        "ff.net.0.proj",
        "ff.net.2",
        "ff_context.net.0.proj",
        "ff_context.net.2",
    ),
    "norm_out.linear",
    "proj_out",
)
# The embedded positions are a parameter of another module in diffusers.
ORIGINAL_NORMS = (
    *under("joint_blocks.{i}.x_block", "attn.ln_q", "attn.ln_k", "attn2.ln_q", "attn2.ln_k"),
    *under("joint_blocks.{i}.context_block.attn", "ln_q", "ln_k"),
    "pos_embed",
)
DIFFUSERS_NORMS = (
    *under("transformer_blocks.{i}", "attn.norm_q", "attn.norm_k", "attn2.norm_q", "attn2.norm_k"),
    *under("transformer_blocks.{i}.attn", "norm_added_q", "norm_added_k"),
    "pos_embed.pos_embed",
)


def relations() -> tuple[Relation, ...]:
    """Return the relations of the original layout to that of diffusers."""
    return (
        same("x_embedder.proj", "pos_embed.proj"),
        *(
            same(f"{original}_embedder.mlp.{number}", f"time_text_embed.{diffusers}_embedder.{layer}")
            for original, diffusers in (("t", "timestep"), ("y", "text"))
            for number, layer in ((0, "linear_1"), (2, "linear_2"))
        ),
        *below(
            "joint_blocks.{i}",
            "transformer_blocks.{i}",
            stack("x_block.attn.qkv", "attn.to_q", "attn.to_k", "attn.to_v"),
            stack("x_block.attn2.qkv", "attn2.to_q", "attn2.to_k", "attn2.to_v"),
            stack("context_block.attn.qkv", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
            same("x_block.attn.proj", "attn.to_out.0"),
            same("x_block.attn2.proj", "attn2.to_out.0"),
            same("context_block.attn.proj", "attn.to_add_out"),
            same("x_block.mlp.fc1", "ff.net.0.proj"),
            same("x_block.mlp.fc2", "ff.net.2"),
            same("context_block.mlp.fc1", "ff_context.net.0.proj"),
            same("context_block.mlp.fc2", "ff_context.net.2"),
            same("x_block.adaLN_modulation.1", "norm1.linear"),
            # The last block, of whatever number, makes nothing of the text but keys and values.
            pair_swapped("context_block.adaLN_modulation.1", "norm1_context.linear"),
        ),
        same("final_layer.linear", "proj_out"),
        swapped("final_layer.adaLN_modulation.1", "norm_out.linear"),
        *map(same, ORIGINAL_NORMS, DIFFUSERS_NORMS),
    )


# The width is 64 times the number of blocks.
ARCHITECTURE = Architecture(
    name="sd3",
    title="Stable Diffusion 3",
    layouts=(
        Layout("original", ORIGINAL, blocks=(("joint_blocks", 38),), norms=ORIGINAL_NORMS),
        Layout(
            "diffusers",
            DIFFUSERS,
            kohya_prefix="lora_transformer_",
            blocks=(("transformer_blocks", 38),),
            norms=DIFFUSERS_NORMS,
        ),
    ),
    sizes=tuple(
        Size(name, path, out_features, width)
        for name, width in (("2B", 1536), ("3.5 large", 2432))
        for path, out_features in (
            ("joint_blocks.{i}.x_block.attn.qkv", 3 * width),
            ("joint_blocks.{i}.context_block.attn.qkv", 3 * width),
            ("joint_blocks.{i}.x_block.attn.proj", width),
            ("joint_blocks.{i}.context_block.attn.proj", width),
            ("transformer_blocks.{i}.attn.to_q", width),
            ("transformer_blocks.{i}.attn.to_k", width),
            ("transformer_blocks.{i}.attn.to_v", width),
            ("transformer_blocks.{i}.attn.add_q_proj", width),
            ("transformer_blocks.{i}.attn.to_out.0", width),
            ("transformer_blocks.{i}.attn.to_add_out", width),
        )
    ),
    metadata_names=(
        "sd_3",
        "medium",
        "5-medium",
        "5-large",
        "stable-diffusion-3",
        "stable-diffusion-3-medium",
        "stable-diffusion-3-5-medium",
        "stable-diffusion-3-5-large",
        "stable-diffusion-v3-medium",
        "stable-diffusion-v3.5",
    ),
    text_encoders=(CLIP_L, OPENCLIP_BIGG, T5_XXL),
    correspondence=Correspondence(relations),
    training=Training(
        classes=("SingleDiTBlock",),
        diffusers_classes=("JointTransformerBlock",),
        models=("MMDiT", "SD3Transformer2DModel"),
        excludes=(),
        keys=("sd3",),
        text_encoders=(
            TrainedEncoder("lora_te1", CLIP_BLOCKS),
            TrainedEncoder("lora_te2", CLIP_BLOCKS),
            TrainedEncoder("lora_te3", T5_BLOCKS, switch="train_t5xxl"),
        ),
    ),
)
