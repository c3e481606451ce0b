"""What AdaLoRA's config has to say, and modules that training left without a rank."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_inspect.algorithms import by_name
from lora_inspect.algorithms.record import Surroundings
from lora_inspect.ops.merge import MergeOptions, merge, plan_merge

CONFIG = {"peft_type": "ADALORA", "lora_alpha": 32, "init_r": 12}


def settings(config, rank=4, **numbers):
    around = Surroundings("layer", (), config, {}, None, False, {"down": (rank, 6)}, numbers=numbers)
    return by_name("adalora").settings(around)


def test_the_divisor_is_the_rank_that_it_began_with():
    assert settings(CONFIG) == {"factor": 32 / (12 + 1e-5)}
    assert (
        settings({**CONFIG, "lora_alpha": 0}) == settings({**CONFIG, "lora_alpha": -1}) == {"factor": 4 / (12 + 1e-5)}
    )
    assert settings(CONFIG, ranknum=12.0) == settings(CONFIG)


@pytest.mark.parametrize(
    "config",
    [
        {},
        *({**CONFIG, "init_r": wrong} for wrong in (None, 0, -3, 2.5, True, "12", [12], 10**400)),
        *({**CONFIG, "lora_alpha": wrong} for wrong in (None, True, "32", float("nan"), float("inf"), [32], 10**400)),
    ],
)
def test_a_config_that_does_not_say_it_leaves_the_scale_open(config):
    assert "does not say the lora_alpha and init_r" in settings(config)


def test_without_a_config_the_scale_is_open():
    assert "but this module has none" in settings(None)


def test_another_ranknum_is_a_contradiction():
    assert "its ranknum is not the init_r of 12" in settings(CONFIG, ranknum=8.0)
    assert "its ranknum is not the init_r of 12" in settings(CONFIG, ranknum=None)


def factors(name, rank, out=5, inputs=6):
    path = f"base_model.model.{name}"
    return {
        f"{path}.lora_A": torch.ones(rank, inputs),
        f"{path}.lora_B": torch.ones(out, rank),
        f"{path}.lora_E": torch.ones(rank, 1),
    }


@pytest.fixture
def adapter(tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(CONFIG))
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({**factors("a", 3), **factors("b", 0)}, weights)
    return tmp_path / "adapter"


def test_a_module_without_a_rank_changes_nothing(adapter, tmp_path, run):
    save_file({"a.weight": torch.zeros(5, 6), "b.weight": torch.ones(5, 6)}, tmp_path / "base.safetensors")
    assert run("info", adapter, "--json").json["problems"] == []
    merge(
        plan_merge(str(tmp_path / "base.safetensors"), [(str(adapter), 1.0)], MergeOptions()),
        str(tmp_path / "m.safetensors"),
    )
    found = load_file(tmp_path / "m.safetensors")
    torch.testing.assert_close(found["a.weight"], torch.full((5, 6), 3 * 32 / 12.00001))
    assert torch.equal(found["b.weight"], torch.ones(5, 6))


def test_its_standard_form_keeps_modules_without_a_rank(adapter, tmp_path, run):
    assert run("convert", adapter, "-o", tmp_path / "standard").status == 0
    before = load_file(adapter / "adapter_model.safetensors")
    after = load_file(tmp_path / "standard" / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())


@pytest.mark.parametrize(
    "shapes",
    [
        {"down": (4, 6), "values": (4,), "up": (5, 4)},
        {"down": (4, 6), "values": (3, 1), "up": (5, 4)},
        {"down": (4, 6), "values": (1, 4), "up": (5, 4)},
        {"down": (4, 6), "values": (4, 1), "up": (5, 3)},
        {"down": (4, 6, 1), "values": (4, 1), "up": (5, 4)},
        {"down": (), "values": (), "up": ()},
        {"down": (4, 0), "values": (4, 1), "up": (5, 4)},
        {"down": (4, 6), "values": (4, 1), "up": (0, 4)},
    ],
)
def test_shapes_that_make_no_product_are_told(shapes):
    assert by_name("adalora").formula.check(shapes)
