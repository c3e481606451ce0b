"""Blocks of ggml's types, as GGUF files have them: each block of numbers is bytes with scales of its own in them.

What the bytes stand for is the library gguf's to say, which comes with the extra `gguf`.
"""

from typing import Any


def decoded(blocks: Any, kind: str) -> Any:
    """The numbers (rows, columns) of whole blocks of the type `kind`, bytes (rows, bytes of a row), in float32."""
    import numpy as np
    import torch
    from gguf import GGMLQuantizationType, dequantize

    # A scale that is no number makes others that are none, which whoever reads them finds.
    with np.errstate(all="ignore"):
        return torch.from_numpy(dequantize(blocks.numpy(), GGMLQuantizationType[kind]))
