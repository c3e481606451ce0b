"""Z-Image.

Leaves as in the checkpoint of the original repository, where query, key and value are fused, and in the
ZImageTransformer2DModel of diffusers, which musubi-tuner trains too.
"""

from ..correspondence import Correspondence, Relation, below, same, stack
from ..record import MODULATION, Architecture, Layout, Size, Switch, Training, under
from ..text_encoders import QWEN3_4B

FEED_FORWARD = under("feed_forward", "w1", "w2", "w3")
ORIGINAL_BLOCK = (*under("attention", "qkv", "out"), *FEED_FORWARD)
DIFFUSERS_BLOCK = (*under("attention", "to_q", "to_k", "to_v", "to_out.0"), *FEED_FORWARD)
EMBEDDERS = ("cap_embedder.1", *under("t_embedder.mlp", "0", "2"))

ORIGINAL = (
    "x_embedder",
    *EMBEDDERS,
    *under("noise_refiner.{i}", *ORIGINAL_BLOCK, "adaLN_modulation.0"),
    *under("context_refiner.{i}", *ORIGINAL_BLOCK),
    *under("layers.{i}", *ORIGINAL_BLOCK, "adaLN_modulation.0"),
    "final_layer.linear",
    "final_layer.adaLN_modulation.1",
)
DIFFUSERS = (
    "all_x_embedder.2-1",
    *EMBEDDERS,
    *under("noise_refiner.{i}", *DIFFUSERS_BLOCK, "adaLN_modulation.0"),
    *under("context_refiner.{i}", *DIFFUSERS_BLOCK),
    *under("layers.{i}", *DIFFUSERS_BLOCK, "adaLN_modulation.0"),
    "all_final_layer.2-1.linear",
    "all_final_layer.2-1.adaLN_modulation.1",
)
BLOCKS = ("noise_refiner.{i}", "context_refiner.{i}", "layers.{i}")
BLOCK_NORMS = ("attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2")
END_NORMS = ("cap_embedder.0", "x_pad_token", "cap_pad_token")
ORIGINAL_NORMS = (
    *(path for block in BLOCKS for path in under(block, "attention.q_norm", "attention.k_norm", *BLOCK_NORMS)),
    *END_NORMS,
)
DIFFUSERS_NORMS = (
    *(path for block in BLOCKS for path in under(block, "attention.norm_q", "attention.norm_k", *BLOCK_NORMS)),
    *END_NORMS,
)


def relations() -> tuple[Relation, ...]:
    """Return the relations of the original layout to that of diffusers."""
    attention = (
        stack("attention.qkv", "attention.to_q", "attention.to_k", "attention.to_v"),
        same("attention.out", "attention.to_out.0"),
    )
    return (
        same("x_embedder", "all_x_embedder.2-1"),
        *(relation for blocks in BLOCKS for relation in below(blocks, blocks, *attention)),
        *below(
            "final_layer",
            "all_final_layer.2-1",
            same("linear", "linear"),
            same("adaLN_modulation.1", "adaLN_modulation.1"),
        ),
        *map(same, ORIGINAL_NORMS, DIFFUSERS_NORMS),
    )


ARCHITECTURE = Architecture(
    name="z_image",
    title="Z-Image",
    layouts=(
        Layout("original", ORIGINAL, blocks=(("layers", 30),), norms=ORIGINAL_NORMS),
        Layout("diffusers", DIFFUSERS, blocks=(("layers", 30),), norms=DIFFUSERS_NORMS),
    ),
    sizes=tuple(
        Size(None, f"{parent}.{{i}}.{leaf}", out, in_)
        for parent in ("layers", "noise_refiner", "context_refiner")
        for leaf, out, in_ in (
            ("attention.qkv", 11520, 3840),
            ("attention.out", 3840, 3840),
            ("attention.to_q", 3840, 3840),
            ("attention.to_k", 3840, 3840),
            ("attention.to_v", 3840, 3840),
            ("attention.to_out.0", 3840, 3840),
            ("feed_forward.w1", 10240, 3840),
            ("feed_forward.w2", 3840, 10240),
            ("feed_forward.w3", 10240, 3840),
        )
    ),
    metadata_names=("z_image", "zimage", "z-image"),
    text_encoders=(QWEN3_4B,),
    correspondence=Correspondence(relations),
    training=Training(
        classes=("ZImageTransformerBlock",),
        models=("ZImageTransformer2DModel",),
        excludes=(MODULATION,),
        switches=(Switch("include_refiner", default=False, excluding=False, excludes=(r".*_refiner.*",)),),
        keys=("zi",),
    ),
)
