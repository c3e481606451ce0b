"""Stable Diffusion 1.x.

Leaves as in the UNet2DConditionModel of diffusers, which kohya's files name, and in the UNet of the original
repository, which single-file checkpoints name.
"""

from ..correspondence import Correspondence
from ..record import Architecture, Layout, Size, TrainedEncoder, Training, under
from ..text_encoders import CLIP_BLOCKS, CLIP_L
from ..unet import (
    CONV_BLOCKS,
    DIFFUSERS_NORMS,
    DIFFUSERS_RESNET,
    ORIGINAL_NORMS,
    ORIGINAL_RESNET,
    TRANSFORMER,
    missing_in_diffusers,
    missing_in_original,
    relations,
)

DIFFUSERS = (
    "conv_in",
    "time_embedding.linear_1",
    "time_embedding.linear_2",
    *under("down_blocks.{i}.attentions.{i}", *TRANSFORMER),
    *under("down_blocks.{i}.resnets.{i}", *DIFFUSERS_RESNET),
    "down_blocks.{i}.downsamplers.0.conv",
    *under("mid_block.attentions.0", *TRANSFORMER),
    *under("mid_block.resnets.{i}", *DIFFUSERS_RESNET),
    *under("up_blocks.{i}.attentions.{i}", *TRANSFORMER),
    *under("up_blocks.{i}.resnets.{i}", *DIFFUSERS_RESNET),
    "up_blocks.{i}.upsamplers.0.conv",
    "conv_out",
)
ORIGINAL = (
    "time_embed.0",
    "time_embed.2",
    "input_blocks.0.0",
    *under("input_blocks.{i}.0", *ORIGINAL_RESNET, "op"),
    *under("input_blocks.{i}.1", *TRANSFORMER),
    *under("middle_block.0", *ORIGINAL_RESNET),
    *under("middle_block.1", *TRANSFORMER),
    *under("middle_block.2", *ORIGINAL_RESNET),
    *under("output_blocks.{i}.0", *ORIGINAL_RESNET),
    *under("output_blocks.{i}.1", *TRANSFORMER, "conv"),
    "output_blocks.{i}.2.conv",
    "out.2",
)
DIFFUSERS_BLOCKS = (
    ("down_blocks", 4),
    ("up_blocks", 4),
    ("down_blocks.{i}.attentions.{i}.transformer_blocks", 1),
    ("mid_block.attentions.{i}.transformer_blocks", 1),
    ("up_blocks.{i}.attentions.{i}.transformer_blocks", 1),
)
ORIGINAL_BLOCKS = (
    ("input_blocks", 12),
    ("output_blocks", 12),
    ("input_blocks.{i}.{i}.transformer_blocks", 1),
    ("middle_block.{i}.transformer_blocks", 1),
    ("output_blocks.{i}.{i}.transformer_blocks", 1),
)
# The deepest level has no attention.
ATTENTION = (True, True, True, False)
CORRESPONDENCE = Correspondence(lambda: relations(ATTENTION))
LAYOUTS = (
    Layout(
        "diffusers",
        DIFFUSERS,
        blocks=DIFFUSERS_BLOCKS,
        missing=missing_in_diffusers(ATTENTION),
        norms=DIFFUSERS_NORMS,
    ),
    Layout(
        "original",
        ORIGINAL,
        blocks=ORIGINAL_BLOCKS,
        missing=missing_in_original(ATTENTION),
        norms=ORIGINAL_NORMS,
    ),
)
# The text encoder's width, which the key and value layers of the cross attention take in, tells the generations apart.
CROSS_ATTENTION = tuple(path for path in DIFFUSERS + ORIGINAL if path.endswith(("attn2.to_k", "attn2.to_v")))

ARCHITECTURE = Architecture(
    name="sd15",
    title="Stable Diffusion 1.x",
    layouts=LAYOUTS,
    sizes=tuple(Size(None, path, None, 768) for path in CROSS_ATTENTION),
    metadata_names=("sd_v1", "sd_v1_v", "sd_1.5", "stable-diffusion-v1", "stable-diffusion-v1-inpainting"),
    text_encoders=(CLIP_L,),
    correspondence=CORRESPONDENCE,
    pipeline_name="unet",
    training=Training(
        classes=("Transformer2DModel",),
        models=("UNet2DConditionModel",),
        excludes=(),
        keys=("sd",),
        conv_classes=CONV_BLOCKS,
        text_encoders=(TrainedEncoder("lora_te", CLIP_BLOCKS),),
    ),
)
