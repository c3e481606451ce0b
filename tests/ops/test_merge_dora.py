"""merge and DoRA: what is refused of norms and of the rule for multipliers."""

import pytest
import torch
from safetensors.torch import save_file

from lora_inspect.errors import LoraInspectError
from lora_inspect.ops.merge import MergeOptions, merge, plan_merge

FACTORS = {"a.lora_down.weight": torch.ones(2, 5), "a.lora_up.weight": torch.ones(6, 2)}


def merged(folder, weight, tensors, **options):
    save_file({"a.weight": weight}, folder / "base.safetensors")
    save_file(tensors, folder / "adapter.safetensors")
    plan = plan_merge(
        str(folder / "base.safetensors"), [(str(folder / "adapter.safetensors"), 1.0)], MergeOptions(**options)
    )
    merge(plan, str(folder / "merged.safetensors"))


@pytest.mark.parametrize("axis", [(6, 1), (1, 5)], ids=["output", "input"])
def test_a_weight_whose_norm_overflows_is_an_error_and_not_a_weight_of_zeros(axis, tmp_path):
    huge = torch.full((6, 5), 1e22)
    with pytest.raises(LoraInspectError, match=r"folding a into a\.weight gives nan in F32"):
        merged(tmp_path, huge, FACTORS | {"a.dora_scale": torch.full(axis, 1e22)})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter.safetensors", "base.safetensors"]


def test_a_rule_of_dora_for_adapters_without_it_is_an_error(tmp_path):
    with pytest.raises(LoraInspectError, match="--dora-multiplier lycoris has nothing to rule"):
        merged(tmp_path, torch.ones(6, 5), FACTORS, dora_rule="lycoris")
