"""The blocks of Stable Diffusion's UNet: one list in the original repository, levels of units in diffusers.

Source of the order: `convert_ldm_unet_checkpoint` of diffusers.
"""

from collections.abc import Iterator, Sequence

from .correspondence import Relation, below, same
from .record import under

TRANSFORMER = (
    "proj_in",
    "proj_out",
    *under(
        "transformer_blocks.{i}",
        *under("attn1", "to_q", "to_k", "to_v", "to_out.0"),
        *under("attn2", "to_q", "to_k", "to_v", "to_out.0"),
        "ff.net.0.proj",
        "ff.net.2",
    ),
)
# The class names of the blocks of convolutions, beside those of attention.
CONV_BLOCKS = ("ResnetBlock2D", "Downsample2D", "Upsample2D")
DIFFUSERS_RESNET = ("conv1", "conv2", "time_emb_proj", "conv_shortcut")
ORIGINAL_RESNET = ("in_layers.2", "out_layers.3", "emb_layers.1", "skip_connection")

TRANSFORMER_NORMS = ("norm", *under("transformer_blocks.{i}", "norm1", "norm2", "norm3"))
DIFFUSERS_RESNET_NORMS = ("norm1", "norm2")
ORIGINAL_RESNET_NORMS = ("in_layers.0", "out_layers.0")
ORIGINAL_NORMS = (
    *under("input_blocks.{i}.0", *ORIGINAL_RESNET_NORMS),
    *under("input_blocks.{i}.1", *TRANSFORMER_NORMS),
    *under("middle_block.0", *ORIGINAL_RESNET_NORMS),
    *under("middle_block.1", *TRANSFORMER_NORMS),
    *under("middle_block.2", *ORIGINAL_RESNET_NORMS),
    *under("output_blocks.{i}.0", *ORIGINAL_RESNET_NORMS),
    *under("output_blocks.{i}.1", *TRANSFORMER_NORMS),
    "out.0",
)
DIFFUSERS_NORMS = (
    *under("down_blocks.{i}.attentions.{i}", *TRANSFORMER_NORMS),
    *under("down_blocks.{i}.resnets.{i}", *DIFFUSERS_RESNET_NORMS),
    *under("mid_block.attentions.0", *TRANSFORMER_NORMS),
    *under("mid_block.resnets.{i}", *DIFFUSERS_RESNET_NORMS),
    *under("up_blocks.{i}.attentions.{i}", *TRANSFORMER_NORMS),
    *under("up_blocks.{i}.resnets.{i}", *DIFFUSERS_RESNET_NORMS),
    "conv_norm_out",
)

_RESNET = tuple(map(same, (*ORIGINAL_RESNET, *ORIGINAL_RESNET_NORMS), (*DIFFUSERS_RESNET, *DIFFUSERS_RESNET_NORMS)))
_ATTENTION = tuple(same(path, path) for path in (*TRANSFORMER, *TRANSFORMER_NORMS))
# Units of a level on the way down; on the way up there is one more.
_UNITS = 2


def relations(attention: Sequence[bool]) -> tuple[Relation, ...]:
    """Return the relations of a UNet with or without `attention` at each level, from the widest picture down."""
    return (
        same("time_embed.0", "time_embedding.linear_1"),
        same("time_embed.2", "time_embedding.linear_2"),
        same("input_blocks.0.0", "conv_in"),
        *_down(attention),
        *below("middle_block.0", "mid_block.resnets.0", *_RESNET),
        *below("middle_block.1", "mid_block.attentions.0", *_ATTENTION),
        *below("middle_block.2", "mid_block.resnets.1", *_RESNET),
        *_up(attention[::-1]),
        same("out.2", "conv_out"),
        same("out.0", "conv_norm_out"),
    )


def missing_in_diffusers(attention: Sequence[bool]) -> tuple[str, ...]:
    """Return the layers that a UNet of these levels lacks in diffusers' names: attention, and the last resamplers."""
    last = len(attention) - 1
    down, up = _levels_without(attention), _levels_without(attention[::-1])
    return (
        *(f"down_blocks.{level}.attentions" for level in down),
        f"down_blocks.{last}.downsamplers",
        *(f"up_blocks.{level}.attentions" for level in up),
        f"up_blocks.{last}.upsamplers",
    )


def missing_in_original(attention: Sequence[bool]) -> tuple[str, ...]:
    """Return the same in the names of the original repository, and the upsamplers at other places."""
    down = (3 * level + unit for level in _levels_without(attention) for unit in (1, 2))
    up = (3 * level + unit for level in _levels_without(attention[::-1]) for unit in range(_UNITS + 1))
    # A block without attention may have an upsampler in the place of it.
    upsamplers = (
        f"output_blocks.{3 * level + _UNITS}.{1 if has else 2}.conv" for level, has in enumerate(attention[::-1])
    )
    attentions = ("proj_in", "proj_out", "transformer_blocks")
    resampling = (3 * level for level in range(len(attention)))
    return (
        *(path for block in (*down, *resampling) for path in under(f"input_blocks.{block}.1", *attentions)),
        *(path for block in up for path in under(f"output_blocks.{block}.1", *attentions)),
        *upsamplers,
    )


def _levels_without(attention: Sequence[bool]) -> list[int]:
    return [level for level, has_attention in enumerate(attention) if not has_attention]


def _down(attention: Sequence[bool]) -> Iterator[Relation]:
    """Yield the relations down: the units of a level, then its downsampler, which the last level lacks."""
    for level, has_attention in enumerate(attention):
        first = 1 + level * (_UNITS + 1)
        for unit in range(_UNITS):
            block, others = f"input_blocks.{first + unit}", f"down_blocks.{level}"
            yield from below(f"{block}.0", f"{others}.resnets.{unit}", *_RESNET)
            if has_attention:
                yield from below(f"{block}.1", f"{others}.attentions.{unit}", *_ATTENTION)
        if level + 1 < len(attention):
            yield same(f"input_blocks.{first + _UNITS}.0.op", f"down_blocks.{level}.downsamplers.0.conv")


def _up(attention: Sequence[bool]) -> Iterator[Relation]:
    """Yield the relations up: a level's last unit ends with its upsampler, which the last level lacks."""
    for level, has_attention in enumerate(attention):
        for unit in range(_UNITS + 1):
            block, others = f"output_blocks.{level * (_UNITS + 1) + unit}", f"up_blocks.{level}"
            yield from below(f"{block}.0", f"{others}.resnets.{unit}", *_RESNET)
            if has_attention:
                yield from below(f"{block}.1", f"{others}.attentions.{unit}", *_ATTENTION)
        if level + 1 < len(attention):
            yield same(f"{block}.{2 if has_attention else 1}.conv", f"up_blocks.{level}.upsamplers.0.conv")
