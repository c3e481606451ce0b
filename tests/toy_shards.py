"""A sharded base with what lies beside it, adapters for it, and what a folder holds."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

SHARDS, OUT, IN, RANK = 5, 40, 32, 4
# Shard number i has 2 + i weights, of which every second one is changed.
NAMES = [f"model-{number + 1:05}-of-{SHARDS:05}.safetensors" for number in range(SHARDS)]


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def shards(scale=0.1, dtype=torch.bfloat16, seed=0):
    return {
        file: {
            f"model.layers.{i}.mlp.e{j}.weight": (scale * drawn(100 * seed + 10 * i + j, OUT, IN)).to(dtype)
            for j in range(2 + i)
        }
        for i, file in enumerate(NAMES)
    }


def write_base(folder, tensors=None, **metadata):
    """A folder with an index, a configuration and a file in a folder of its own."""
    folder = Path(folder)
    (folder / "extra").mkdir(parents=True)
    tensors = shards() if tensors is None else tensors
    for file, own in tensors.items():
        save_file(own, folder / file, {"format": "pt", **metadata})
    weight_map = {name: file for file, own in tensors.items() for name in own}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "torch_dtype": "bfloat16"}))
    (folder / "extra" / "words.txt").write_text("words")
    return str(folder)


def write_adapter(folder, seed=1, size=0.1, dora=False, modules=2):
    """A PEFT adapter that changes every second weight of each shard, or every one."""
    folder = Path(folder)
    folder.mkdir()
    tensors = {}
    for i in range(SHARDS):
        for j in range(0, 2 + i, modules):
            module, own = f"base_model.model.model.layers.{i}.mlp.e{j}", 1000 * seed + 10 * i + j
            tensors[f"{module}.lora_A.weight"] = drawn(own, RANK, IN)
            tensors[f"{module}.lora_B.weight"] = size * drawn(own + 500, OUT, RANK)
            if dora:
                tensors[f"{module}.lora_magnitude_vector"] = 0.6 + 0.1 * drawn(own + 700, OUT).abs()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "use_dora": dora, "target_modules": ["e0", "e1"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return str(folder)


def content(folder):
    """Every file of a folder by its path in it, and each folder."""
    folder = Path(folder)
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}
