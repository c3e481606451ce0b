"""CLIP's text model as transformers and as open_clip name it, which is how single files of SD 2.x and SDXL have it.

open_clip's attention has query, key and value in one parameter, of torch's MultiheadAttention. Source of the names:
`convert_open_clip_checkpoint` of diffusers.
"""

from .correspondence import Correspondence, Relation, below, same, stack


def relations() -> tuple[Relation, ...]:
    """How open_clip's layers are related to those of transformers."""
    return (
        same("token_embedding", "text_model.embeddings.token_embedding"),
        *below(
            "transformer.resblocks.{i}",
            "text_model.encoder.layers.{i}",
            stack("attn.in_proj", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            same("attn.out_proj", "self_attn.out_proj"),
            same("mlp.c_fc", "mlp.fc1"),
            same("mlp.c_proj", "mlp.fc2"),
            same("ln_1", "layer_norm1"),
            same("ln_2", "layer_norm2"),
        ),
        same("ln_final", "text_model.final_layer_norm"),
    )


CORRESPONDENCE = Correspondence(relations)
