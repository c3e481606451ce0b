"""Blocks of ggml's types, as GGUF files have them: each block of numbers is bytes that include its scales.

The library gguf decodes the bytes; it comes with the extra `gguf`.
"""

from importlib.util import find_spec
from typing import Any

from lora_inspect.codecs.record import NOWHERE, Codec, CodedTensor, CodeLayout
from lora_inspect.errors import NeedsLibraryError
from lora_inspect.files.gguf.gguf_format import QUANTISED, TENSOR_TYPES
from lora_inspect.version import requirement_with

_LIBRARY = "gguf"
_TYPES = {kind.name: kind for kind in TENSOR_TYPES.values()}


def decoded(blocks: Any, kind: str) -> Any:
    """Decode blocks of the type `kind`, bytes (rows, bytes of a row), into a float32 array (rows, columns)."""
    from gguf import GGMLQuantizationType, dequantize

    return dequantize(blocks.numpy(), GGMLQuantizationType[kind])


def _layout(found: CodedTensor) -> CodeLayout:
    codes = found.codes
    if find_spec(_LIBRARY) is None:
        raise NeedsLibraryError(
            codes.file,
            f"{codes.name} is stored as {codes.dtype}, and lora-inspect decodes it with the library {_LIBRARY}, "
            "which is missing",
            f'install it with pip install "{requirement_with(_LIBRARY)}"',
        )
    return CodeLayout(codes.shape, codes.dtype, unit=_TYPES[codes.dtype].block)


def _decode(codes: Any, kind: str, first: int, into: Any) -> None:
    # A block may begin in one row of the weight and end in the next.
    rows, size = into.shape[0], _TYPES[kind].bytes
    is_whole = codes.numel() % (rows * size) == 0
    into.numpy()[:] = decoded(codes.view(rows, -1) if is_whole else codes.view(-1, size), kind).reshape(into.shape)


CODEC = Codec(
    name="gguf",
    title="GGUF",
    stored=QUANTISED,
    alone=True,
    mixes=NOWHERE,
    layout=_layout,
    prepared=lambda tensors, layout: layout.detail,
    decode=_decode,
)
