"""HiDream-I1.

Leaves as in the HiDreamImageTransformer2DModel of diffusers; the original checkpoint has the same names. The router
`ff_i.gate` is a bare parameter, which adapters do not change.
"""

from ..record import Architecture, Layout, Size, under
from ..text_encoders import CLIP_L, LLAMA_8B, OPENCLIP_BIGG, T5_XXL

ATTENTION = under("attn1", "to_q", "to_k", "to_v", "to_out")
TEXT_ATTENTION = under("attn1", "to_q_t", "to_k_t", "to_v_t", "to_out_t")
IMAGE_EXPERTS = (*under("ff_i.shared_experts", "w1", "w2", "w3"), *under("ff_i.experts.{i}", "w1", "w2", "w3"))
PATHS = (
    *under("t_embedder.timestep_embedder", "linear_1", "linear_2"),
    *under("p_embedder.pooled_embedder", "linear_1", "linear_2"),
    "x_embedder.proj",
    "caption_projection.{i}.linear",
    *under(
        "double_stream_blocks.{i}.block",
        "adaLN_modulation.1",
        *ATTENTION,
        *TEXT_ATTENTION,
        *IMAGE_EXPERTS,
        *under("ff_t", "w1", "w2", "w3"),
    ),
    *under("single_stream_blocks.{i}.block", "adaLN_modulation.1", *ATTENTION, *IMAGE_EXPERTS),
    "final_layer.linear",
    "final_layer.adaLN_modulation.1",
)

ARCHITECTURE = Architecture(
    name="hidream_i1",
    title="HiDream-I1",
    layouts=(
        Layout(
            "diffusers", PATHS, blocks=(("double_stream_blocks", 16), ("single_stream_blocks", 32)), also=("original",)
        ),
    ),
    sizes=tuple(
        Size(None, path, 2560, 2560)
        for path in (
            *under("double_stream_blocks.{i}.block", *ATTENTION, *TEXT_ATTENTION),
            *under("single_stream_blocks.{i}.block", *ATTENTION),
        )
    ),
    metadata_names=("hidream_i1", "hidream-i1"),
    text_encoders=(CLIP_L, OPENCLIP_BIGG, T5_XXL, LLAMA_8B),
)
