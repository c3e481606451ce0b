"""Anima, and the Cosmos-Predict2 transformer it is built on.

Leaves as in the original transformer with Anima's adapter of the language model, and in the CosmosTransformer3DModel
of diffusers, which has no such adapter.
"""

from ..correspondence import Correspondence, Relation, below, same
from ..record import Architecture, Layout, Size, under
from ..text_encoders import QWEN3_06B, T5_11B

ORIGINAL = (
    "x_embedder.proj.1",
    *under("t_embedder.1", "linear_1", "linear_2"),
    "llm_adapter.embed",
    *under(
        "llm_adapter.blocks.{i}",
        *under("self_attn", "q_proj", "k_proj", "v_proj", "o_proj"),
        *under("cross_attn", "q_proj", "k_proj", "v_proj", "o_proj"),
        "mlp.0",
        "mlp.2",
    ),
    "llm_adapter.out_proj",
    *under(
        "blocks.{i}",
        *under("self_attn", "q_proj", "k_proj", "v_proj", "output_proj"),
        *under("cross_attn", "q_proj", "k_proj", "v_proj", "output_proj"),
        *under("mlp", "layer1", "layer2"),
        *under("adaln_modulation_self_attn", "1", "2"),
        *under("adaln_modulation_cross_attn", "1", "2"),
        *under("adaln_modulation_mlp", "1", "2"),
    ),
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


def relations() -> tuple[Relation, ...]:
    """How the original layout is related to that of diffusers."""
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
    )


ARCHITECTURE = Architecture(
    name="anima",
    title="Anima",
    layouts=(
        Layout("original", ORIGINAL, blocks=(("blocks", 28),)),
        Layout("diffusers", DIFFUSERS, kohya_prefix="lora_transformer_", blocks=(("transformer_blocks", 28),)),
    ),
    # The text that the cross attention takes in is 1024 wide.
    sizes=(
        *(Size(None, path, 2048, 1024) for path in under("blocks.{i}.cross_attn", "k_proj", "v_proj")),
        *(Size(None, path, 2048, 2048) for path in under("blocks.{i}.self_attn", "q_proj", "k_proj", "v_proj")),
        *(Size(None, path, 2048, 1024) for path in under("transformer_blocks.{i}.attn2", "to_k", "to_v")),
        *(Size(None, path, 2048, 2048) for path in under("transformer_blocks.{i}.attn1", "to_q", "to_k", "to_v")),
    ),
    metadata_names=("anima", "anima-preview", "anima-unknown"),
    text_encoders=(QWEN3_06B, T5_11B),
    correspondence=Correspondence(relations),
)
