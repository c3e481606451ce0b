"""Wan 2.1 and 2.2, with the image-to-video and VACE layers.

Leaves as in the WanModel of the original repository and in the WanTransformer3DModel and WanVACETransformer3DModel of
diffusers. The two experts of Wan 2.2 14B have the same names; no tensor of a file of one says which it is.
"""

from ..correspondence import Correspondence, same
from ..record import MODULATION, Architecture, Layout, Size, Training, under
from ..text_encoders import T5_XXL

ORIGINAL_ATTENTION = (
    *under("self_attn", "q", "k", "v", "o"),
    *under("cross_attn", "q", "k", "v", "o", "k_img", "v_img"),
)
DIFFUSERS_ATTENTION = (
    *under("attn1", "to_q", "to_k", "to_v", "to_out.0"),
    *under("attn2", "to_q", "to_k", "to_v", "to_out.0", "add_k_proj", "add_v_proj"),
)
ORIGINAL_BLOCK = (*ORIGINAL_ATTENTION, *under("ffn", "0", "2"))
DIFFUSERS_BLOCK = (*DIFFUSERS_ATTENTION, *under("ffn.net", "0.proj", "2"))
ORIGINAL = (
    "patch_embedding",
    "vace_patch_embedding",
    *under("text_embedding", "0", "2"),
    *under("time_embedding", "0", "2"),
    "time_projection.1",
    *under("img_emb.proj", "1", "3"),
    *under("blocks.{i}", *ORIGINAL_BLOCK),
    *under("vace_blocks.{i}", *ORIGINAL_BLOCK, "before_proj", "after_proj"),
    "head.head",
)
DIFFUSERS = (
    "patch_embedding",
    "vace_patch_embedding",
    *under("condition_embedder.text_embedder", "linear_1", "linear_2"),
    *under("condition_embedder.time_embedder", "linear_1", "linear_2"),
    "condition_embedder.time_proj",
    *under("condition_embedder.image_embedder", "ff.net.0.proj", "ff.net.2"),
    *under("blocks.{i}", *DIFFUSERS_BLOCK),
    *under("vace_blocks.{i}", *DIFFUSERS_BLOCK, "proj_in", "proj_out"),
    "proj_out",
)
# The norm before the cross-attention is the only one of a block with numbers of its own. The modulation of the head is
# one of the model itself in diffusers.
ORIGINAL_BLOCK_NORMS = (
    "norm3",
    *under("self_attn", "norm_q", "norm_k"),
    *under("cross_attn", "norm_q", "norm_k", "norm_k_img"),
    "modulation",
)
DIFFUSERS_BLOCK_NORMS = (
    "norm2",
    *under("attn1", "norm_q", "norm_k"),
    *under("attn2", "norm_q", "norm_k", "norm_added_k"),
    "scale_shift_table",
)
ORIGINAL_NORMS = (
    *under("blocks.{i}", *ORIGINAL_BLOCK_NORMS),
    *under("vace_blocks.{i}", *ORIGINAL_BLOCK_NORMS),
    *under("img_emb.proj", "0", "4"),
    "head.modulation",
)
DIFFUSERS_NORMS = (
    *under("blocks.{i}", *DIFFUSERS_BLOCK_NORMS),
    *under("vace_blocks.{i}", *DIFFUSERS_BLOCK_NORMS),
    *under("condition_embedder.image_embedder", "norm1", "norm2"),
    "scale_shift_table",
)

ARCHITECTURE = Architecture(
    name="wan",
    title="Wan 2.1 / 2.2",
    layouts=(
        Layout("original", ORIGINAL, blocks=(("blocks", 40),), norms=ORIGINAL_NORMS),
        Layout(
            "diffusers",
            DIFFUSERS,
            kohya_prefix="lora_transformer_",
            blocks=(("blocks", 40),),
            norms=DIFFUSERS_NORMS,
        ),
    ),
    sizes=tuple(
        Size(name, path, out_features, in_features)
        for name, width, inner in (("1.3B", 1536, 8960), ("5B", 3072, 14336), ("14B", 5120, 13824))
        for path, out_features, in_features in (
            *((path, width, width) for path in under("blocks.{i}", *ORIGINAL_ATTENTION, *DIFFUSERS_ATTENTION)),
            *((path, inner, width) for path in under("blocks.{i}", "ffn.0", "ffn.net.0.proj")),
            *((path, width, inner) for path in under("blocks.{i}", "ffn.2", "ffn.net.2")),
        )
    ),
    metadata_names=("wan", "wan2.1", "wan_2.1", "wan_2.2_14b", "wan_2.2_5b"),
    text_encoders=(T5_XXL,),
    experts=("high noise", "low noise"),
    experts_title="Wan 2.2",
    correspondence=Correspondence(lambda: map(same, (*ORIGINAL, *ORIGINAL_NORMS), (*DIFFUSERS, *DIFFUSERS_NORMS))),
    training=Training(
        classes=("WanAttentionBlock",),
        diffusers_classes=("WanTransformerBlock",),
        models=("WanModel", "WanTransformer3DModel"),
        excludes=(
            MODULATION,
            r".*(patch_embedding|text_embedding|time_embedding|time_projection|norm|head).*",
        ),
        keys=("wan",),
    ),
)
