"""FLUX.2 (dev, klein 9B, klein 4B).

Leaves as in the Flux2 class of the original repository and in the Flux2Transformer2DModel of diffusers. Modulation is
shared by all blocks; the feed-forward is gated, so its first layer is 6 times the hidden width.
"""

from ..correspondence import Correspondence, Relation, below, same, swapped
from ..record import MODULATION, NORM, Architecture, Layout, Size, Training, under
from ..text_encoders import SOME_LANGUAGE_MODEL
from .flux import (
    DIFFUSERS_ATTENTION,
    DIFFUSERS_NORMS,
    ORIGINAL_DOUBLE,
    ORIGINAL_NORMS,
    ORIGINAL_SINGLE,
    attention_relations,
    end_relations,
    norm_relations,
)

ORIGINAL = (
    "img_in",
    "txt_in",
    *under("time_in", "in_layer", "out_layer"),
    *under("guidance_in", "in_layer", "out_layer"),
    "double_stream_modulation_img.lin",
    "double_stream_modulation_txt.lin",
    "single_stream_modulation.lin",
    *under("double_blocks.{i}", *ORIGINAL_DOUBLE),
    *under("single_blocks.{i}", *ORIGINAL_SINGLE),
    "final_layer.linear",
    "final_layer.adaLN_modulation.1",
)
DIFFUSERS = (
    "x_embedder",
    "context_embedder",
    *under("time_guidance_embed.timestep_embedder", "linear_1", "linear_2"),
    *under("time_guidance_embed.guidance_embedder", "linear_1", "linear_2"),
    "double_stream_modulation_img.linear",
    "double_stream_modulation_txt.linear",
    "single_stream_modulation.linear",
    *under(
        "transformer_blocks.{i}",
        *DIFFUSERS_ATTENTION,
        *under("ff", "linear_in", "linear_out"),
        *under("ff_context", "linear_in", "linear_out"),
    ),
    *under("single_transformer_blocks.{i}.attn", "to_qkv_mlp_proj", "to_out"),
    "norm_out.linear",
    "proj_out",
)


def relations() -> tuple[Relation, ...]:
    """Return the relations of the original layout to that of diffusers."""
    return (
        *end_relations(),
        *(
            same(f"{original}_in.{layer}", f"time_guidance_embed.{diffusers}_embedder.linear_{number}")
            for original, diffusers in (("time", "timestep"), ("guidance", "guidance"))
            for number, layer in ((1, "in_layer"), (2, "out_layer"))
        ),
        *(
            same(f"{stream}.lin", f"{stream}.linear")
            for stream in ("double_stream_modulation_img", "double_stream_modulation_txt", "single_stream_modulation")
        ),
        *attention_relations(),
        *below(
            "double_blocks.{i}",
            "transformer_blocks.{i}",
            same("img_mlp.0", "ff.linear_in"),
            same("img_mlp.2", "ff.linear_out"),
            same("txt_mlp.0", "ff_context.linear_in"),
            same("txt_mlp.2", "ff_context.linear_out"),
        ),
        # diffusers fuses query, key, value and feed-forward as the original does.
        *below(
            "single_blocks.{i}",
            "single_transformer_blocks.{i}",
            same("linear1", "attn.to_qkv_mlp_proj"),
            same("linear2", "attn.to_out"),
        ),
        swapped("final_layer.adaLN_modulation.1", "norm_out.linear"),
        *norm_relations(),
    )


# Multiples of the hidden width: (path, out, in).
PROPORTIONS = (
    ("double_blocks.{i}.img_attn.qkv", 3, 1),
    ("double_blocks.{i}.txt_attn.qkv", 3, 1),
    ("double_blocks.{i}.img_attn.proj", 1, 1),
    ("double_blocks.{i}.txt_attn.proj", 1, 1),
    ("double_blocks.{i}.img_mlp.0", 6, 1),
    ("double_blocks.{i}.img_mlp.2", 1, 3),
    ("double_blocks.{i}.txt_mlp.0", 6, 1),
    ("double_blocks.{i}.txt_mlp.2", 1, 3),
    ("single_blocks.{i}.linear1", 9, 1),
    ("single_blocks.{i}.linear2", 1, 4),
    ("transformer_blocks.{i}.attn.to_q", 1, 1),
    ("transformer_blocks.{i}.attn.to_k", 1, 1),
    ("transformer_blocks.{i}.attn.to_v", 1, 1),
    ("transformer_blocks.{i}.attn.to_out.0", 1, 1),
    ("transformer_blocks.{i}.attn.add_q_proj", 1, 1),
    ("transformer_blocks.{i}.attn.add_k_proj", 1, 1),
    ("transformer_blocks.{i}.attn.add_v_proj", 1, 1),
    ("transformer_blocks.{i}.attn.to_add_out", 1, 1),
    ("single_transformer_blocks.{i}.attn.to_qkv_mlp_proj", 9, 1),
    ("single_transformer_blocks.{i}.attn.to_out", 1, 4),
)

ARCHITECTURE = Architecture(
    name="flux2",
    title="FLUX.2",
    descends_from="flux",
    layouts=(
        Layout(
            "original",
            ORIGINAL,
            blocks=(("double_blocks", 8), ("single_blocks", 48)),
            norms=ORIGINAL_NORMS,
        ),
        Layout(
            "diffusers",
            DIFFUSERS,
            kohya_prefix="lora_transformer_",
            blocks=(("transformer_blocks", 8), ("single_transformer_blocks", 48)),
            norms=DIFFUSERS_NORMS,
        ),
    ),
    sizes=tuple(
        Size(name, path, out * width, in_ * width)
        for name, width in (("dev", 6144), ("klein 9B", 4096), ("klein 4B", 3072))
        for path, out, in_ in PROPORTIONS
    ),
    metadata_names=(
        "flux2",
        "flux.2",
        "flux2_klein_4b",
        "flux2_klein_9b",
        "flux_2_dev",
        "flux_2_klein_4b",
        "flux_2_klein_9b",
        "flux.2-dev",
        "flux.2-klein-4b",
        "flux.2-klein-9b",
    ),
    text_encoders=(SOME_LANGUAGE_MODEL,),
    correspondence=Correspondence(relations),
    training=Training(
        classes=("DoubleStreamBlock", "SingleStreamBlock"),
        diffusers_classes=("Flux2TransformerBlock", "Flux2SingleTransformerBlock"),
        models=("Flux2", "Flux2Transformer2DModel"),
        excludes=(MODULATION, NORM),
        keys=("f2d", "f2k4b", "f2k9b"),
    ),
)
