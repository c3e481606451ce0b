"""Layers of the tiny models in `layouts` that adapters of one layout change, and the names that files have for them."""

import layouts
from adapters import dotted, kohya

SPLIT = [
    "transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.to_k", "transformer_blocks.0.attn.to_v",
    "transformer_blocks.0.attn.add_k_proj", "transformer_blocks.0.attn.to_out.0", "transformer_blocks.0.ff.net.0.proj",
    "transformer_blocks.1.attn.to_v", "transformer_blocks.1.norm1_context.linear",
    "single_transformer_blocks.0.attn.to_q", "single_transformer_blocks.0.attn.to_k",
    "single_transformer_blocks.0.attn.to_v", "single_transformer_blocks.0.proj_mlp",
    "single_transformer_blocks.1.proj_mlp", "single_transformer_blocks.1.proj_out",
    "norm_out.linear", "proj_out", "x_embedder", "time_text_embed.guidance_embedder.linear_2",
]  # fmt: skip
FUSED = [
    "double_blocks.0.img_attn.qkv", "double_blocks.1.txt_attn.qkv", "double_blocks.1.txt_attn.proj",
    "double_blocks.0.img_mlp.2", "double_blocks.0.img_mod.lin", "single_blocks.0.linear1", "single_blocks.1.linear2",
    "single_blocks.1.modulation.lin", "final_layer.adaLN_modulation.1", "final_layer.linear", "txt_in",
    "vector_in.in_layer",
]  # fmt: skip
NAMES = {
    "kohya": (kohya, "lora_unet_"),
    "OneTrainer": (kohya, "lora_transformer_"),
    "diffusers": (dotted, "transformer."),
    "comfyui": (dotted, "diffusion_model."),
}
# What files of models as narrow as these say, whose names alone may be of several families.
SAYS = {"ss_base_model_version": "flux1"}


UNET = {
    "block_out_channels": (32, 32, 64),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (2, 4, 8),
    "transformer_layers_per_block": (1, 2, 2),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 80,
    "cross_attention_dim": 2048,
}


def sdxl():
    """The tensors of a tiny UNet by both names, as diffusers' own conversion pairs them."""
    diffusers = layouts.unet(UNET)
    pairs = layouts.unet_names(layouts.original_unet("sdxl"), {"addition_embed_type": "text_time"})
    names = {
        f"{theirs}.{parameter}": f"{ours}.{parameter}"
        for ours, theirs in pairs.items()
        for parameter in ("weight", "bias")
        if f"{theirs}.{parameter}" in diffusers
    }
    return diffusers, names
