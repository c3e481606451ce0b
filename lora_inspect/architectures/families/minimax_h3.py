"""MiniMax H3: video and sound in one stream.

Leaves as in the original repository's transformer, which ComfyUI and the trainers name alike, and in the
MiniMaxH3Transformer3DModel of diffusers. Relations as in its converters.

No relation says how `attn.qkv_proj` is made of a query, a key and a value. Its rows are stacked in single files and in
adapters of most trainers. In the shards of the original repository and in DiffSynth-Studio's adapters they take turns
by the head. No tensor shows which, so the blocks of the layouts are not related.
"""

from collections.abc import Iterator

from ..correspondence import Correspondence, Relation, same
from ..record import Architecture, Layout, Size, under
from ..text_encoders import SOME_LANGUAGE_MODEL

ORIGINAL_BLOCK = (*under("attn", "qkv_proj", "out_proj"), *under("mlp", "fc1", "fc2"))
DIFFUSERS_BLOCK = (*under("attn", "to_q", "to_k", "to_v", "to_out.0"), *under("ff.net", "0.proj", "2"))
ORIGINAL_ENDS = (
    *("video_patch_proj", "audio_patch_proj", "condition_proj"),
    *under("time_embedder", "proj_in", "proj_out"),
    *under("final_layer", "adaln_proj.linear", "video_out", "audio_out"),
)
DIFFUSERS_ENDS = (
    *("proj_in", "audio_proj_in", "context_embedder"),
    *under("time_embedder", "linear_1", "linear_2"),
    *("norm_out.linear", "proj_out", "audio_proj_out"),
)
# The blocks of the model and those that refine the text, in either layout.
PARENTS = (("blocks.{i}", "transformer_blocks.{i}"), ("token_refiner.blocks.{i}", "token_refiner.refiner_blocks.{i}"))
ADALN = "adaln_proj.linear"
ORIGINAL_BLOCK_NORMS = (*under("attn", "q_norm", "k_norm"), "norm1", "norm2")
DIFFUSERS_BLOCK_NORMS = (*under("attn", "norm_q", "norm_k"), "norm1", "norm2")
_OUTSIDE = ("token_refiner.final_norm", "final_layer.norm")
_OUTSIDE_IN_DIFFUSERS = ("token_refiner.final_norm", "norm_out.norm")
ORIGINAL_NORMS = (
    *(path for parent, _ in PARENTS for path in under(parent, *ORIGINAL_BLOCK_NORMS)),
    *_OUTSIDE,
)
DIFFUSERS_NORMS = (
    *(path for _, parent in PARENTS for path in under(parent, *DIFFUSERS_BLOCK_NORMS)),
    *_OUTSIDE_IN_DIFFUSERS,
)


def relations() -> Iterator[Relation]:
    """Yield the relations of layers outside of the blocks; a block is related as a whole or not at all."""
    yield from map(same, (*ORIGINAL_ENDS, *_OUTSIDE), (*DIFFUSERS_ENDS, *_OUTSIDE_IN_DIFFUSERS))


ARCHITECTURE = Architecture(
    name="minimax_h3",
    title="MiniMax H3",
    layouts=(
        Layout(
            "original",
            (
                *ORIGINAL_ENDS,
                *under("token_refiner.blocks.{i}", *ORIGINAL_BLOCK),
                *under("blocks.{i}", *ORIGINAL_BLOCK, ADALN),
            ),
            blocks=(("blocks", 50), ("token_refiner.blocks", 2)),
            norms=ORIGINAL_NORMS,
        ),
        Layout(
            "diffusers",
            (
                *DIFFUSERS_ENDS,
                *under("token_refiner.refiner_blocks.{i}", *DIFFUSERS_BLOCK),
                *under("transformer_blocks.{i}", *DIFFUSERS_BLOCK, ADALN),
            ),
            kohya_prefix="lora_transformer_",
            blocks=(("transformer_blocks", 50), ("token_refiner.refiner_blocks", 2)),
            norms=DIFFUSERS_NORMS,
        ),
    ),
    # 56 heads, 128 wide each.
    sizes=(
        Size(None, "blocks.{i}.attn.qkv_proj", 21504, 5376),
        Size(None, "blocks.{i}.attn.out_proj", 5376, 7168),
        Size(None, "blocks.{i}.mlp.fc1", 28672, 5376),
        Size(None, "blocks.{i}.mlp.fc2", 5376, 14336),
        *(Size(None, f"transformer_blocks.{{i}}.attn.{path}", 7168, 5376) for path in ("to_q", "to_k", "to_v")),
        Size(None, "transformer_blocks.{i}.attn.to_out.0", 5376, 7168),
        Size(None, "transformer_blocks.{i}.ff.net.0.proj", 28672, 5376),
        Size(None, "transformer_blocks.{i}.ff.net.2", 5376, 14336),
    ),
    metadata_names=("minimax_h3", "minimax_h3_ref2va", "minimaxh3transformer3dmodel"),
    base_names=("minimax-h3",),
    text_encoders=(SOME_LANGUAGE_MODEL,),
    correspondence=Correspondence(relations),
)
