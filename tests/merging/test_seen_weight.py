"""GLoRA of PEFT adds W C to a bias: from whatever file and in whatever form the base has the weight."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_inspect.errors import LoraInspectError
from lora_inspect.ops.merge import MergeOptions, merge, plan_merge

ROWS, COLUMNS = 6, 4
WEIGHT = torch.arange(-10.0, ROWS * COLUMNS - 10).reshape(ROWS, COLUMNS) / 7
BIAS = torch.linspace(-1, 1, ROWS)
MIXED = torch.tensor([[1.0], [-2.0], [0.5], [4.0]])
PATHS = {"A.X": torch.zeros(1), "B.X": torch.zeros(1), "C.X": MIXED, "D.X": torch.zeros(1), "E.X": torch.ones(1)}
EXPECTED = BIAS + 1 + (WEIGHT @ MIXED)[:, 0]


@pytest.fixture
def adapter(tmp_path):
    tensors = {f"base_model.model.layer.glora_{path}": tensor for path, tensor in PATHS.items()}
    save_file(tensors, tmp_path / "adapter.safetensors")
    return str(tmp_path / "adapter.safetensors")


def merged(base, adapter, output, options=MergeOptions()):  # noqa: B008 (frozen)
    merge(plan_merge(str(base), [(adapter, 1.0)], options), str(output))
    return load_file(output)


def test_it_is_of_the_weight_as_it_is_stored(adapter, tmp_path):
    save_file({"layer.weight": WEIGHT, "layer.bias": BIAS}, tmp_path / "base.safetensors")
    found = merged(tmp_path / "base.safetensors", adapter, tmp_path / "merged.safetensors")
    torch.testing.assert_close(found["layer.bias"], EXPECTED)
    assert torch.equal(found["layer.weight"], WEIGHT)


def test_of_a_weight_in_eight_bits_it_is_of_what_they_stand_for(adapter, tmp_path):
    base = {"layer.weight": WEIGHT.to(torch.float8_e4m3fn), "layer.bias": BIAS}
    stands_for = base["layer.weight"].float()
    save_file(base, tmp_path / "base.safetensors")
    options = MergeOptions(dtype="F32")
    found = merged(tmp_path / "base.safetensors", adapter, tmp_path / "merged.safetensors", options)
    assert not torch.equal(stands_for, WEIGHT)
    torch.testing.assert_close(found["layer.bias"], BIAS + 1 + (stands_for @ MIXED)[:, 0])
    assert torch.equal(found["layer.weight"], stands_for)


def test_in_a_layer_without_a_bias_it_is_no_change_of_a_weight(adapter, tmp_path):
    save_file({"layer.weight": WEIGHT}, tmp_path / "base.safetensors")
    with pytest.raises(LoraInspectError, match="changes a bias, but its layer in"):
        plan_merge(str(tmp_path / "base.safetensors"), [(adapter, 1.0)], MergeOptions())


def test_a_bias_whose_weight_is_nowhere(adapter, tmp_path):
    save_file({"layer.bias": BIAS, "other.weight": WEIGHT}, tmp_path / "base.safetensors")
    for allowed in (True, False):
        with pytest.raises(LoraInspectError, match=r"no module matches|changes a weight"):
            plan_merge(str(tmp_path / "base.safetensors"), [(adapter, 1.0)], MergeOptions(allow_unmatched=allowed))


def test_a_base_that_has_the_layer_in_parts_is_refused(tmp_path):
    path = "model.layers.0.self_attn"
    parts = {"q": COLUMNS, "k": 2, "v": 2}
    base = {f"{path}.{name}_proj.weight": torch.ones(rows, COLUMNS) for name, rows in parts.items()}
    base |= {f"{path}.{name}_proj.bias": torch.ones(rows) for name, rows in parts.items()}
    save_file(base, tmp_path / "base.safetensors")
    tensors = {f"base_model.model.{path}.qkv_proj.glora_{name}": tensor for name, tensor in PATHS.items()}
    save_file(tensors, tmp_path / "adapter.safetensors")
    with pytest.raises(LoraInspectError, match=r"qkv_proj \(GLoRA of PEFT\) changes a bias depending on the weight"):
        plan_merge(str(tmp_path / "base.safetensors"), [(str(tmp_path / "adapter.safetensors"), 1.0)], MergeOptions())
