"""Krea 2.

Leaves as in the SingleStreamDiT of the original repository and in the Krea2Transformer2DModel of diffusers.
"""

from ..correspondence import Correspondence, same
from ..record import Architecture, Layout, Size, Training, under
from ..text_encoders import SOME_LANGUAGE_MODEL

ORIGINAL_BLOCK = (*under("attn", "wq", "wk", "wv", "wo", "gate"), *under("mlp", "gate", "up", "down"))
DIFFUSERS_BLOCK = (
    *under("attn", "to_q", "to_k", "to_v", "to_out.0", "to_gate"),
    *under("ff", "gate", "up", "down"),
)
ORIGINAL = (
    "first",
    *under("tmlp", "0", "2"),
    "tproj.1",
    *under("txtfusion.layerwise_blocks.{i}", *ORIGINAL_BLOCK),
    *under("txtfusion.refiner_blocks.{i}", *ORIGINAL_BLOCK),
    "txtfusion.projector",
    *under("txtmlp", "1", "3"),
    *under("blocks.{i}", *ORIGINAL_BLOCK),
    "last.linear",
)
DIFFUSERS = (
    "img_in",
    *under("time_embed", "linear_1", "linear_2"),
    "time_mod_proj",
    *under("text_fusion.layerwise_blocks.{i}", *DIFFUSERS_BLOCK),
    *under("text_fusion.refiner_blocks.{i}", *DIFFUSERS_BLOCK),
    "text_fusion.projector",
    *under("txt_in", "linear_1", "linear_2"),
    *under("transformer_blocks.{i}", *DIFFUSERS_BLOCK),
    "final_layer.linear",
)
# The six vectors of a block's modulation are one in the original repository, which no relation of names says.
ORIGINAL_BLOCK_NORMS = ("attn.qknorm.qnorm", "attn.qknorm.knorm", "prenorm", "postnorm")
DIFFUSERS_BLOCK_NORMS = ("attn.norm_q", "attn.norm_k", "norm1", "norm2")
ORIGINAL_NORMS = (
    *under("txtfusion.layerwise_blocks.{i}", *ORIGINAL_BLOCK_NORMS),
    *under("txtfusion.refiner_blocks.{i}", *ORIGINAL_BLOCK_NORMS),
    "txtmlp.0",
    *under("blocks.{i}", *ORIGINAL_BLOCK_NORMS),
    "last.norm",
)
DIFFUSERS_NORMS = (
    *under("text_fusion.layerwise_blocks.{i}", *DIFFUSERS_BLOCK_NORMS),
    *under("text_fusion.refiner_blocks.{i}", *DIFFUSERS_BLOCK_NORMS),
    "txt_in.norm",
    *under("transformer_blocks.{i}", *DIFFUSERS_BLOCK_NORMS),
    "final_layer.norm",
)

ARCHITECTURE = Architecture(
    name="krea2",
    title="Krea 2",
    layouts=(
        Layout("original", ORIGINAL, blocks=(("blocks", 28),), norms=ORIGINAL_NORMS),
        Layout(
            "diffusers",
            DIFFUSERS,
            kohya_prefix="lora_transformer_",
            blocks=(("transformer_blocks", 28),),
            norms=DIFFUSERS_NORMS,
        ),
    ),
    # Grouped-query attention: 48 heads of the query, 12 of key and value, 128 wide each.
    sizes=(
        Size(None, "blocks.{i}.attn.wq", 6144, 6144),
        Size(None, "blocks.{i}.attn.wk", 1536, 6144),
        Size(None, "blocks.{i}.attn.wv", 1536, 6144),
        Size(None, "blocks.{i}.attn.wo", 6144, 6144),
        Size(None, "transformer_blocks.{i}.attn.to_q", 6144, 6144),
        Size(None, "transformer_blocks.{i}.attn.to_k", 1536, 6144),
        Size(None, "transformer_blocks.{i}.attn.to_v", 1536, 6144),
        Size(None, "transformer_blocks.{i}.attn.to_out.0", 6144, 6144),
    ),
    metadata_names=("krea2", "krea-2"),
    text_encoders=(SOME_LANGUAGE_MODEL,),
    correspondence=Correspondence(lambda: map(same, (*ORIGINAL, *ORIGINAL_NORMS), (*DIFFUSERS, *DIFFUSERS_NORMS))),
    # Its modulation is no Linear, so that nothing is excluded: every Linear of the model is adapted.
    training=Training(
        classes=None,
        models=("SingleStreamDiT", "Krea2Transformer2DModel"),
        excludes=(),
        keys=("kr2",),
    ),
)
