"""What metadata say of an initialisation that moves a part of the base into the factors."""

from collections.abc import Mapping

from lora_inspect.reading.model.evidence import INIT_KEY

# Those whose part can be computed again from the original base.
PISSA, OLORA = "pissa", "olora"
# What our training network says of PiSSA weights that are a plain LoRA on the original base.
INITIAL_FACTORS_KEY, INCLUDED = "lora_inspect.initial_factors", "included"


def computed_init(init: str) -> str | None:
    """Which of the initialisations whose part can be computed again this is, by any of its names; else None."""
    return OLORA if init.lower() == OLORA else (PISSA if init == PISSA else None)


def residual_init(metadata: Mapping[str, str]) -> str | None:
    """The initialisation that left the adapter on a residual base, by its metadata; None where there is none."""
    init = metadata.get(INIT_KEY, "")
    return init if init.startswith(PISSA) and metadata.get(INITIAL_FACTORS_KEY) != INCLUDED else None
