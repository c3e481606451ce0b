"""Which factors are held once they were read: those alone that another place needs too."""

import json

import torch
from safetensors.torch import save_file

from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.maths import tensors as tensor_reader
from lora_inspect.merging import factor_reader
from lora_inspect.merging.factor_reader import FactorReader
from lora_inspect.reading.adapter import read_adapter

EXPERTS, RANK, OUT, IN = 3, 2, 6, 5


def of_experts(folder):
    """The contribution of an adapter to the parameter of all experts of a layer."""
    key = "base_model.model.layers.0.mlp.experts"
    tensors = {
        f"{key}.lora_A.weight": torch.ones(RANK * EXPERTS, IN),
        f"{key}.lora_B.weight": torch.ones(OUT, RANK * EXPERTS),
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2, "target_parameters": ["mlp.experts.down_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (contribution,) = read_adapter(open_checkpoint(str(folder))).contributions
    return contribution


def test_factors_of_all_experts_are_read_once_for_many_places_and_not_held_for_one(tmp_path, monkeypatch):
    read = []

    def load(info):
        read.append(info.name)
        return tensor_reader.load(info)

    monkeypatch.setattr(factor_reader, "load", load)
    contribution, factors = of_experts(tmp_path), FactorReader()
    for needed_again, times in ((False, 6), (True, 2)):
        read.clear()
        for _ in range(3):
            found = factors.read(contribution, torch.float32, is_needed_again=needed_again)
            assert {role: tuple(tensor.shape) for role, tensor in found.items()} == {"down": (6, 5), "up": (6, 6)}
        assert len(read) == times
