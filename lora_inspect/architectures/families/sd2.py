"""Stable Diffusion 2.x: the names of Stable Diffusion 1.x with a wider text encoder."""

from ..record import Architecture, Layout, Size
from ..text_encoders import OPENCLIP_H
from ..unet import DIFFUSERS_NORMS, ORIGINAL_NORMS
from .sd15 import CORRESPONDENCE, CROSS_ATTENTION, DIFFUSERS, DIFFUSERS_BLOCKS, ORIGINAL, ORIGINAL_BLOCKS

ARCHITECTURE = Architecture(
    name="sd2",
    title="Stable Diffusion 2.x",
    descends_from="sd15",
    layouts=(
        Layout("diffusers", DIFFUSERS, blocks=DIFFUSERS_BLOCKS, norms=DIFFUSERS_NORMS),
        Layout("original", ORIGINAL, blocks=ORIGINAL_BLOCKS, norms=ORIGINAL_NORMS),
    ),
    sizes=tuple(Size(None, path, None, 1024) for path in CROSS_ATTENTION),
    metadata_names=("sd_v2", "sd_v2_v", "sd_2.1", "stable-diffusion-v2-512", "stable-diffusion-v2-768-v"),
    text_encoders=(OPENCLIP_H,),
    correspondence=CORRESPONDENCE,
    pipeline_name="unet",
)
