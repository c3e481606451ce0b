"""Cosmos Predict 2 and 2.5.

Leaves as in the original transformer (`net.` in its checkpoints) and in the CosmosTransformer3DModel of diffusers;
`crossattn_proj`, `img_context_proj` and the image's query, key and value are those of 2.5.
"""

from ..correspondence import Correspondence, Relation, below, same
from ..record import Architecture, Layout, Size, under
from ..text_encoders import QWEN25_VL_7B, T5_11B

PREDICT2_BLOCK = (
    *under("self_attn", "q_proj", "k_proj", "v_proj", "output_proj"),
    *under("cross_attn", "q_proj", "k_proj", "v_proj", "output_proj"),
    *under("mlp", "layer1", "layer2"),
    *under("adaln_modulation_self_attn", "1", "2"),
    *under("adaln_modulation_cross_attn", "1", "2"),
    *under("adaln_modulation_mlp", "1", "2"),
)
PREDICT2 = (
    "x_embedder.proj.1",
    *under("t_embedder.1", "linear_1", "linear_2"),
    *under("blocks.{i}", *PREDICT2_BLOCK),
    "final_layer.linear",
    *under("final_layer.adaln_modulation", "1", "2"),
)
DIFFUSERS = (
    "patch_embed.proj",
    *under("time_embed.t_embedder", "linear_1", "linear_2"),
    *under(
        "transformer_blocks.{i}",
        *under("attn1", "to_q", "to_k", "to_v", "to_out.0"),
        *under("attn2", "to_q", "to_k", "to_v", "to_out.0"),
        *under("ff", "net.0.proj", "net.2"),
        *under("norm1", "linear_1", "linear_2"),
        *under("norm2", "linear_1", "linear_2"),
        *under("norm3", "linear_1", "linear_2"),
    ),
    *under("norm_out", "linear_1", "linear_2"),
    "proj_out",
)
PREDICT2_NORMS = (
    *under("blocks.{i}.self_attn", "q_norm", "k_norm"),
    *under("blocks.{i}.cross_attn", "q_norm", "k_norm"),
    "t_embedding_norm",
)
DIFFUSERS_NORMS = (
    *under("transformer_blocks.{i}.attn1", "norm_q", "norm_k"),
    *under("transformer_blocks.{i}.attn2", "norm_q", "norm_k"),
    "time_embed.norm",
)
IMAGE_ATTENTION = ("q_img", "k_img", "v_img")
IMAGE_NORMS = ("q_img_norm", "k_img_norm")
CONTEXT = ("crossattn_proj.0", "img_context_proj.0")


def relations() -> tuple[Relation, ...]:
    """Return the relations of the original layout to that of diffusers."""
    return (
        same("x_embedder.proj.1", "patch_embed.proj"),
        *below("t_embedder.1", "time_embed.t_embedder", same("linear_1", "linear_1"), same("linear_2", "linear_2")),
        *below(
            "blocks.{i}",
            "transformer_blocks.{i}",
            *(
                same(f"{original}.{layer}", f"{diffusers}.{other}")
                for original, diffusers in (("self_attn", "attn1"), ("cross_attn", "attn2"))
                for layer, other in (
                    ("q_proj", "to_q"),
                    ("k_proj", "to_k"),
                    ("v_proj", "to_v"),
                    ("output_proj", "to_out.0"),
                )
            ),
            same("mlp.layer1", "ff.net.0.proj"),
            same("mlp.layer2", "ff.net.2"),
            *(
                same(f"adaln_modulation_{part}.{number}", f"norm{norm}.linear_{number}")
                for norm, part in ((1, "self_attn"), (2, "cross_attn"), (3, "mlp"))
                for number in (1, 2)
            ),
        ),
        same("final_layer.linear", "proj_out"),
        same("final_layer.adaln_modulation.1", "norm_out.linear_1"),
        same("final_layer.adaln_modulation.2", "norm_out.linear_2"),
        *map(same, PREDICT2_NORMS, DIFFUSERS_NORMS),
    )


def sizes(name: str | None, width: int) -> tuple[Size, ...]:
    """Return the widths of a size in both layouts; the text input of the cross attention is 1024 wide."""
    return (
        *(Size(name, path, width, 1024) for path in under("blocks.{i}.cross_attn", "k_proj", "v_proj")),
        *(Size(name, path, width, width) for path in under("blocks.{i}.self_attn", "q_proj", "k_proj", "v_proj")),
        *(Size(name, path, width, 1024) for path in under("transformer_blocks.{i}.attn2", "to_k", "to_v")),
        *(Size(name, path, width, width) for path in under("transformer_blocks.{i}.attn1", "to_q", "to_k", "to_v")),
    )


ARCHITECTURE = Architecture(
    name="cosmos",
    title="Cosmos Predict 2",
    descends_from="cosmos1",
    layouts=(
        Layout(
            "original",
            (*PREDICT2, *under("blocks.{i}.cross_attn", *IMAGE_ATTENTION), *CONTEXT),
            blocks=(("blocks", 36),),
            norms=(*PREDICT2_NORMS, *under("blocks.{i}.cross_attn", *IMAGE_NORMS)),
        ),
        Layout(
            "diffusers",
            (*DIFFUSERS, *under("transformer_blocks.{i}.attn2", *IMAGE_ATTENTION), *CONTEXT),
            kohya_prefix="lora_transformer_",
            blocks=(("transformer_blocks", 36),),
            norms=(*DIFFUSERS_NORMS, *under("transformer_blocks.{i}.attn2", *IMAGE_NORMS)),
        ),
    ),
    sizes=(*sizes("2B", 2048), *sizes("14B", 5120)),
    base_names=("cosmos-predict2",),
    text_encoders=(T5_11B, QWEN25_VL_7B),
    correspondence=Correspondence(
        lambda: (
            *relations(),
            *below(
                "blocks.{i}.cross_attn",
                "transformer_blocks.{i}.attn2",
                *(same(layer, layer) for layer in (*IMAGE_ATTENTION, *IMAGE_NORMS)),
            ),
        )
    ),
)
