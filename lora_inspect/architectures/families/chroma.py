"""Chroma: FLUX.1 without modulation layers; one distilled guidance layer gives their values.

An adapter of only the blocks has the names and widths of a FLUX.1 adapter without modulation.
"""

from ..correspondence import Correspondence, Relation, below, same
from ..record import Architecture, Layout, Size, under
from ..text_encoders import T5_XXL
from .flux import (
    DIFFUSERS_DOUBLE,
    DIFFUSERS_NORMS,
    DIFFUSERS_SINGLE,
    ORIGINAL_DOUBLE,
    ORIGINAL_NORMS,
    ORIGINAL_SINGLE,
    PROPORTIONS,
    double_relations,
    end_relations,
    norm_relations,
    single_relations,
)

ORIGINAL = (
    "img_in",
    "txt_in",
    "distilled_guidance_layer.in_proj",
    *under("distilled_guidance_layer.layers.{i}", "in_layer", "out_layer"),
    "distilled_guidance_layer.out_proj",
    *under("double_blocks.{i}", *ORIGINAL_DOUBLE),
    *under("single_blocks.{i}", *ORIGINAL_SINGLE),
    "final_layer.linear",
)
DIFFUSERS = (
    "x_embedder",
    "context_embedder",
    "distilled_guidance_layer.in_proj",
    *under("distilled_guidance_layer.layers.{i}", "linear_1", "linear_2"),
    "distilled_guidance_layer.out_proj",
    *under("transformer_blocks.{i}", *DIFFUSERS_DOUBLE),
    *under("single_transformer_blocks.{i}", *DIFFUSERS_SINGLE),
    "proj_out",
)

GUIDANCE = "distilled_guidance_layer"
GUIDANCE_NORMS = f"{GUIDANCE}.norms.{{i}}"


def relations() -> tuple[Relation, ...]:
    """Return the relations of the original layout to that of diffusers."""
    return (
        *end_relations(),
        *below(GUIDANCE, GUIDANCE, same("in_proj", "in_proj"), same("out_proj", "out_proj")),
        *below(
            f"{GUIDANCE}.layers.{{i}}",
            f"{GUIDANCE}.layers.{{i}}",
            same("in_layer", "linear_1"),
            same("out_layer", "linear_2"),
        ),
        *double_relations(),
        *single_relations(),
        *norm_relations(),
    )


ARCHITECTURE = Architecture(
    name="chroma",
    title="Chroma",
    descends_from="flux",
    layouts=(
        Layout(
            "original",
            ORIGINAL,
            blocks=(("double_blocks", 19), ("single_blocks", 38)),
            norms=(*ORIGINAL_NORMS, GUIDANCE_NORMS),
        ),
        Layout(
            "diffusers",
            DIFFUSERS,
            kohya_prefix="lora_transformer_",
            blocks=(("transformer_blocks", 19), ("single_transformer_blocks", 38)),
            norms=(*DIFFUSERS_NORMS, GUIDANCE_NORMS),
        ),
    ),
    sizes=tuple(Size(None, path, out * 3072, in_ * 3072) for path, out, in_ in PROPORTIONS),
    metadata_names=("chroma", "chroma1", "chromatransformer2dmodel"),
    base_names=("chroma",),
    text_encoders=(T5_XXL,),
    correspondence=Correspondence(relations),
)
