"""A state dict as the header of a file describes it, which is what the reading of files looks at."""

from collections.abc import Mapping

import torch
from torch import Tensor

from lora_inspect.files.safetensors.header import TensorInfo

# By torch's names, of which an older version lacks some.
_NAMES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float8_e8m0fnu": "F8_E8M0",
    "bool": "BOOL",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
}


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype in the safetensors format; torch's own where a file has none of that kind."""
    name = str(dtype).removeprefix("torch.")
    return _NAMES.get(name, name)


def header_of(weights: Mapping[str, Tensor]) -> dict[str, TensorInfo]:
    """The tensors by key with dtype and shape; in memory they have no place in a file."""
    return {
        key: TensorInfo(key, dtype_name(tensor.dtype), tuple(tensor.shape), "", 0, 0) for key, tensor in weights.items()
    }
