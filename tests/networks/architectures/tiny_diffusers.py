"""diffusers' class of each architecture, at its smallest."""

import warnings
from typing import Any

from torch import nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import diffusers

HEADS = {"num_attention_heads": 2, "attention_head_dim": 16}
STREAMS = {**HEADS, "patch_size": 1, "in_channels": 4, "num_layers": 1, "num_single_layers": 1}
HUNYUAN: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 10,
    "num_layers": 1,
    "num_refiner_layers": 1,
    "text_embed_dim": 16,
    "rope_axes_dim": (2, 4, 4),
}
DIFFUSERS: dict[str, tuple[str, dict[str, Any]]] = {
    "wan": (
        "WanTransformer3DModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "in_channels": 4,
            "out_channels": 4,
            "text_dim": 16,
            "freq_dim": 16,
            "ffn_dim": 32,
            "num_layers": 2,
            "rope_max_seq_len": 32,
        },
    ),
    "flux": (
        "FluxTransformer2DModel",
        {
            **STREAMS,
            "joint_attention_dim": 16,
            "pooled_projection_dim": 16,
            "guidance_embeds": True,
            "axes_dims_rope": (4, 4, 8),
        },
    ),
    "flux2": (
        "Flux2Transformer2DModel",
        {**STREAMS, "joint_attention_dim": 16, "timestep_guidance_channels": 16, "axes_dims_rope": (4, 4, 4, 4)},
    ),
    "qwen_image": (
        "QwenImageTransformer2DModel",
        {
            **HEADS,
            "patch_size": 2,
            "in_channels": 16,
            "out_channels": 4,
            "num_layers": 2,
            "joint_attention_dim": 16,
            "axes_dims_rope": (4, 6, 6),
        },
    ),
    "z_image": (
        "ZImageTransformer2DModel",
        {
            "all_patch_size": (2,),
            "all_f_patch_size": (1,),
            "in_channels": 4,
            "dim": 32,
            "n_layers": 2,
            "n_refiner_layers": 1,
            "n_heads": 2,
            "n_kv_heads": 2,
            "cap_feat_dim": 16,
            "axes_dims": [4, 6, 6],
            "axes_lens": [64, 32, 32],
        },
    ),
    "hunyuan_video": (
        "HunyuanVideoTransformer3DModel",
        {
            **HUNYUAN,
            "num_single_layers": 1,
            "patch_size": 1,
            "patch_size_t": 1,
            "guidance_embeds": True,
            "pooled_projection_dim": 8,
        },
    ),
    "hunyuan_video_1_5": (
        "HunyuanVideo15Transformer3DModel",
        {**HUNYUAN, "text_embed_2_dim": 16, "image_embed_dim": 16},
    ),
    "framepack": (
        "HunyuanVideoFramepackTransformer3DModel",
        {
            **HUNYUAN,
            "num_single_layers": 1,
            "patch_size": 2,
            "patch_size_t": 1,
            "pooled_projection_dim": 8,
            "has_image_proj": True,
            "image_proj_dim": 16,
            "has_clean_x_embedder": True,
        },
    ),
    "kandinsky5": (
        "Kandinsky5Transformer3DModel",
        {
            "in_visual_dim": 4,
            "in_text_dim": 16,
            "in_text_dim2": 16,
            "time_dim": 16,
            "out_visual_dim": 4,
            "patch_size": (1, 2, 2),
            "model_dim": 32,
            "ff_dim": 64,
            "num_text_blocks": 1,
            "num_visual_blocks": 1,
            "axes_dims": (4, 6, 6),
        },
    ),
    "ideogram4": (
        "Ideogram4Transformer2DModel",
        {
            **HEADS,
            "in_channels": 4,
            "num_layers": 1,
            "intermediate_size": 32,
            "adaln_dim": 8,
            "llm_features_dim": 16,
            "mrope_section": (2, 3, 3),
        },
    ),
    "krea2": (
        "Krea2Transformer2DModel",
        {
            **HEADS,
            "in_channels": 4,
            "num_layers": 1,
            "num_key_value_heads": 1,
            "intermediate_size": 32,
            "timestep_embed_dim": 16,
            "text_hidden_dim": 16,
            "num_text_layers": 2,
            "text_num_attention_heads": 2,
            "text_num_key_value_heads": 2,
            "text_intermediate_size": 16,
            "num_layerwise_text_blocks": 1,
            "num_refiner_text_blocks": 1,
            "axes_dims_rope": (4, 6, 6),
        },
    ),
}


def tiny(name: str) -> nn.Module:
    """The model of an architecture."""
    kind, arguments = DIFFUSERS[name]
    model: nn.Module = getattr(diffusers, kind)(**arguments)
    return model
