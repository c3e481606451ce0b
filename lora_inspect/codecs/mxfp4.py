"""MXFP4 as gpt-oss has it: E2M1, the first of two in the lower bits, and a power of two a block of 32 inputs.

All experts of a layer are one tensor: `gate_up_proj_blocks` (experts, out, in/32, 16) beside `gate_up_proj_scales`
(experts, out, in/32). The parameter that they stand for is `gate_up_proj` (experts, in, out).
"""

from typing import Any

from lora_inspect.codecs.four_bits import E2M1, unpacked
from lora_inspect.codecs.powers_of_two import powers

BLOCK = 32


def decoded(blocks: Any, exponents: Any, dtype: Any) -> Any:
    """W = code · 2 ** (e - 127), (…, out, in), from bytes (…, out, in/32, 16) and exponents (…, out, in/32)."""
    scales = powers(exponents, dtype)
    numbers = unpacked(blocks, scales.new_tensor(E2M1), high_first=False)
    return (numbers * scales.unsqueeze(-1)).flatten(-2)
