"""Real files as `info` reads them, from their headers in fixtures/real-headers, and from the names and shapes of others
in fixtures/key-shapes: of the right length, with zeros where numbers do not matter.
"""

import base64
import gzip
import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path

from make_synthetic import element

FIXTURES = Path(__file__).parents[1] / "fixtures"
BITS = {"F32": 32, "F16": 16, "BF16": 16}


def loaded(folder: str, name: str) -> dict:
    with gzip.open(FIXTURES / folder / f"{name}.json.gz", "rt", encoding="utf-8") as handle:
        return json.load(handle)


def told_by(name: str) -> tuple[dict, dict | None]:
    """The metadata of a file in fixtures/real-headers, and the config beside it."""
    real = loaded("real-headers", name)
    return json.loads(real["header"]).get("__metadata__", {}), real.get("config")


def write_header(name: str, folder: Path) -> Path:
    """The file of that name in fixtures/real-headers, with its config beside it."""
    real = loaded("real-headers", name)
    folder.mkdir(parents=True, exist_ok=True)
    if "config" in real:
        (folder / "adapter_config.json").write_text(json.dumps(real["config"]))
    small = {key: base64.b64decode(content) for key, content in real["small"].items()}
    return _write(folder / real["name"], real["header"].encode(), small)


def write_shapes(
    name: str, path: Path, dtype: str, alpha: float | None = None, metadata: Mapping[str, str] | None = None
) -> Path:
    """A file of names and shapes in fixtures/key-shapes: of one dtype, with one alpha for all, and this metadata."""
    shapes = loaded("key-shapes", name)["shapes"]
    header: dict = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for key, shape in shapes.items():
        size = math.prod(shape) * BITS[dtype] // 8
        header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    small = {key: element(dtype, alpha) for key in shapes if key.endswith(".alpha")}
    path.parent.mkdir(parents=True, exist_ok=True)
    return _write(path, json.dumps(header).encode(), small)


def _write(path: Path, header: bytes, small: Mapping[str, bytes]) -> Path:
    tensors = {key: entry["data_offsets"] for key, entry in json.loads(header).items() if key != "__metadata__"}
    data = 8 + len(header)
    with path.open("wb") as handle:
        handle.write(struct.pack("<Q", len(header)) + header)
        for key, content in small.items():
            handle.seek(data + tensors[key][0])
            handle.write(content)
        handle.truncate(data + max((end for _, end in tensors.values()), default=0))
    return path
