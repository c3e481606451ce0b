"""Stable Diffusion 2.x: the names of Stable Diffusion 1.x with a wider text encoder."""

from ..record import Architecture, Size
from ..text_encoders import OPENCLIP_H
from .sd15 import CORRESPONDENCE, CROSS_ATTENTION, LAYOUTS

ARCHITECTURE = Architecture(
    name="sd2",
    title="Stable Diffusion 2.x",
    descends_from="sd15",
    layouts=LAYOUTS,
    sizes=tuple(Size(None, path, None, 1024) for path in CROSS_ATTENTION),
    metadata_names=(
        *("sd_v2", "sd_v2_v", "sd_2.1", "stable-diffusion-v2-512", "stable-diffusion-v2-768-v"),
        *("stable-diffusion-v2", "stable-diffusion-v2-inpainting", "stable-diffusion-v2-depth"),
    ),
    text_encoders=(OPENCLIP_H,),
    correspondence=CORRESPONDENCE,
    pipeline_name="unet",
)
