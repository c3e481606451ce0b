"""Adapters of a residual base: what is left of the original one once a part of it has moved into their factors."""

from collections.abc import Mapping

# What our training network says of PiSSA weights that are a plain LoRA on the original base.
INITIAL_FACTORS_KEY, INCLUDED = "lora_inspect.initial_factors", "included"


def residual_init(metadata: Mapping[str, str]) -> str | None:
    """The initialisation that left the adapter on a residual base, by its metadata; None where there is none."""
    init = metadata.get("ss_init_lora_weights", "")
    return init if init.startswith("pissa") and metadata.get(INITIAL_FACTORS_KEY) != INCLUDED else None
