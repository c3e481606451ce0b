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
    model, legacy, _ = sshs_hashes_of_all_times(contents, metadata)
    return {"sshs_model_hash": model, "sshs_legacy_hash": legacy}


def sshs_hashes_of_all_times(contents: Sequence[Content], metadata: Mapping[str, str]) -> tuple[str, str, str]:
    """The hash of the model, the legacy one, and that of a library that did not pad its header yet, as until 2023."""
    ordered = in_library_order(contents)
    ss_metadata = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    header = encode_header([content.plan for content in ordered], ss_metadata)
    model = hashlib.sha256()
    windows = [_Window(len(header)), _Window(len(header.rstrip(b" ")))]
    for content in ordered:
        for chunk in content.chunks():
            model.update(chunk)
            for window in windows:
                window.update(chunk)
    legacy, unpadded = (window.digest.hexdigest()[:_LEGACY_DIGITS] for window in windows)
    return model.hexdigest(), legacy, unpadded


class _Window:
    """The digest of the bytes that the legacy hash looks at; `position` is that of the next chunk in the file."""

    def __init__(self, position: int) -> None:
        self.digest = hashlib.sha256()
        self._position = position

    def update(self, chunk: bytes) -> None:
        first, last = _LEGACY_START - self._position, _LEGACY_START + _LEGACY_BYTES - self._position
        if last > 0 and first < len(chunk):
            self.digest.update(chunk[max(first, 0) : last])
        self._position += len(chunk)


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
