"""What one set of gains changes: the weight and the bias, counted once, and which gains they are."""

import copy
import json

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_inspect.algorithms import every
from lora_inspect.algorithms.record import Surroundings
from lora_inspect.errors import LoraInspectError
from lora_inspect.ops.merge import MergeOptions, merge, plan_merge

pytestmark = pytest.mark.numeric
LLM = "model.layers.0.self_attn"


@pytest.fixture
def merged(tmp_path):
    """The base with the adapter in it, and what the merge says of itself."""

    def run(base, tensors, config=None):
        save_file(base, tmp_path / "base.safetensors")
        (tmp_path / "adapter").mkdir(exist_ok=True)
        said = {"peft_type": "IA3", "feedforward_modules": []} if config is None else config
        (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(said))
        save_file(tensors, tmp_path / "adapter" / "adapter_model.safetensors")
        plan = plan_merge(str(tmp_path / "base.safetensors"), [(str(tmp_path / "adapter"), 1.0)], MergeOptions())
        result = merge(plan, str(tmp_path / "merged.safetensors"), force=True)
        return load_file(tmp_path / "merged.safetensors"), result

    return run


def test_its_tensor_is_counted_once(tmp_path, run):
    save_file({"base_model.model.layer.ia3_l": torch.ones(8, 1)}, tmp_path / "ia3.safetensors")
    record = run("info", tmp_path / "ia3.safetensors", "--json", "--modules").json
    assert (record["algorithms"], record["modules"], record["parameters"]) == ({"ia3": 1}, 1, 8)
    assert [(module["shape"], module["algorithm"]) for module in record["module_list"]] == [([8, None], "ia3")]


def test_weight_and_bias_are_one_module(merged):
    base = {"layer.weight": torch.ones(3, 2), "layer.bias": torch.ones(3), "other.weight": torch.ones(1, 1)}
    found, result = merged(base, {"base_model.model.layer.ia3_l": torch.tensor([[2.0], [3.0], [5.0]])})
    assert (result.modules_merged, result.tensors_copied, result.unmatched) == (1, 1, ())
    assert found["layer.weight"].tolist() == [[2, 2], [3, 3], [5, 5]]
    assert found["layer.bias"].tolist() == [2, 3, 5]


def test_what_is_added_to_a_bias_comes_first(merged):
    base = {"layer.weight": torch.ones(2, 1), "layer.bias": torch.tensor([1.0, 10.0])}
    gains = {"base_model.model.layer.ia3_l": torch.tensor([[2.0], [3.0]])}
    found, _ = merged(base, {**gains, "base_model.model.layer.diff_b": torch.tensor([0.5, 0.25])})
    assert found["layer.bias"].tolist() == [3.0, 30.75]


def test_what_a_lora_adds_to_a_bias_comes_first(tmp_path):
    """Whatever the algorithms are called."""
    name = "lora_unet_layer"
    tensors = {
        f"{name}.lora_down.weight": torch.zeros(1, 1),
        f"{name}.lora_up.weight": torch.zeros(2, 1),
        f"{name}.lora_up.bias": torch.tensor([0.5, 0.25]),
        f"{name}.ia3_l": torch.tensor([[2.0], [3.0]]),
    }
    save_file(tensors, tmp_path / "adapter.safetensors")
    save_file({"layer.weight": torch.ones(2, 1), "layer.bias": torch.ones(2)}, tmp_path / "base.safetensors")
    paths = str(tmp_path / "base.safetensors"), [(str(tmp_path / "adapter.safetensors"), 1.0)]
    merge(plan_merge(*paths, MergeOptions()), str(tmp_path / "merged.safetensors"))
    assert load_file(tmp_path / "merged.safetensors")["layer.bias"].tolist() == [3.0, 3.75]


def test_a_fused_layer_has_its_gains_where_its_parts_have_them(merged):
    """Query and value have a bias, as in Whisper, and the key has none."""
    parts = {"q": 2, "k": 1, "v": 1}
    base = {f"{LLM}.{name}_proj.weight": torch.ones(rows, 2) for name, rows in parts.items()}
    base |= {f"{LLM}.{name}_proj.bias": torch.ones(parts[name]) for name in "qv"}
    gains = torch.tensor([[2.0], [3.0], [5.0], [7.0]])
    found, result = merged(base, {f"base_model.model.{LLM}.qkv_proj.ia3_l": gains})
    assert {name: found[f"{LLM}.{name}_proj.weight"][:, 0].tolist() for name in parts} == {
        "q": [2, 3], "k": [5], "v": [7],
    }  # fmt: skip
    assert {name: found[f"{LLM}.{name}_proj.bias"].tolist() for name in "qv"} == {"q": [2, 3], "v": [7]}
    assert result.unmatched == ()


