"""T5 and its gated successors.

Leaves as in the classes of transformers: `wi` is the plain feed-forward, `wi_0` and `wi_1` the gated one. The index
below `layer` counts the sublayers of a block: 0 self attention, then, in the decoder, 1 cross attention, then the
feed-forward.
"""

from ..record import Architecture, Layout, under

SELF_ATTENTION = under("layer.0.SelfAttention", "q", "k", "v", "o", "relative_attention_bias")
FEED_FORWARD = ("wi", "wi_0", "wi_1", "wo")
BACKBONE = (
    "shared",
    "encoder.embed_tokens",
    *under("encoder.block.{i}", *SELF_ATTENTION, *under("layer.1.DenseReluDense", *FEED_FORWARD)),
    "decoder.embed_tokens",
    *under(
        "decoder.block.{i}",
        *SELF_ATTENTION,
        *under("layer.1.EncDecAttention", "q", "k", "v", "o"),
        *under("layer.2.DenseReluDense", *FEED_FORWARD),
    ),
)
PATHS = (*BACKBONE, "lm_head")
# What the models that classify have beside a `transformer.`, the backbone.
CLASSIFIERS = ("classification_head.dense", "classification_head.out_proj", "classifier")

ARCHITECTURE = Architecture(
    name="t5",
    title="T5",
    layouts=(
        Layout("hf", PATHS, kohya_prefix=""),
        Layout("hf-classifier", (*under("transformer", *BACKBONE), *CLASSIFIERS), kohya_prefix=""),
    ),
)
