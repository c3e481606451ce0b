"""BERT, RoBERTa and MiniLM.

Leaves as in their classes of transformers: the bare encoder, as sentence encoders use it, and the models with a head.
"""

from ..record import Architecture, Layout, under

BACKBONE = (
    *under("embeddings", "word_embeddings", "position_embeddings", "token_type_embeddings"),
    *under(
        "encoder.layer.{i}",
        *under("attention.self", "query", "key", "value"),
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    ),
    "pooler.dense",
)
HEADS = (
    "classifier",
    "classifier.dense",
    "classifier.out_proj",
    "qa_outputs",
    "cls.predictions.transform.dense",
    "cls.predictions.decoder",
    "cls.seq_relationship",
    "lm_head.dense",
    "lm_head.decoder",
)

ARCHITECTURE = Architecture(
    name="bert",
    title="BERT",
    layouts=(
        Layout("hf-backbone", BACKBONE, kohya_prefix=""),
        Layout("hf", (*under("bert", *BACKBONE), *under("roberta", *BACKBONE), *HEADS), kohya_prefix=""),
    ),
)
