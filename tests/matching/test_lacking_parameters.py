"""Layers of a base that have nothing of what a module changes: a bias that is none."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_inspect.errors import LoraInspectError
from lora_inspect.ops.merge import MergeOptions, merge, plan_merge


@pytest.fixture
def files(tmp_path):
    """A BEFT of two layers, and a base in which some of them have a bias."""

    def written(*biased):
        folder = tmp_path / "adapter"
        folder.mkdir(exist_ok=True)
        (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "BEFT"}))
        added = {f"base_model.model.{name}.beft_bias": torch.ones(1, 4) for name in ("first", "second")}
        save_file(added, folder / "adapter_model.safetensors")
        base = {f"{name}.weight": torch.zeros(4, 3) for name in ("first", "second")}
        base |= {f"{name}.bias": torch.zeros(4) for name in biased}
        save_file(base, tmp_path / "base.safetensors")
        return str(tmp_path / "base.safetensors"), [(str(folder), 1.0)]

    return written


def test_a_bias_that_is_nowhere(files):
    with pytest.raises(
        LoraInspectError, match=r"no module matches .*first \(BEFT\) changes the bias of first, which has none"
    ):
        plan_merge(*files(), MergeOptions())


def test_a_bias_that_one_of_two_layers_has(files, tmp_path):
    base, adapters = files("first")
    with pytest.raises(
        LoraInspectError, match=r"1 of 2 modules .*second \(BEFT\) changes the bias of second, which has none"
    ):
        plan_merge(base, adapters, MergeOptions())
    plan = plan_merge(base, adapters, MergeOptions(allow_unmatched=True))
    assert plan.unmatched == ("base_model.model.second",)
    merge(plan, str(tmp_path / "merged.safetensors"))
    assert torch.equal(load_file(tmp_path / "merged.safetensors")["first.bias"], torch.ones(4))
