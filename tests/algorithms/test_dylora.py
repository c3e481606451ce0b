"""Files of DyLoRA are those of plain LoRA, whose ranks were trained one block after the other.

Both programs save what they concatenate under LoRA's names. Nothing shows it to a reader, and all read alpha/rank. Of
sd-scripts that is the scale at the whole rank: alpha/rank · sqrt(rank/rank). LyCORIS trains the whole rank at
alpha/blocks, which is alpha/rank where a block is one rank, and as many times that as a block has ranks.
"""

import json

import pytest
import torch
from library_case import LAYERS, fill, make
from lycoris.modules.dylora import DyLoraModule
from safetensors.torch import load_file, save_file

from lora_inspect.ops.merge import MergeOptions, merge, plan_merge

pytestmark = pytest.mark.numeric
RANK, ALPHA = 4, 3.0


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("block_size", [1, 2, 4])
def test_its_files_are_read_as_every_program_reads_them(kind, block_size, tmp_path):
    layer, _ = make(kind)
    weight = layer.weight.detach().clone()
    module = DyLoraModule("layer", layer, lora_dim=RANK, alpha=ALPHA, block_size=block_size).double()
    fill(module, torch.Generator().manual_seed(1))
    layer.weight.data.copy_(weight)
    tensors = {f"lora_unet_layer.{key}": value.detach().contiguous() for key, value in module.state_dict().items()}
    assert {key.partition(".")[2] for key in tensors} == {"alpha", "lora_down.weight", "lora_up.weight"}
    save_file(tensors, tmp_path / "adapter.safetensors")
    save_file({"layer.weight": weight}, tmp_path / "base.safetensors")
    paths = str(tmp_path / "base.safetensors"), [(str(tmp_path / "adapter.safetensors"), 1.0)]
    merge(plan_merge(*paths, MergeOptions()), str(tmp_path / "merged.safetensors"))
    found = load_file(tmp_path / "merged.safetensors")["layer.weight"] - weight
    trained = module.get_diff_weight(rank=RANK - block_size)[0].detach()
    torch.testing.assert_close(found * block_size, trained)
    up, down = (tensors[f"lora_unet_layer.lora_{side}.weight"].flatten(1) for side in ("up", "down"))
    torch.testing.assert_close(found, (ALPHA / RANK * up @ down).view_as(weight))


@pytest.mark.parametrize(
    ("module", "args", "says"),
    [
        ("lycoris.kohya", {"algo": "dylora"}, 4),
        ("lycoris.kohya", {"algo": "DyLoRA", "block_size": "8"}, 8),
        ("lycoris.kohya", {"algo": "dylora", "block_size": 1}, None),
        ("lycoris.kohya", {"algo": "dylora", "block_size": "none"}, 4),
        ("lycoris.kohya", {"algo": "locon", "block_size": 8}, None),
        ("networks.dylora", {"unit": 4}, None),
        ("networks.lora", {"algo": "dylora"}, None),
    ],
)
def test_what_lycoris_trained_is_told(module, args, says, tmp_path, run):
    tensors = {"lora_unet_q.lora_down.weight": torch.ones(8, 4), "lora_unet_q.lora_up.weight": torch.ones(4, 8)}
    metadata = {"ss_network_module": module, "ss_network_args": json.dumps(args)}
    save_file(tensors, tmp_path / "adapter.safetensors", metadata)
    problems = run("info", tmp_path / "adapter.safetensors", "--json").json["problems"]
    told = [problem["message"] for problem in problems if problem["code"] == "trained-scale"]
    assert [message.rpartition("; ")[2] for message in told] == (
        [f"a multiplier of {says} gives the trained scale"] if says else []
    )
