"""The alpha that the header of llama.cpp's adapters says once, given to each of their modules.

llama.cpp multiplies by alpha/rank with the rank of each tensor, and by 1 where alpha is 0 or not there: RS-LoRA, and
what a config of PEFT says of single modules, are no part of such a file. Source: `llama_adapter_lora_weight` there.
"""

from collections.abc import Iterator

from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.reading.keys.claims import Claims
from lora_inspect.reading.model.evidence import Evidence


def claim_alpha_of_all(claims: Claims, alpha: TensorInfo | None) -> Claims:
    """The claims with `alpha` as that of each module."""
    if alpha is None:
        return claims
    return claims._replace(modules={name: module._replace(alpha=alpha) for name, module in claims.modules.items()})


def about_alpha_of_all(checkpoint: Checkpoint) -> Iterator[Evidence]:
    """What the header says of the scale."""
    if checkpoint.alpha is not None:
        from lora_inspect.files.gguf.gguf_format import ALPHA_KEY

        yield Evidence("scale", "llama.cpp divides the alpha of all modules by the rank of each", ALPHA_KEY)
