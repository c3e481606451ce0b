"""DistilBERT.

Leaves as in its classes of transformers, with and without a head.
"""

from ..record import Architecture, Layout, under

BACKBONE = (
    *under("embeddings", "word_embeddings", "position_embeddings"),
    *under(
        "transformer.layer.{i}",
        *under("attention", "q_lin", "k_lin", "v_lin", "out_lin"),
        *under("ffn", "lin1", "lin2"),
    ),
)

HEADS = ("pre_classifier", "classifier", "qa_outputs", "vocab_transform", "vocab_projector")

ARCHITECTURE = Architecture(
    name="distilbert",
    title="DistilBERT",
    layouts=(
        Layout("hf", (*under("distilbert", *BACKBONE), *HEADS), kohya_prefix=""),
        Layout("hf-backbone", BACKBONE, kohya_prefix=""),
    ),
)
