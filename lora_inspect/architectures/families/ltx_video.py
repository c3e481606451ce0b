"""LTX-Video.

Leaves as in the original repository's transformer and in the LTXVideoTransformer3DModel of diffusers, which differ
in the embedders alone.
"""

from ..correspondence import Correspondence, Relation, below, same
from ..record import Architecture, Layout, Size, under
from ..text_encoders import T5_XXL

ATTENTION = (
    *under("attn1", "to_q", "to_k", "to_v", "to_out.0"),
    *under("attn2", "to_q", "to_k", "to_v", "to_out.0"),
)
TIMESTEP = ("emb.timestep_embedder.linear_1", "emb.timestep_embedder.linear_2", "linear")
COMMON = (
    *under("caption_projection", "linear_1", "linear_2"),
    *under("transformer_blocks.{i}", *ATTENTION, "ff.net.0.proj", "ff.net.2"),
    "proj_out",
)
TABLES = ("transformer_blocks.{i}.scale_shift_table", "scale_shift_table")


def norms_of(query: str, key: str, *attentions: str) -> tuple[str, ...]:
    """The norms of queries and keys in the attentions of a block."""
    return tuple(
        path for attention in attentions for path in under(f"transformer_blocks.{{i}}.{attention}", query, key)
    )


ORIGINAL_NORMS = (*norms_of("q_norm", "k_norm", "attn1", "attn2"), *TABLES)
DIFFUSERS_NORMS = (*norms_of("norm_q", "norm_k", "attn1", "attn2"), *TABLES)


def timestep(original: str, diffusers: str) -> tuple[Relation, ...]:
    """The layers that embed a timestep, below two parents."""
    return below(original, diffusers, *(same(layer, layer) for layer in TIMESTEP))


ARCHITECTURE = Architecture(
    name="ltx_video",
    title="LTX-Video",
    layouts=(
        Layout(
            "original",
            ("patchify_proj", *under("adaln_single", *TIMESTEP), *COMMON),
            blocks=(("transformer_blocks", 28),),
            norms=ORIGINAL_NORMS,
        ),
        Layout(
            "diffusers",
            ("proj_in", *under("time_embed", *TIMESTEP), *COMMON),
            kohya_prefix="lora_transformer_",
            blocks=(("transformer_blocks", 28),),
            norms=DIFFUSERS_NORMS,
        ),
    ),
    sizes=tuple(Size(None, path, 2048, 2048) for path in under("transformer_blocks.{i}", *ATTENTION)),
    text_encoders=(T5_XXL,),
    correspondence=Correspondence(
        lambda: (
            same("patchify_proj", "proj_in"),
            *timestep("adaln_single", "time_embed"),
            *map(same, ORIGINAL_NORMS, DIFFUSERS_NORMS),
        )
    ),
)
