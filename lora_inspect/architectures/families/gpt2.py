"""GPT-2.

Leaves as in its classes of transformers, with and without a head. All block leaves are Conv1D layers, whose weight is
(in, out), the transpose of a Linear's.
"""

from ..record import Architecture, Layout, under

BACKBONE = (
    "wte",
    "wpe",
    *under("h.{i}", *under("attn", "c_attn", "c_proj"), *under("mlp", "c_fc", "c_proj")),
)

# What all models of transformers call their Conv1D layers.
CONV1D = ("c_attn", "c_proj", "c_fc", "q_attn")

ARCHITECTURE = Architecture(
    name="gpt2",
    title="GPT-2",
    layouts=(
        Layout("hf", (*under("transformer", *BACKBONE), "lm_head"), kohya_prefix="", transposed=CONV1D),
        Layout("hf-backbone", BACKBONE, kohya_prefix="", transposed=CONV1D),
    ),
)
