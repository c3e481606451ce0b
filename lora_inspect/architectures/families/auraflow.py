"""AuraFlow.

Leaves as in the MMDiT of the original repository, where `w1` serves the text (or the joint) stream and `w2` the image
stream, and in the AuraFlowTransformer2DModel of diffusers.
"""

from ..correspondence import Correspondence, Relation, below, same, swapped
from ..record import Architecture, Layout, Size, under
from ..text_encoders import PILE_T5_XL

ORIGINAL = (
    *under("t_embedder.mlp", "0", "2"),
    "cond_seq_linear",
    "init_x_linear",
    *under(
        "double_layers.{i}",
        *under("attn", "w1q", "w1k", "w1v", "w1o", "w2q", "w2k", "w2v", "w2o"),
        *under("mlpX", "c_fc1", "c_fc2", "c_proj"),
        *under("mlpC", "c_fc1", "c_fc2", "c_proj"),
        "modX.1",
        "modC.1",
    ),
    *under(
        "single_layers.{i}",
        *under("attn", "w1q", "w1k", "w1v", "w1o"),
        *under("mlp", "c_fc1", "c_fc2", "c_proj"),
        "modCX.1",
    ),
    "modF.1",
    "final_linear",
)
DIFFUSERS = (
    *under("time_step_proj", "linear_1", "linear_2"),
    "context_embedder",
    "pos_embed.proj",
    *under(
        "joint_transformer_blocks.{i}",
        *under("attn", "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
        *under("ff", "linear_1", "linear_2", "out_projection"),
        *under("ff_context", "linear_1", "linear_2", "out_projection"),
        "norm1.linear",
        "norm1_context.linear",
    ),
    *under(
        "single_transformer_blocks.{i}",
        *under("attn", "to_q", "to_k", "to_v", "to_out.0"),
        *under("ff", "linear_1", "linear_2", "out_projection"),
        "norm1.linear",
    ),
    "norm_out.linear",
    "proj_out",
)
# Its norms have no numbers of their own.
ORIGINAL_PARAMETERS = ("register_tokens", "positional_encoding")
DIFFUSERS_PARAMETERS = ("register_tokens", "pos_embed.pos_embed")


def relations() -> tuple[Relation, ...]:
    """Return the relations of the original layout to that of diffusers."""
    return (
        same("t_embedder.mlp.0", "time_step_proj.linear_1"),
        same("t_embedder.mlp.2", "time_step_proj.linear_2"),
        same("cond_seq_linear", "context_embedder"),
        same("init_x_linear", "pos_embed.proj"),
        *(
            same(f"{blocks}.{{i}}.{original}.{layer}", f"{theirs}.{{i}}.{diffusers}.{other}")
            for blocks, theirs, original, diffusers in (
                ("double_layers", "joint_transformer_blocks", "mlpX", "ff"),
                ("double_layers", "joint_transformer_blocks", "mlpC", "ff_context"),
                ("single_layers", "single_transformer_blocks", "mlp", "ff"),
            )
            for layer, other in (("c_fc1", "linear_1"), ("c_fc2", "linear_2"), ("c_proj", "out_projection"))
        ),
        *below(
            "double_layers.{i}",
            "joint_transformer_blocks.{i}",
            same("attn.w1q", "attn.add_q_proj"),
            same("attn.w1k", "attn.add_k_proj"),
            same("attn.w1v", "attn.add_v_proj"),
            same("attn.w1o", "attn.to_add_out"),
            same("attn.w2q", "attn.to_q"),
            same("attn.w2k", "attn.to_k"),
            same("attn.w2v", "attn.to_v"),
            same("attn.w2o", "attn.to_out.0"),
            same("modX.1", "norm1.linear"),
            same("modC.1", "norm1_context.linear"),
        ),
        *below(
            "single_layers.{i}",
            "single_transformer_blocks.{i}",
            same("attn.w1q", "attn.to_q"),
            same("attn.w1k", "attn.to_k"),
            same("attn.w1v", "attn.to_v"),
            same("attn.w1o", "attn.to_out.0"),
            same("modCX.1", "norm1.linear"),
        ),
        swapped("modF.1", "norm_out.linear"),
        same("final_linear", "proj_out"),
        *map(same, ORIGINAL_PARAMETERS, DIFFUSERS_PARAMETERS),
    )


ARCHITECTURE = Architecture(
    name="auraflow",
    title="AuraFlow",
    layouts=(
        Layout(
            "original",
            ORIGINAL,
            blocks=(("double_layers", 4), ("single_layers", 32)),
            norms=ORIGINAL_PARAMETERS,
        ),
        Layout(
            "diffusers",
            DIFFUSERS,
            kohya_prefix="lora_transformer_",
            blocks=(("joint_transformer_blocks", 4), ("single_transformer_blocks", 32)),
            norms=DIFFUSERS_PARAMETERS,
        ),
    ),
    sizes=tuple(
        Size(None, path, 3072, 3072)
        for path in (
            *under("double_layers.{i}.attn", "w1q", "w1k", "w1v", "w1o", "w2q", "w2k", "w2v", "w2o"),
            *under("single_layers.{i}.attn", "w1q", "w1k", "w1v", "w1o"),
            *under("joint_transformer_blocks.{i}.attn", "to_q", "to_k", "to_v", "to_out.0"),
            *under("single_transformer_blocks.{i}.attn", "to_q", "to_k", "to_v", "to_out.0"),
        )
    ),
    metadata_names=("auraflow",),
    text_encoders=(PILE_T5_XL,),
    correspondence=Correspondence(relations),
)
