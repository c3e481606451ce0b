"""BigCode: StarCoder and SantaCoder, of transformers' GPTBigCode.

The names of GPT-2 with Linear layers; their `c_attn` has one head of keys and one of values. Widths tell the two apart.
"""

from ..record import Architecture, Layout, Size, under
from .gpt2 import BACKBONE, HEADS

ARCHITECTURE = Architecture(
    name="gpt_bigcode",
    title="BigCode",
    descends_from="gpt2",
    layouts=(
        Layout("hf", (*under("transformer", *BACKBONE), *HEADS), kohya_prefix=""),
        Layout("hf-backbone", BACKBONE, kohya_prefix=""),
    ),
    sizes=tuple(
        Size(name, f"{root}h.{{i}}.attn.c_attn", width + 2 * head, width)
        for name, width, head in (("1B", 2048, 128), ("3B", 2816, 128), ("7B", 4096, 128), ("15B", 6144, 128))
        for root in ("transformer.", "")
    ),
)
