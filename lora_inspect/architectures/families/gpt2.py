"""GPT-2.

Leaves as in its classes of transformers, with and without a head. All block leaves are Conv1D layers with a weight (in,
out), the transpose of a Linear's.
"""

from ..record import Architecture, Layout, Size, under

BACKBONE = (
    "wte",
    "wpe",
    *under(
        "h.{i}",
        *under("attn", "c_attn", "c_proj"),
        *under("crossattention", "c_attn", "q_attn", "c_proj"),
        *under("mlp", "c_fc", "c_proj"),
    ),
)
HEADS = ("lm_head", "score", "classifier", "multiple_choice_head.summary")

# What all models of transformers call their Conv1D layers.
CONV1D = ("c_attn", "c_proj", "c_fc", "q_attn")

ARCHITECTURE = Architecture(
    name="gpt2",
    title="GPT-2",
    layouts=(
        Layout("hf", (*under("transformer", *BACKBONE), *HEADS), kohya_prefix="", transposed=CONV1D),
        Layout("hf-backbone", BACKBONE, kohya_prefix="", transposed=CONV1D),
    ),
    # As an adapter has the widths, and as the weight is stored.
    sizes=tuple(
        Size(name, f"{root}h.{{i}}.attn.c_attn", *sides)
        for name, width in (("small", 768), ("medium", 1024), ("large", 1280), ("XL", 1600))
        for root in ("transformer.", "")
        for sides in ((3 * width, width), (width, 3 * width))
    ),
)
