"""What base checkpoints put in front of a component's own module paths, and which of their tensors are weights."""

from lora_inspect.header import TensorInfo
from lora_inspect.schemes.record import MODEL

BASE_PREFIXES = {
    MODEL: ("", "model.diffusion_model.", "diffusion_model.", "model.", "transformer.", "unet."),
    "model_2": ("transformer_2.",),
    "text_encoder": (
        "",
        "cond_stage_model.transformer.",
        "conditioner.embedders.0.transformer.",
        "text_encoders.clip_l.transformer.",
        "text_encoder.",
    ),
    "text_encoder_2": ("", "text_encoders.clip_g.transformer.", "text_encoder_2."),
    "text_encoder_3": ("", "text_encoders.t5xxl.transformer.", "text_encoder_3."),
}


def is_weight(info: TensorInfo) -> bool:
    """Whether an adapter can change the tensor: a matrix or a kernel, not a vector."""
    return info.name.endswith(".weight") and len(info.shape) > 1
