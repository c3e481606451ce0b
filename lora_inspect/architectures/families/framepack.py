"""FramePack: HunyuanVideo under the diffusers names, with an image projection and embedders of past frames.

Leaves as in the HunyuanVideoTransformer3DModelPacked of the original repository, which the
HunyuanVideoFramepackTransformer3DModel of diffusers shares. An adapter of only the blocks has the names and widths of a
HunyuanVideo adapter in the diffusers layout. Programs for FramePack load adapters in HunyuanVideo's original names as
well.
"""

from ..correspondence import Correspondence
from ..record import MODULATION, NORM, Architecture, Layout, Size, Training, under
from ..text_encoders import CLIP_L, LLAMA_8B
from .flux import PROPORTIONS
from .hunyuan_video import (
    DIFFUSERS,
    DIFFUSERS_BLOCKS,
    DIFFUSERS_NORMS,
    ORIGINAL,
    ORIGINAL_BLOCKS,
    ORIGINAL_NORMS,
    in_diffusers,
)

OWN = (
    *under("image_projection", "up", "down"),
    *under("clean_x_embedder", "proj", "proj_2x", "proj_4x"),
)
PATHS = (*DIFFUSERS, *OWN)

ARCHITECTURE = Architecture(
    name="framepack",
    title="FramePack",
    descends_from="hunyuan_video",
    layouts=(
        Layout("diffusers", PATHS, blocks=DIFFUSERS_BLOCKS, norms=DIFFUSERS_NORMS),
        Layout("original", (*ORIGINAL, *OWN), blocks=ORIGINAL_BLOCKS, borrowed=True, norms=ORIGINAL_NORMS),
    ),
    sizes=tuple(Size(None, path, out * 3072, in_ * 3072) for path, out, in_ in PROPORTIONS if path in PATHS),
    metadata_names=("framepack", "hunyuanvideoframepacktransformer3dmodel"),
    base_names=("framepack",),
    text_encoders=(LLAMA_8B, CLIP_L),
    correspondence=Correspondence(in_diffusers),
    training=Training(
        classes=("HunyuanVideoTransformerBlock", "HunyuanVideoSingleTransformerBlock"),
        models=("HunyuanVideoTransformer3DModelPacked", "HunyuanVideoFramepackTransformer3DModel"),
        excludes=(MODULATION, NORM),
        keys=("fp",),
    ),
)
