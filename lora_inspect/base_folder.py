"""What a folder checkpoint holds beside its weights, and how it comes into the folder of an output."""

import json
import os
import shutil

from lora_inspect.checkpoint import Checkpoint, read_json

# What a base folder may hold beside the merged set that would still be the unmerged weights.
_OTHER_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx")


def output_names(base: Checkpoint) -> list[str]:
    """Names of all files that the output of a folder base has."""
    return [os.path.basename(file) for file in base.files] + _side_files(base)


def copy_side_files(base: Checkpoint, folder: str, weight_bytes: int) -> None:
    """Puts what lies beside the weights into `folder`, the index with `weight_bytes` as its total size."""
    for name in _side_files(base):
        shutil.copyfile(os.path.join(base.root or os.curdir, name), os.path.join(folder, name))
    if base.index_path:
        index = read_json(base.index_path)
        known = index.get("metadata")
        index["metadata"] = {**(known if isinstance(known, dict) else {}), "total_size": weight_bytes}
        with open(os.path.join(folder, os.path.basename(base.index_path)), "w", encoding="utf-8") as handle:
            json.dump(index, handle, indent=2)


def _side_files(base: Checkpoint) -> list[str]:
    """Names of the files beside the weights: configuration, tokenizer, index."""
    root = base.root or os.curdir
    return [
        name
        for name in sorted(os.listdir(root))
        if os.path.isfile(os.path.join(root, name)) and not name.lower().endswith(_OTHER_WEIGHTS)
    ]
