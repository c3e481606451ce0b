"""Lumina-Image 2.0.

Leaves as in the NextDiT of the original repository and in the Lumina2Transformer2DModel of diffusers.
"""

from ..correspondence import Correspondence, Relation, below, same, stack
from ..record import Architecture, Layout, Size, TrainedEncoder, Training, under
from ..text_encoders import GEMMA2_2B, GEMMA2_BLOCKS

ORIGINAL_BLOCK = (*under("attention", "qkv", "out"), *under("feed_forward", "w1", "w2", "w3"))
DIFFUSERS_BLOCK = (
    *under("attn", "to_q", "to_k", "to_v", "to_out.0"),
    *under("feed_forward", "linear_1", "linear_2", "linear_3"),
)
ORIGINAL = (
    "x_embedder",
    *under("t_embedder.mlp", "0", "2"),
    "cap_embedder.1",
    *under("noise_refiner.{i}", *ORIGINAL_BLOCK, "adaLN_modulation.1"),
    *under("context_refiner.{i}", *ORIGINAL_BLOCK),
    *under("layers.{i}", *ORIGINAL_BLOCK, "adaLN_modulation.1"),
    "final_layer.linear",
    "final_layer.adaLN_modulation.1",
)
DIFFUSERS = (
    "x_embedder",
    *under("time_caption_embed.timestep_embedder", "linear_1", "linear_2"),
    "time_caption_embed.caption_embedder.1",
    *under("noise_refiner.{i}", *DIFFUSERS_BLOCK, "norm1.linear"),
    *under("context_refiner.{i}", *DIFFUSERS_BLOCK),
    *under("layers.{i}", *DIFFUSERS_BLOCK, "norm1.linear"),
    *under("norm_out", "linear_1", "linear_2"),
)
ORIGINAL_BLOCK_NORMS = (
    *under("attention", "q_norm", "k_norm"),
    *("attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2"),
)
DIFFUSERS_BLOCK_NORMS = (*under("attn", "norm_q", "norm_k"), "norm1.norm", "norm2", "ffn_norm1", "ffn_norm2")
ORIGINAL_NORMS = (
    *under("noise_refiner.{i}", *ORIGINAL_BLOCK_NORMS),
    *under("context_refiner.{i}", *ORIGINAL_BLOCK_NORMS),
    *under("layers.{i}", *ORIGINAL_BLOCK_NORMS),
    "cap_embedder.0",
)
# Blocks without modulation have the norm itself where the others have one with the modulation.
DIFFUSERS_NORMS = (
    *under("noise_refiner.{i}", *DIFFUSERS_BLOCK_NORMS),
    *under("context_refiner.{i}", *(norm.removesuffix(".norm") for norm in DIFFUSERS_BLOCK_NORMS)),
    *under("layers.{i}", *DIFFUSERS_BLOCK_NORMS),
    "time_caption_embed.caption_embedder.0",
)


def relations() -> tuple[Relation, ...]:
    """Return the relations of the original layout to that of diffusers."""
    block = (
        # The query's heads are as wide together as the inputs; key and value share the rest.
        stack("attention.qkv", "attn.to_q", "attn.to_k", "attn.to_v", shares=("inputs", 1, 1)),
        same("attention.out", "attn.to_out.0"),
        same("feed_forward.w1", "feed_forward.linear_1"),
        same("feed_forward.w2", "feed_forward.linear_2"),
        same("feed_forward.w3", "feed_forward.linear_3"),
    )
    modulation = same("adaLN_modulation.1", "norm1.linear")
    return (
        same("t_embedder.mlp.0", "time_caption_embed.timestep_embedder.linear_1"),
        same("t_embedder.mlp.2", "time_caption_embed.timestep_embedder.linear_2"),
        same("cap_embedder.1", "time_caption_embed.caption_embedder.1"),
        *below("noise_refiner.{i}", "noise_refiner.{i}", *block, modulation),
        *below("context_refiner.{i}", "context_refiner.{i}", *block),
        *below("layers.{i}", "layers.{i}", *block, modulation),
        same("final_layer.adaLN_modulation.1", "norm_out.linear_1"),
        same("final_layer.linear", "norm_out.linear_2"),
        *map(same, ORIGINAL_NORMS, DIFFUSERS_NORMS),
    )


ARCHITECTURE = Architecture(
    name="lumina2",
    title="Lumina-Image 2.0",
    layouts=(
        Layout("original", ORIGINAL, blocks=(("layers", 26),), norms=ORIGINAL_NORMS),
        Layout(
            "diffusers",
            DIFFUSERS,
            kohya_prefix="lora_transformer_",
            blocks=(("layers", 26),),
            norms=DIFFUSERS_NORMS,
        ),
    ),
    # Grouped-query attention: 24 heads of the query, 8 of key and value, 96 wide each.
    sizes=tuple(
        Size(None, f"{parent}.{{i}}.{leaf}", out, in_)
        for parent in ("layers", "noise_refiner", "context_refiner")
        for leaf, out, in_ in (
            ("attention.qkv", 3840, 2304),
            ("attention.out", 2304, 2304),
            ("feed_forward.w1", 9216, 2304),
            ("feed_forward.w2", 2304, 9216),
            ("feed_forward.w3", 9216, 2304),
            ("attn.to_q", 2304, 2304),
            ("attn.to_k", 768, 2304),
            ("attn.to_v", 768, 2304),
            ("attn.to_out.0", 2304, 2304),
        )
    ),
    metadata_names=("lumina2", "lumina-2", "lumina"),
    text_encoders=(GEMMA2_2B,),
    correspondence=Correspondence(relations),
    training=Training(
        classes=("JointTransformerBlock", "FinalLayer"),
        diffusers_classes=("Lumina2TransformerBlock",),
        models=("NextDiT", "Lumina2Transformer2DModel"),
        excludes=(),
        keys=("lumina",),
        text_encoders=(TrainedEncoder("lora_te", GEMMA2_BLOCKS),),
    ),
)
