"""LTX-2: video and audio streams with attention between them.

Leaves as in the LTX2VideoTransformer3DModel of diffusers; the original names are those its LoRA converter reads.
"""

from ..correspondence import Correspondence, Relation, same
from ..record import Architecture, Layout, Size, Training, under
from ..text_encoders import SOME_LANGUAGE_MODEL
from .ltx_video import ATTENTION, TIMESTEP, norms_of, timestep

GATED_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "to_gate_logits")
COMMON = (
    *under("caption_projection", "linear_1", "linear_2"),
    *under("audio_caption_projection", "linear_1", "linear_2"),
    *under(
        "transformer_blocks.{i}",
        *under("attn1", *GATED_ATTENTION),
        *under("attn2", *GATED_ATTENTION),
        *under("audio_attn1", *GATED_ATTENTION),
        *under("audio_attn2", *GATED_ATTENTION),
        *under("audio_to_video_attn", *GATED_ATTENTION),
        *under("video_to_audio_attn", *GATED_ATTENTION),
        *under("ff", "net.0.proj", "net.2"),
        *under("audio_ff", "net.0.proj", "net.2"),
    ),
    "proj_out",
    "audio_proj_out",
)
ORIGINAL = (
    "patchify_proj",
    "audio_patchify_proj",
    *under("adaln_single", *TIMESTEP),
    *under("audio_adaln_single", *TIMESTEP),
    *under("prompt_adaln_single", *TIMESTEP),
    *under("audio_prompt_adaln_single", *TIMESTEP),
    *under("av_ca_video_scale_shift_adaln_single", *TIMESTEP),
    *under("av_ca_audio_scale_shift_adaln_single", *TIMESTEP),
    *under("av_ca_a2v_gate_adaln_single", *TIMESTEP),
    *under("av_ca_v2a_gate_adaln_single", *TIMESTEP),
    *COMMON,
)
DIFFUSERS = (
    "proj_in",
    "audio_proj_in",
    *under("time_embed", *TIMESTEP),
    *under("audio_time_embed", *TIMESTEP),
    *under("prompt_adaln", *TIMESTEP),
    *under("audio_prompt_adaln", *TIMESTEP),
    *under("av_cross_attn_video_scale_shift", *TIMESTEP),
    *under("av_cross_attn_audio_scale_shift", *TIMESTEP),
    *under("av_cross_attn_video_a2v_gate", *TIMESTEP),
    *under("av_cross_attn_audio_v2a_gate", *TIMESTEP),
    *COMMON,
)
ATTENTIONS = ("attn1", "attn2", "audio_attn1", "audio_attn2", "audio_to_video_attn", "video_to_audio_attn")
TABLES = (
    *under("transformer_blocks.{i}", "scale_shift_table", "audio_scale_shift_table"),
    *under("transformer_blocks.{i}", "prompt_scale_shift_table", "audio_prompt_scale_shift_table"),
    "scale_shift_table",
    "audio_scale_shift_table",
    "keyframes_abs_pos_embedding",  # LTX-2.5
)
ORIGINAL_NORMS = (
    *norms_of("q_norm", "k_norm", *ATTENTIONS),
    *TABLES,
    *under("transformer_blocks.{i}", "scale_shift_table_a2v_ca_video", "scale_shift_table_a2v_ca_audio"),
)
DIFFUSERS_NORMS = (
    *norms_of("norm_q", "norm_k", *ATTENTIONS),
    *TABLES,
    *under(
        "transformer_blocks.{i}",
        "video_a2v_cross_attn_scale_shift_table",
        "audio_a2v_cross_attn_scale_shift_table",
    ),
)


def relations() -> tuple[Relation, ...]:
    """Return the relations of the original layout to that of diffusers."""
    return (
        same("patchify_proj", "proj_in"),
        same("audio_patchify_proj", "audio_proj_in"),
        *(
            relation
            for original, diffusers in (
                ("adaln_single", "time_embed"),
                ("audio_adaln_single", "audio_time_embed"),
                ("prompt_adaln_single", "prompt_adaln"),
                ("audio_prompt_adaln_single", "audio_prompt_adaln"),
                ("av_ca_video_scale_shift_adaln_single", "av_cross_attn_video_scale_shift"),
                ("av_ca_audio_scale_shift_adaln_single", "av_cross_attn_audio_scale_shift"),
                ("av_ca_a2v_gate_adaln_single", "av_cross_attn_video_a2v_gate"),
                ("av_ca_v2a_gate_adaln_single", "av_cross_attn_audio_v2a_gate"),
            )
            for relation in timestep(original, diffusers)
        ),
        *map(same, ORIGINAL_NORMS, DIFFUSERS_NORMS),
    )


ARCHITECTURE = Architecture(
    name="ltx2",
    title="LTX-2",
    descends_from="ltx_video",
    layouts=(
        Layout("original", ORIGINAL, blocks=(("transformer_blocks", 48),), norms=ORIGINAL_NORMS),
        Layout(
            "diffusers",
            DIFFUSERS,
            kohya_prefix="lora_transformer_",
            blocks=(("transformer_blocks", 48),),
            norms=DIFFUSERS_NORMS,
        ),
    ),
    sizes=tuple(Size(None, path, 4096, 4096) for path in under("transformer_blocks.{i}", *ATTENTION)),
    metadata_names=("ltx2",),
    text_encoders=(SOME_LANGUAGE_MODEL,),
    correspondence=Correspondence(relations),
    training=Training(
        classes=("BasicAVTransformerBlock",),
        diffusers_classes=("LTX2VideoTransformerBlock",),
        models=("LTXModel", "LTX2VideoTransformer3DModel"),
        keys=("ltx2",),
    ),
)
