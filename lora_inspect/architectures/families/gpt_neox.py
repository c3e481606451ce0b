"""GPT-NeoX, Pythia and their descendants.

Leaves as in its classes of transformers, with and without a head. `query_key_value` interleaves query, key and value
per head.
"""

from ..record import Architecture, Layout, under

BACKBONE = (
    "embed_in",
    *under(
        "layers.{i}",
        *under("attention", "query_key_value", "dense"),
        *under("mlp", "dense_h_to_4h", "dense_4h_to_h"),
    ),
)

ARCHITECTURE = Architecture(
    name="gpt_neox",
    title="GPT-NeoX",
    layouts=(
        Layout(
            "hf",
            (*under("gpt_neox", *BACKBONE), "embed_out", "lm_head", "score", "classifier", "qa_outputs"),
            kohya_prefix="",
        ),
        Layout("hf-backbone", BACKBONE, kohya_prefix=""),
    ),
)
