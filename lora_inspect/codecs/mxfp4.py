"""MXFP4 in gpt-oss's form: E2M1, the first of two in the lower bits, and a power of two per block of 32 inputs.

All experts of a layer are one tensor: `gate_up_proj_blocks` (experts, out, in/32, 16) next to `gate_up_proj_scales`
(experts, out, in/32). The parameter that they encode is `gate_up_proj` (experts, in, out).
"""

from collections.abc import Mapping
from typing import Any

from lora_inspect.codecs.four_bits import E2M1, powers, unpacked
from lora_inspect.codecs.record import NOWHERE, Codec, CodedTensor, CodeLayout

BLOCK = 32
_BYTES = BLOCK // 2
NAME = "_scales"
# How many numbers are decoded at once: an expert has some ten million.
_AT_ONCE = 1 << 20


def decoded(blocks: Any, exponents: Any, like: Any) -> Any:
    """Return W = code · 2 ** (e - 127), (…, out, in), in the element type of the tensor `like`.

    The bytes are (…, out, in/32, 16) and the exponents (…, out, in/32).
    """
    numbers = unpacked(blocks, like.new_tensor(E2M1), high_first=False)
    return numbers.view(*exponents.shape, BLOCK).mul_(powers(exponents, like).unsqueeze(-1)).flatten(-2)


def _layout(found: CodedTensor) -> CodeLayout | None:
    codes, scales = found.codes.shape, found.beside[NAME].shape
    if len(codes) != 4 or codes[3] != _BYTES or scales != codes[:3]:
        return None
    experts, out, blocks, _ = codes
    return CodeLayout((experts, blocks * BLOCK, out), unit=blocks * BLOCK * out, part=BLOCK * out)


def _prepared(tensors: Mapping[str, Any], layout: CodeLayout) -> Any:
    return tensors[NAME]


def _decode(codes: Any, exponents: Any, first: int, into: Any) -> None:
    """Decode blocks of inputs of whole experts.

    In the codes an output has its inputs together; in the weight an input has its outputs together.
    """
    _, out, blocks = exponents.shape
    inputs, weights = blocks * BLOCK, into.view(-1, out)
    begin = first * into.shape[1] // out
    end, first_expert = begin + weights.shape[0], begin // inputs
    for number, own in enumerate(codes.view(-1, out, blocks, _BYTES)):
        expert = first_expert + number
        start, stop = max(begin, expert * inputs), min(end, (expert + 1) * inputs)
        taken = slice(start // BLOCK - expert * blocks, stop // BLOCK - expert * blocks)
        few = max(1, _AT_ONCE // (stop - start))
        for at in range(0, out, few):
            outputs = slice(at, at + few)
            numbers = decoded(own[outputs, taken], exponents[expert, outputs, taken], into)
            weights[start - begin : stop - begin, outputs].copy_(numbers.t())


CODEC = Codec(
    name="mxfp4",
    title="mxfp4",
    stored=frozenset({"U8"}),
    settings={NAME: frozenset({"U8", "F8_E8M0"})},
    ending="_blocks",
    mixes=NOWHERE,
    layout=_layout,
    prepared=_prepared,
    decode=_decode,
)
