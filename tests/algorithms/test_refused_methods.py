"""Methods of PEFT whose files do not tell their change are refused with the reason, which is true of PEFT."""

import json

import peft
import pytest
import torch
from libraries import Net
from library_case import make
from peft.tuners.lora.config import KasaConfig
from safetensors.torch import save_file

from lora_inspect.errors import LoraInspectError
from lora_inspect.ops.merge import MergeOptions, merge, plan_merge
from lora_inspect.reading.file_info import inspect
from lora_inspect.reporting.file_record import as_json

pytestmark = pytest.mark.numeric
ADAMSS = {"r": 8, "num_subspaces": 2, "subspace_rank": 2}


def trained(config):
    layer, _ = make("linear", torch.float32)
    model = peft.get_peft_model(Net(layer), config)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("has_config", [True, False])
@pytest.mark.parametrize(
    ("config", "words"),
    [
        (peft.PsoftConfig(r=4, target_modules=["layer"]), "the file does not hold their signs"),
        (peft.AdamssConfig(target_modules=["layer"], **ADAMSS), "clustering the base"),
    ],
)
def test_it_is_refused_by_name_with_the_reason(config, words, has_config, tmp_path):
    tensors = peft.get_peft_model_state_dict(trained(config))
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, tmp_path / "adapter_model.safetensors")
    if has_config:
        said = json.dumps(config.to_dict(), default=lambda value: sorted(value))
        (tmp_path / "adapter_config.json").write_text(said)
    save_file({"layer.weight": torch.zeros(20, 12)}, tmp_path / "base.safetensors")
    adapter = str(tmp_path / "adapter_model.safetensors")
    record = as_json(inspect(adapter))
    assert record["unclaimed"] == []
    assert all(words in problem["message"] for problem in record["problems"] if problem["severity"] == "error")
    with pytest.raises(LoraInspectError, match=f"(PSOFT|AdaMSS) .*{words}.*; merge it with"):
        plan_merge(str(tmp_path / "base.safetensors"), [(adapter, 1.0)], MergeOptions())


def test_other_signs_of_singular_vectors_are_another_change_by_psoft():
    layer = trained(peft.PsoftConfig(r=4, target_modules=["layer"])).base_model.model.layer
    before = layer.get_delta_weight("default").detach()
    a, b = layer._get_psoft_ab_cache_buffers("default")
    signs = torch.tensor([-1.0, 1.0, 1.0, 1.0])
    layer._set_psoft_ab_cache_buffers("default", signs[:, None] * a, b * signs)
    torch.testing.assert_close((b * signs) @ (signs[:, None] * a), b @ a)
    assert float((layer.get_delta_weight("default").detach() - before).norm()) > 0.01 * float(before.norm())


def test_kasa_without_its_diagonal_is_refused(tmp_path):
    tensors = {"base_model.model.layer.lora_A.weight": torch.ones(4, 12)}
    tensors["base_model.model.layer.lora_B.weight"] = torch.ones(20, 4)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    said = {"peft_type": "LORA", "r": 4, "target_modules": ["layer"], "kasa_config": {"beta": 1e-4}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(said))
    problems = as_json(inspect(str(tmp_path)))["problems"]
    assert [problem["code"] for problem in problems] == ["incomplete"]
    assert "layer.lora_A.weight has no lora_diag next to it" in problems[0]["message"]


def test_kasa_on_a_base_with_numbers_that_are_not_finite_is_refused(tmp_path):
    layer, _ = make("linear", torch.float32)
    weight = layer.weight.detach().clone()
    weight[3, 4] = torch.inf
    save_file({"layer.weight": weight}, tmp_path / "base.safetensors")
    trained(peft.LoraConfig(r=4, target_modules=["layer"], kasa_config=KasaConfig())).save_pretrained(tmp_path / "a")
    plan = plan_merge(str(tmp_path / "base.safetensors"), [(str(tmp_path / "a"), 1.0)], MergeOptions())
    with pytest.raises(LoraInspectError, match="repair the file that holds non-finite numbers"):
        merge(plan, str(tmp_path / "merged.safetensors"))


def test_adamss_saves_no_rows():
    model = trained(peft.AdamssConfig(target_modules=["layer"], **ADAMSS))
    layer, saved = model.base_model.model.layer, peft.get_peft_model_state_dict(model)
    assert sorted(layer.scatter_index["default"].tolist()) == list(range(20))
    assert layer.scatter_index["default"].tolist() != list(range(20))
    assert all(tensor.dtype == torch.float32 and "index" not in key for key, tensor in saved.items())
