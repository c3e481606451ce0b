"""Kandinsky 5.

Leaves as in the DiffusionTransformer3D of the original repository; the Kandinsky5Transformer3DModel of diffusers keeps
its names.
"""

from ..record import Architecture, Layout, Size, Training, under
from ..text_encoders import CLIP_L, QWEN25_VL_7B

ATTENTION = ("to_query", "to_key", "to_value", "out_layer")
FEED_FORWARD = under("feed_forward", "in_layer", "out_layer")
PATHS = (
    *under("time_embeddings", "in_layer", "out_layer"),
    "text_embeddings.in_layer",
    "pooled_text_embeddings.in_layer",
    "visual_embeddings.in_layer",
    *under(
        "text_transformer_blocks.{i}",
        "text_modulation.out_layer",
        *under("self_attention", *ATTENTION),
        *FEED_FORWARD,
    ),
    *under(
        "visual_transformer_blocks.{i}",
        "visual_modulation.out_layer",
        *under("self_attention", *ATTENTION),
        *under("cross_attention", *ATTENTION),
        *FEED_FORWARD,
    ),
    "out_layer.modulation.out_layer",
    "out_layer.out_layer",
)

ARCHITECTURE = Architecture(
    name="kandinsky5",
    title="Kandinsky 5",
    layouts=(
        Layout(
            "diffusers",
            PATHS,
            blocks=(("visual_transformer_blocks", 60), ("text_transformer_blocks", 4)),
            also=("original",),
        ),
    ),
    sizes=tuple(
        Size(name, path, width, width)
        for name, width in (("lite video", 1792), ("lite image", 2560), ("pro", 4096))
        for path in (
            *under("visual_transformer_blocks.{i}.self_attention", *ATTENTION),
            *under("visual_transformer_blocks.{i}.cross_attention", *ATTENTION),
            *under("text_transformer_blocks.{i}.self_attention", *ATTENTION),
        )
    ),
    metadata_names=("kandinsky5", "kandinsky-5"),
    text_encoders=(QWEN25_VL_7B, CLIP_L),
    training=Training(
        classes=("TransformerEncoderBlock", "TransformerDecoderBlock"),
        diffusers_classes=("Kandinsky5TransformerEncoderBlock", "Kandinsky5TransformerDecoderBlock"),
        models=("DiffusionTransformer3D", "Kandinsky5Transformer3DModel"),
        includes=(
            *(rf".*self_attention\.{leaf}.*" for leaf in ATTENTION),
            *(rf".*cross_attention\.{leaf}.*" for leaf in ATTENTION),
            *(rf".*feed_forward\.{leaf}.*" for leaf in ("in_layer", "out_layer")),
        ),
        keys=("k5",),
    ),
)
