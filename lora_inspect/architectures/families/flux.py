"""FLUX.1 (dev, schnell, Kontext, Fill, Control).

Leaves as in the Flux class of the original repository and in the FluxTransformer2DModel of diffusers. The block
leaves are shared by the families that descend from it.
"""

from ..correspondence import Correspondence, Relation, below, same, stack, swapped
from ..record import MODULATION, NORM, Architecture, Layout, Size, TrainedEncoder, Training, under
from ..text_encoders import CLIP_BLOCKS, CLIP_L, T5_BLOCKS, T5_XXL

# One double-stream block without modulation, which Chroma and FLUX.2 do not have per block.
ORIGINAL_DOUBLE = (
    *under("img_attn", "qkv", "proj"),
    *under("txt_attn", "qkv", "proj"),
    *under("img_mlp", "0", "2"),
    *under("txt_mlp", "0", "2"),
)
ORIGINAL_SINGLE = ("linear1", "linear2")
DIFFUSERS_ATTENTION = under(
    "attn", "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"
)
DIFFUSERS_DOUBLE = (
    *DIFFUSERS_ATTENTION,
    *under("ff", "net.0.proj", "net.2"),
    *under("ff_context", "net.0.proj", "net.2"),
)
DIFFUSERS_SINGLE = (*under("attn", "to_q", "to_k", "to_v"), "proj_mlp", "proj_out")

ORIGINAL = (
    "img_in",
    "txt_in",
    *under("time_in", "in_layer", "out_layer"),
    *under("vector_in", "in_layer", "out_layer"),
    *under("guidance_in", "in_layer", "out_layer"),
    *under("double_blocks.{i}", *ORIGINAL_DOUBLE, "img_mod.lin", "txt_mod.lin"),
    *under("single_blocks.{i}", *ORIGINAL_SINGLE, "modulation.lin"),
    "final_layer.linear",
    "final_layer.adaLN_modulation.1",
)
DIFFUSERS = (
    "x_embedder",
    "context_embedder",
    *under("time_text_embed.timestep_embedder", "linear_1", "linear_2"),
    *under("time_text_embed.text_embedder", "linear_1", "linear_2"),
    *under("time_text_embed.guidance_embedder", "linear_1", "linear_2"),
    *under("transformer_blocks.{i}", *DIFFUSERS_DOUBLE, "norm1.linear", "norm1_context.linear"),
    *under("single_transformer_blocks.{i}", *DIFFUSERS_SINGLE, "norm.linear"),
    "norm_out.linear",
    "proj_out",
)
# The RMSNorms of queries and keys call their weight `scale` in the original repository.
ORIGINAL_NORMS = (
    *under("double_blocks.{i}.img_attn.norm", "query_norm", "key_norm"),
    *under("double_blocks.{i}.txt_attn.norm", "query_norm", "key_norm"),
    *under("single_blocks.{i}.norm", "query_norm", "key_norm"),
)
DIFFUSERS_NORMS = (
    *under("transformer_blocks.{i}.attn", "norm_q", "norm_k", "norm_added_q", "norm_added_k"),
    *under("single_transformer_blocks.{i}.attn", "norm_q", "norm_k"),
)


def norm_relations() -> tuple[Relation, ...]:
    """Return the relations of the original layout's norms to those of diffusers."""
    return tuple(map(same, ORIGINAL_NORMS, DIFFUSERS_NORMS))


