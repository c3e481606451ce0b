"""Ideogram 4.

Leaves as in the Ideogram4Transformer of the original repository, where query, key and value are fused, and in the
Ideogram4Transformer2DModel of diffusers.
"""

from ..correspondence import Correspondence, Relation, below, same, stack
from ..record import Architecture, Layout, Size, Training, under

FEED_FORWARD = under("feed_forward", "w1", "w2", "w3")
EMBEDDERS = (
    "input_proj",
    "llm_cond_proj",
    *under("t_embedding", "mlp_in", "mlp_out"),
    "adaln_proj",
    "embed_image_indicator",
)
FINAL_LAYER = under("final_layer", "linear", "adaln_modulation")
ORIGINAL = (
    *EMBEDDERS,
    *under("layers.{i}", *under("attention", "qkv", "o"), *FEED_FORWARD, "adaln_modulation"),
    *FINAL_LAYER,
)
DIFFUSERS = (
    *EMBEDDERS,
    *under(
        "layers.{i}",
        *under("attention", "to_q", "to_k", "to_v", "to_out.0"),
        *FEED_FORWARD,
        "adaln_modulation",
    ),
    *FINAL_LAYER,
)


def relations() -> tuple[Relation, ...]:
    """Return the relations of the original layout to that of diffusers."""
    return below(
        "layers.{i}.attention",
        "layers.{i}.attention",
        stack("qkv", "to_q", "to_k", "to_v"),
        same("o", "to_out.0"),
    )


ARCHITECTURE = Architecture(
    name="ideogram4",
    title="Ideogram 4",
    layouts=(
        Layout("original", ORIGINAL, blocks=(("layers", 34),)),
        Layout("diffusers", DIFFUSERS, kohya_prefix="lora_transformer_", blocks=(("layers", 34),)),
    ),
    sizes=tuple(
        Size(None, f"layers.{{i}}.{leaf}", out, in_)
        for leaf, out, in_ in (
            ("attention.qkv", 13824, 4608),
            ("attention.o", 4608, 4608),
            ("attention.to_q", 4608, 4608),
            ("attention.to_k", 4608, 4608),
            ("attention.to_v", 4608, 4608),
            ("attention.to_out.0", 4608, 4608),
            ("feed_forward.w1", 12288, 4608),
            ("feed_forward.w2", 4608, 12288),
            ("feed_forward.w3", 12288, 4608),
        )
    ),
    metadata_names=("ideogram4", "ideogram-4", "ideogram"),
    correspondence=Correspondence(relations),
    training=Training(
        classes=("Ideogram4TransformerBlock",),
        models=("Ideogram4Transformer", "Ideogram4Transformer2DModel"),
        keys=("i4",),
    ),
)