@pytest.mark.parametrize("feedforward", [[], ["layer"]], ids=["outputs", "inputs"])
@pytest.mark.parametrize("size", [(6, 4), (4, 4)], ids=["wide", "square"])
def test_a_weight_that_is_stored_turned(feedforward, size, merged):
    from transformers.pytorch_utils import Conv1D

    layer = Conv1D(*size).double()
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    base = {f"layer.{name}": tensor.detach().clone() for name, tensor in layer.state_dict().items()}
    net = torch.nn.Sequential()
    net.add_module("layer", layer)
    config = peft.IA3Config(target_modules=["layer"], feedforward_modules=feedforward, fan_in_fan_out=True)
    model = peft.get_peft_model(copy.deepcopy(net), config)
    gains = model.base_model.model.layer.ia3_l["default"]
    gains.data = torch.randn(gains.shape, dtype=torch.float64)
    saved = {"base_model.model.layer.ia3_l": gains.detach().clone()}
    said = {"peft_type": "IA3", "feedforward_modules": feedforward, "fan_in_fan_out": True}
    found, _ = merged(base, saved, said)
    with torch.no_grad():
        expected = model.merge_and_unload().layer
    torch.testing.assert_close(found["layer.weight"], expected.weight.data)
    torch.testing.assert_close(found["layer.bias"], expected.bias.data)


def decided(shape, chosen):
    around = Surroundings("layer", ("gains",), {}, {}, None, False, {"gains": shape}, lambda field: chosen)
    return every()["ia3"].variant(around)


@pytest.mark.parametrize(
    ("shape", "chosen", "expected"),
    [
        ((8, 1), None, "outputs"),
        ((8, 1), False, "outputs"),
        ((1, 8), None, "inputs"),
        ((1, 8), True, "inputs"),
        ((1, 1), False, "outputs"),
        ((1, 8, 1, 1), False, "outputs"),
        ((1, 8, 1, 1), True, "inputs"),
    ],
)
def test_shape_and_config_say_which_it_is(shape, chosen, expected):
    misfit = decided(shape, chosen).formula.misfit({"gains": shape}, (5, 7, 3, 3))
    assert misfit == f"multiplies {max(shape)} {expected}"
    assert (decided(shape, chosen).bias is None) == (expected == "inputs")


@pytest.mark.parametrize(("chosen", "fits", "other"), [(False, 0, "outputs"), (True, 1, "inputs")])
def test_as_many_numbers_as_the_other_side_has_do_not_fit(chosen, fits, other):
    misfit, sizes = decided((1, 8, 1, 1), chosen).formula.misfit, [(8, 7, 3, 3), (7, 8, 3, 3)]
    assert misfit({"gains": (1, 8, 1, 1)}, sizes[fits]) is None
    assert misfit({"gains": (1, 8, 1, 1)}, sizes[1 - fits]) == f"multiplies 8 {other}"


@pytest.mark.parametrize(
    ("shape", "chosen", "says"),
    [
        ((8, 1), True, "multiplies outputs by its shape, but feedforward_modules"),
        ((1, 8), False, "multiplies inputs by its shape, but feedforward_modules"),
        ((1, 1), None, "says whether it multiplies inputs or outputs"),
        ((1, 8, 1, 1), None, "says whether it multiplies inputs or outputs"),
    ],
)
def test_what_is_open_or_contradicts_is_said(shape, chosen, says):
    assert says in decided(shape, chosen)


def test_a_bias_of_another_size_is_refused(merged):
    base = {"layer.weight": torch.ones(3, 2), "layer.bias": torch.ones(4)}
    with pytest.raises(LoraInspectError, match="multiplies a bias of 3 numbers"):
        merged(base, {"base_model.model.layer.ia3_l": torch.ones(3, 1)})
