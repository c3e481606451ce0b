"""OSF looks at the whole weight: one without numbers to look at, and adapters that leave all of its directions."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_inspect.errors import LoraInspectError
from lora_inspect.ops.merge import MergeOptions, merge, plan_merge

ROWS, COLUMNS = 5, 3


@pytest.fixture
def merged(tmp_path):
    def run(weight, count):
        sizes = {"U_low": (ROWS, count), "S_low": (count,), "V_low": (count, COLUMNS)}
        tensors = {f"base_model.model.layer.osf_svd_params.{name}": torch.ones(size) for name, size in sizes.items()}
        save_file(tensors, tmp_path / "adapter.safetensors")
        save_file({"layer.weight": weight}, tmp_path / "base.safetensors")
        plan = plan_merge(
            str(tmp_path / "base.safetensors"), [(str(tmp_path / "adapter.safetensors"), 1.0)], MergeOptions()
        )
        merge(plan, str(tmp_path / "merged.safetensors"))
        return load_file(tmp_path / "merged.safetensors")["layer.weight"]

    return run


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_has_no_directions(odd, merged):
    weight = torch.ones(ROWS, COLUMNS)
    weight[1, 1] = odd
    with pytest.raises(LoraInspectError, match=r"folding base_model.model.layer into layer.weight gives nan"):
        merged(weight, 2)


def test_an_adapter_of_no_directions_leaves_all(merged):
    weight = torch.arange(float(ROWS * COLUMNS)).reshape(ROWS, COLUMNS)
    assert torch.equal(merged(weight, 0), weight)


def test_of_all_directions_nothing_is_left(merged):
    weight = torch.arange(float(ROWS * COLUMNS)).reshape(ROWS, COLUMNS)
    torch.testing.assert_close(merged(weight, COLUMNS), torch.full((ROWS, COLUMNS), 3.0), atol=1e-4, rtol=0)
