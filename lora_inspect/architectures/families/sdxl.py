"""Stable Diffusion XL.

Leaves as in the original repository's UNet, which kohya's files name, and in the UNet2DConditionModel of diffusers,
which some trainers write under the same prefix.
"""

from ..correspondence import Correspondence, same
from ..record import Architecture, Layout, Size, TrainedEncoder, Training, under
from ..text_encoders import CLIP_BLOCKS, CLIP_L, OPENCLIP_BIGG
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
from .sd15 import CROSS_ATTENTION

ORIGINAL = (
    "time_embed.0",
    "time_embed.2",
    "label_emb.0.0",
    "label_emb.0.2",
    "input_blocks.0.0",
    *under("input_blocks.{i}.0", *ORIGINAL_RESNET, "op"),
    *under("input_blocks.{i}.1", *TRANSFORMER),
    *under("middle_block.0", *ORIGINAL_RESNET),
    *under("middle_block.1", *TRANSFORMER),
    *under("middle_block.2", *ORIGINAL_RESNET),
    *under("output_blocks.{i}.0", *ORIGINAL_RESNET),
    *under("output_blocks.{i}.1", *TRANSFORMER),
    "output_blocks.{i}.2.conv",
    "out.2",
)
DIFFUSERS = (
    "conv_in",
    "time_embedding.linear_1",
    "time_embedding.linear_2",
    "add_embedding.linear_1",
    "add_embedding.linear_2",
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

# The widest level has no attention.
ATTENTION = (False, True, True)

ARCHITECTURE = Architecture(
    name="sdxl",
    title="Stable Diffusion XL",
    layouts=(
        Layout(
            "original",
            ORIGINAL,
            blocks=(
                ("input_blocks", 9),
                ("output_blocks", 9),
                ("input_blocks.{i}.{i}.transformer_blocks", 10),
                ("middle_block.{i}.transformer_blocks", 10),
                ("output_blocks.{i}.{i}.transformer_blocks", 10),
            ),
            missing=missing_in_original(ATTENTION),
            norms=ORIGINAL_NORMS,
        ),
        Layout(
            "diffusers",
            DIFFUSERS,
            blocks=(
                ("down_blocks", 3),
                ("up_blocks", 3),
                ("down_blocks.{i}.attentions.{i}.transformer_blocks", 10),
                ("mid_block.attentions.{i}.transformer_blocks", 10),
                ("up_blocks.{i}.attentions.{i}.transformer_blocks", 10),
            ),
            missing=missing_in_diffusers(ATTENTION),
            norms=DIFFUSERS_NORMS,
        ),
    ),
    sizes=tuple(Size(None, path, None, 2048) for path in CROSS_ATTENTION),
    metadata_names=(
        *("sdxl_base_v1-0", "sdxl_1.0", "sdxl_", "stable-diffusion-xl-v1-base"),
        "stable-diffusion-xl-v1-base-inpainting",
    ),
    text_encoders=(CLIP_L, OPENCLIP_BIGG),
    correspondence=Correspondence(
        lambda: (
            *relations(ATTENTION),
            same("label_emb.0.0", "add_embedding.linear_1"),
            same("label_emb.0.2", "add_embedding.linear_2"),
        )
    ),
    pipeline_name="unet",
    training=Training(
        classes=("Transformer2DModel",),
        models=("UNet2DConditionModel", "SdxlUNet2DConditionModel"),
        excludes=(),
        keys=("sdxl",),
        conv_classes=CONV_BLOCKS,
        text_encoders=(*(TrainedEncoder(prefix, CLIP_BLOCKS) for prefix in ("lora_te1", "lora_te2")),),
    ),
)
