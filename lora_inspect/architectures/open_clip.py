"""CLIP's text model as transformers and as open_clip name it, which is how single files of SD 2.x and SDXL have it.

open_clip's attention has query, key and value in one parameter, of torch's MultiheadAttention. Source of the names:
`convert_open_clip_checkpoint` of diffusers. Source of the orientations: `CLIP.encode_text` and `VisionTransformer` of
open_clip, which multiply by the parameter itself, x @ text_projection and x @ proj.
"""

from .correspondence import Correspondence, Relation, below, same, stack

# Matrices that are parameters here and weights of Linear layers in transformers, which stores them the other way round.
_PROJECTIONS = ("text_projection", "visual.proj")


def relations() -> tuple[Relation, ...]:
    """How open_clip's layers are related to those of transformers."""
    return (
        same("token_embedding", "text_model.embeddings.token_embedding"),
        same("positional_embedding", "text_model.embeddings.position_embedding"),
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


def is_projection(parameter: str) -> bool:
    """Whether a parameter that is no `.weight` is a projection of CLIP, which is stored as (in, out)."""
    return f".{parameter}".endswith(tuple(f".{name}" for name in _PROJECTIONS))


CORRESPONDENCE = Correspondence(relations)
