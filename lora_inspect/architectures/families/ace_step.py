"""ACE-Step 1, which makes music.

Leaves as in the ACEStepTransformer2DModel of the original repository; ComfyUI keeps its names. No class of diffusers
has them.
"""

from ..record import Architecture, Layout, Size, under

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
PATHS = (
    *under("proj_in.early_conv_layers", "0", "2"),
    *under("timestep_embedder", "linear_1", "linear_2"),
    "t_block.1",
    "speaker_embedder",
    "genre_embedder",
    "lyric_embs",
    "lyric_proj",
    "lyric_encoder.embed.out.0",
    *under(
        "lyric_encoder.encoders.{i}",
        *under("self_attn", "linear_q", "linear_k", "linear_v", "linear_out", "linear_pos"),
        *under("feed_forward", "w_1", "w_2"),
    ),
    *under(
        "transformer_blocks.{i}",
        *under("attn", *ATTENTION),
        *under("cross_attn", *ATTENTION),
        *under("ff", "inverted_conv.conv", "depth_conv.conv", "point_conv.conv"),
    ),
    *under("projectors.{i}", "0", "2", "4"),
    "final_layer.linear",
)

ARCHITECTURE = Architecture(
    name="ace_step",
    title="ACE-Step",
    layouts=(Layout("original", PATHS, blocks=(("transformer_blocks", 24),)),),
    sizes=tuple(
        Size(None, f"transformer_blocks.{{i}}.{attention}.{layer}", 2560, 2560)
        for attention in ("attn", "cross_attn")
        for layer in ATTENTION
    ),
)
