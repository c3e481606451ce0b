"""Algorithms known by the names of their tensors, so that a file that uses one is refused by the right name."""

from collections.abc import Callable

from lora_inspect.algorithms import features as told
from lora_inspect.algorithms.record import Algorithm, Features, Shapes


def _named(
    name: str,
    title: str,
    *suffixes: str,
    marks: tuple[str, ...] = (),
    features: Callable[[Shapes], Features] | None = None,
    fits: Callable[[Shapes], bool] | None = None,
) -> Algorithm:
    roles = {suffix.lstrip("."): suffix for suffix in suffixes}
    return Algorithm(name=name, title=title, dialects={"": roles}, marks=marks, features=features, fits=fits)


RECOGNISED = (
    # Its factors are LoKr's, which takes them without the row.
    _named(
        "lokr_rows",
        "LoKr on some rows of its product",
        ".row_offset",
        *(f".lokr_{role}" for role in ("w1", "w2", "w1_a", "w1_b", "w2_a", "w2_b", "t2")),
        marks=("row_offset",),
    ),
    _named("peft_oft_embedding", "OFT of PEFT on an Embedding", ".oft_embedding_R.weight"),
    _named("tlora", "T-LoRA", ".q_layer.weight", ".p_layer.weight", ".lambda_layer"),
    _named("replaced", "a replaced or reshaped weight", ".set_weight", ".reshape_weight", features=told.replaced),
    _named("mlx", "MLX LoRA", ".lora_a", ".lora_b", features=told.mlx),
    _named(
        "xlabs",
        "XLabs Flux LoRA",
        *(
            f".processor.{part}.{side}.weight"
            for part in ("qkv_lora", "qkv_lora1", "qkv_lora2", "proj_lora", "proj_lora1", "proj_lora2")
            for side in ("down", "up")
        ),
    ),
)