def attention_relations() -> tuple[Relation, ...]:
    """Return the relations of a double-stream block's attention in the original layout to that of diffusers."""
    return below(
        "double_blocks.{i}",
        "transformer_blocks.{i}",
        stack("img_attn.qkv", "attn.to_q", "attn.to_k", "attn.to_v"),
        stack("txt_attn.qkv", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        same("img_attn.proj", "attn.to_out.0"),
        same("txt_attn.proj", "attn.to_add_out"),
    )


def double_relations() -> tuple[Relation, ...]:
    """Return the relations of a whole double-stream block, without modulation."""
    return (
        *attention_relations(),
        *below(
            "double_blocks.{i}",
            "transformer_blocks.{i}",
            same("img_mlp.0", "ff.net.0.proj"),
            same("img_mlp.2", "ff.net.2"),
            same("txt_mlp.0", "ff_context.net.0.proj"),
            same("txt_mlp.2", "ff_context.net.2"),
        ),
    )


def single_relations() -> tuple[Relation, ...]:
    """Return the relations of a single-stream block, without modulation."""
    return below(
        "single_blocks.{i}",
        "single_transformer_blocks.{i}",
        stack("linear1", "attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp", shares=(1, 1, 1, 4)),
        same("linear2", "proj_out"),
    )


def end_relations() -> tuple[Relation, ...]:
    """Return the relations of the layers before and after the blocks."""
    return (
        same("img_in", "x_embedder"),
        same("txt_in", "context_embedder"),
        same("final_layer.linear", "proj_out"),
    )


def relations() -> tuple[Relation, ...]:
    """Return the relations of the original layout to that of diffusers."""
    return (
        *end_relations(),
        *(
            same(f"{original}.{layer}", f"time_text_embed.{diffusers}.linear_{number}")
            for original, diffusers in (
                ("time_in", "timestep_embedder"),
                ("vector_in", "text_embedder"),
                ("guidance_in", "guidance_embedder"),
            )
            for number, layer in ((1, "in_layer"), (2, "out_layer"))
        ),
        *double_relations(),
        *below(
            "double_blocks.{i}",
            "transformer_blocks.{i}",
            same("img_mod.lin", "norm1.linear"),
            same("txt_mod.lin", "norm1_context.linear"),
        ),
        *single_relations(),
        *below("single_blocks.{i}", "single_transformer_blocks.{i}", same("modulation.lin", "norm.linear")),
        *norm_relations(),
        # Shift above scale in the original, scale above shift in diffusers.
        swapped("final_layer.adaLN_modulation.1", "norm_out.linear"),
    )


# XLabs's own training hangs the factors below the attention processors of a block.
XLABS = (
    *under("double_blocks.{i}.processor", "qkv_lora1", "qkv_lora2", "proj_lora1", "proj_lora2"),
    *under("single_blocks.{i}.processor", "qkv_lora", "proj_lora"),
)


def xlabs_relations() -> tuple[Relation, ...]:
    """Return the relations to XLabs's layout: 1 is the picture, 2 the text, and a single block has no MLP there."""
    return (
        *below(
            "double_blocks.{i}",
            "double_blocks.{i}.processor",
            same("img_attn.qkv", "qkv_lora1"),
            same("txt_attn.qkv", "qkv_lora2"),
            same("img_attn.proj", "proj_lora1"),
            same("txt_attn.proj", "proj_lora2"),
        ),
        *below(
            "single_blocks.{i}",
            "single_blocks.{i}.processor",
            stack("linear1", "qkv_lora", shares=(3, 4)),
            same("linear2", "proj_lora"),
        ),
        *below(
            "double_blocks.{i}.processor",
            "transformer_blocks.{i}.attn",
            stack("qkv_lora1", "to_q", "to_k", "to_v"),
            stack("qkv_lora2", "add_q_proj", "add_k_proj", "add_v_proj"),
            same("proj_lora1", "to_out.0"),
            same("proj_lora2", "to_add_out"),
        ),
        *below(
            "single_blocks.{i}.processor",
            "single_transformer_blocks.{i}",
            stack("qkv_lora", "attn.to_q", "attn.to_k", "attn.to_v"),
            same("proj_lora", "proj_out"),
        ),
    )


# Multiples of the hidden width: (path, out, in). Chroma, HunyuanVideo and HunyuanImage have the same proportions.
PROPORTIONS = (
    ("double_blocks.{i}.img_attn.qkv", 3, 1),
    ("double_blocks.{i}.txt_attn.qkv", 3, 1),
    ("double_blocks.{i}.img_attn.proj", 1, 1),
    ("double_blocks.{i}.txt_attn.proj", 1, 1),
    ("double_blocks.{i}.img_mlp.0", 4, 1),
    ("double_blocks.{i}.img_mlp.2", 1, 4),
    ("double_blocks.{i}.txt_mlp.0", 4, 1),
    ("double_blocks.{i}.txt_mlp.2", 1, 4),
    ("single_blocks.{i}.linear1", 7, 1),
    ("single_blocks.{i}.linear2", 1, 5),
    ("transformer_blocks.{i}.attn.to_q", 1, 1),
    ("transformer_blocks.{i}.attn.to_k", 1, 1),
    ("transformer_blocks.{i}.attn.to_v", 1, 1),
    ("transformer_blocks.{i}.attn.to_out.0", 1, 1),
    ("transformer_blocks.{i}.attn.add_q_proj", 1, 1),
    ("transformer_blocks.{i}.attn.add_k_proj", 1, 1),
    ("transformer_blocks.{i}.attn.add_v_proj", 1, 1),
    ("transformer_blocks.{i}.attn.to_add_out", 1, 1),
    ("single_transformer_blocks.{i}.attn.to_q", 1, 1),
    ("single_transformer_blocks.{i}.attn.to_k", 1, 1),
    ("single_transformer_blocks.{i}.attn.to_v", 1, 1),
    ("single_transformer_blocks.{i}.proj_mlp", 4, 1),
    ("single_transformer_blocks.{i}.proj_out", 1, 5),
)

ARCHITECTURE = Architecture(
    name="flux",
    title="FLUX.1",
    layouts=(
        Layout(
            "original",
            ORIGINAL,
            blocks=(("double_blocks", 19), ("single_blocks", 38)),
            norms=ORIGINAL_NORMS,
        ),
        Layout(
            "diffusers",
            DIFFUSERS,
            kohya_prefix="lora_transformer_",
            blocks=(("transformer_blocks", 19), ("single_transformer_blocks", 38)),
            norms=DIFFUSERS_NORMS,
        ),
        Layout("xlabs", XLABS, kohya_prefix=""),
    ),
    sizes=tuple(Size(None, path, out * 3072, in_ * 3072) for path, out, in_ in PROPORTIONS),
    metadata_names=(
        "flux1",
        "flux_kontext",
        "flux.1",
        "flux.1-dev",
        "flux-1",
        "flux-1-dev",
        "flux-1-schnell",
        "flux.1_kontext",
        "flux.1-fill-dev",
        "fluxtransformer2dmodel",
    ),
    base_names=("flux.1",),
    text_encoders=(CLIP_L, T5_XXL),
    correspondence=Correspondence(lambda: (*relations(), *xlabs_relations())),
    training=Training(
        classes=("DoubleStreamBlock", "SingleStreamBlock"),
        diffusers_classes=("FluxTransformerBlock", "FluxSingleTransformerBlock"),
        models=("Flux", "FluxTransformer2DModel"),
        excludes=(MODULATION, NORM),
        keys=("fk",),
        text_encoders=(
            TrainedEncoder("lora_te1", CLIP_BLOCKS),
            TrainedEncoder("lora_te3", T5_BLOCKS, switch="train_t5xxl"),
        ),
        searches_names=True,
    ),
)
