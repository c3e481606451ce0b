"""Language models whose head has no weight of its own but that of their embedding, and bases that hold it once.

A change of the one weight is one of both, while the adapter of PEFT is at work in one of them. Source: transformers'
`tie_word_embeddings`, PEFT's `ensure_weight_tying`.
"""

from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.reading.base_names import leaf_of, path_of

HEADS = ("lm_head", "embed_out")
EMBEDDINGS = ("embed_tokens", "wte", "embed_in", "shared")


def has_head(base: Checkpoint) -> bool:
    """Whether the base has a weight of a head."""
    return any(leaf_of(path_of(info)) in HEADS for info in base.tensors.values())


def is_embedding(name: str) -> bool:
    """Whether a tensor of a base of this name is the weight of an embedding that a head may share."""
    return name.endswith(".weight") and name.split(".")[-2] in EMBEDDINGS


def shared_embedding(base: Checkpoint) -> str | None:
    """The weight of the embedding where no head has its own; None where there is a head, or no such embedding."""
    return None if has_head(base) else next(filter(is_embedding, base.tensors), None)
