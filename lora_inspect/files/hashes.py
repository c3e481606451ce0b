"""The hashes that loaders of the ecosystem look up, and that of a tensor.

`sshs_model_hash` and `sshs_legacy_hash` are taken of the file as the safetensors library would write it, with only the
metadata that begins with `ss_`. `modelspec.hash_sha256` is that of the data section, with 0x before it.
Sources: `precalculate_safetensors_hashes` of sd-scripts, and Stability AI's ModelSpec.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from lora_inspect.files.contents import Content, renamed
from lora_inspect.files.dtypes import BITS
from lora_inspect.files.header import TensorInfo
from lora_inspect.files.writer import encode_header

_LEGACY_START, _LEGACY_BYTES, _LEGACY_DIGITS = 0x100000, 0x10000, 8


def sshs_hashes(contents: Sequence[Content], metadata: Mapping[str, str]) -> dict[str, str]:
    """Both hashes of the tensors, under the metadata keys that hold them."""
    ordered = in_library_order(contents)
    ss_metadata = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    position = len(encode_header([content.plan for content in ordered], ss_metadata))
    model, legacy = hashlib.sha256(), hashlib.sha256()
    for content in ordered:
        for chunk in content.chunks():
            model.update(chunk)
            first, last = _LEGACY_START - position, _LEGACY_START + _LEGACY_BYTES - position
            if last > 0 and first < len(chunk):
                legacy.update(chunk[max(first, 0) : last])
            position += len(chunk)
    return {"sshs_model_hash": model.hexdigest(), "sshs_legacy_hash": legacy.hexdigest()[:_LEGACY_DIGITS]}


def in_library_order(contents: Iterable[Content]) -> list[Content]:
    """As the safetensors library orders them: by element type, the last of its enumeration first, then by name."""
    rank_of = {dtype: rank for rank, dtype in enumerate(BITS)}
    return sorted(contents, key=lambda content: (-rank_of[content.plan.dtype], content.plan.name))


def data_sha256(contents: Iterable[Content]) -> str:
    """That of the data section of a file that holds them in this order, in 64 digits.

    ModelSpec's `modelspec.hash_sha256` is this with 0x before it.
    """
    digest = hashlib.sha256()
    for content in contents:
        for chunk in content.chunks():
            digest.update(chunk)
    return digest.hexdigest()


def sha256(info: TensorInfo) -> str:
    """That of the bytes of a tensor as it is stored."""
    return data_sha256([renamed(info, info.name)])
