"""The gains of LyCORIS's (IA)3 are called `.weight`: whose they are, and when they make an adapter of a file."""

import pytest
import torch
from safetensors.torch import load_file, save_file

NAME = "lycoris_layer"


def gains(name=NAME, on_input=0, shape=(4,)):
    return {f"{name}.weight": torch.ones(shape), f"{name}.on_input": torch.tensor(on_input)}


@pytest.fixture
def info(tmp_path, run):
    def of(tensors):
        save_file(tensors, tmp_path / "file.safetensors")
        return run("info", tmp_path / "file.safetensors", "--json", "--modules").json

    return of


@pytest.mark.parametrize(("on_input", "shape"), [(0, [4, None]), (1, [None, 4])])
def test_the_number_says_what_is_multiplied(on_input, shape, info):
    record = info(gains(on_input=on_input))
    assert (record["kind"], record["algorithms"], record["unclaimed"]) == ("adapter", {"lycoris_ia3": 1}, [])
    assert record["parameters"] == 5
    assert [module["shape"] for module in record["module_list"]] == [shape]


def test_weights_without_the_number_belong_to_nobody(info):
    record = info({**gains(), "lycoris_other.weight": torch.ones(4)})
    assert (record["algorithms"], record["unclaimed"]) == ({"lycoris_ia3": 1}, ["lycoris_other.weight"])


@pytest.mark.parametrize("shape", [(4,), (4, 4)], ids=["as gains", "as a weight"])
def test_a_base_with_such_a_name_stays_a_base(shape, info):
    weights = {f"blocks.{number}.weight": torch.ones(4, 4) for number in range(5)}
    record = info({**weights, **gains("blocks.0", shape=shape)})
    assert (record["kind"], record["modules"], record["problems"]) == ("base", 0, [])


def test_a_factor_of_another_algorithm_is_not_taken_twice(info):
    lora = {f"{NAME}.lora_down.weight": torch.ones(1, 3), f"{NAME}.lora_up.weight": torch.ones(2, 1)}
    record = info({**lora, f"{NAME}.lora_up.on_input": torch.tensor(1)})
    assert (record["algorithms"], record["parameters"]) == ({"lora": 1}, 5)
    assert record["unclaimed"] == [f"{NAME}.lora_up.on_input"]


def test_a_number_alone_belongs_to_nobody(info):
    record = info({f"{NAME}.on_input": torch.tensor(1), **gains("lycoris_other")})
    assert (record["algorithms"], record["unclaimed"]) == ({"lycoris_ia3": 1}, [f"{NAME}.on_input"])


@pytest.mark.parametrize("says", [2, -1, float("nan"), 0.5])
def test_any_other_number_is_refused(says, info):
    record = info(gains(on_input=says))
    (problem,) = record["problems"]
    assert (problem["code"], problem["severity"]) == ("formula-unknown", "error")
    assert "on_input is neither 0 nor 1" in problem["message"]


def test_a_number_as_a_trainer_casts_it(info):
    tensors = gains(on_input=1)
    record = info({key: tensor.bfloat16() for key, tensor in tensors.items()})
    assert (record["problems"], record["module_list"][0]["shape"]) == ([], [None, 4])


def test_beside_loras_in_one_file(tmp_path, run):
    lora = {"lycoris_other.lora_down.weight": torch.ones(1, 3), "lycoris_other.lora_up.weight": torch.ones(2, 1)}
    save_file({**gains(on_input=1), **lora}, tmp_path / "adapter.safetensors")
    save_file({"layer.weight": torch.ones(2, 4), "other.weight": torch.ones(2, 3)}, tmp_path / "base.safetensors")
    command = ("merge", tmp_path / "base.safetensors", tmp_path / "adapter.safetensors", "--json")
    assert run(*command, "-o", tmp_path / "merged.safetensors").json["modules_merged"] == 2
    found = load_file(tmp_path / "merged.safetensors")
    assert {key: tensor.unique().tolist() for key, tensor in found.items()} == {
        "layer.weight": [2.0], "other.weight": [2.0],
    }  # fmt: skip
