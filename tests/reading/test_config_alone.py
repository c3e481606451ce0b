"""A folder with a PEFT config and no weights: what is said of it, and that nothing is made of it."""

import json

import pytest

from lora_inspect.files.discovery import is_checkpoint_folder

CONFIG = {
    "peft_type": "LORA",
    "r": 16,
    "lora_alpha": 32.0,
    "use_rslora": True,
    "use_dora": False,
    "target_modules": ["q_proj", "v_proj"],
    "modules_to_save": None,
}


@pytest.fixture
def folder(tmp_path):
    """Writes a folder with this config."""

    def written(config=CONFIG, name="adapter"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(config))
        return tmp_path / name

    return written


def test_info_says_the_method_and_its_settings(folder, run):
    record = json.loads(run("info", folder(), "--json").stdout)
    (method,) = (item for item in record["evidence"] if item["about"] == "method")
    assert method["says"] == "LoRA (LORA), r 16, lora_alpha 32, use_rslora yes, target_modules q_proj, v_proj"
    assert record["rslora"] == {"value": True, "source": "adapter_config", "hint": None}
    assert (record["kind"], record["tensors"], record["bytes"], record["modules"]) == ("adapter", 0, 0, 0)
    (problem,) = record["problems"]
    assert (problem["code"], problem["severity"]) == ("weights-missing", "error")
    assert "of LoRA (LORA) without the weights; fetch the adapter_model.safetensors" in problem["message"]


def test_nothing_is_made_of_it(folder, run, write_safetensors, tmp_path):
    base = write_safetensors({"layer.weight": ("F32", (2, 2), 1)}, None, "base.safetensors")
    adapter = folder()
    for words in (("merge", base, adapter), ("convert", adapter), ("merge", adapter, adapter)):
        refusal = run(*words, "-o", tmp_path / "output").refusal
        assert "without the weights" in refusal or "is an adapter itself" in refusal
        assert not (tmp_path / "output").exists()


def test_of_two_of_them_each_is_told(folder, run, write_safetensors, tmp_path):
    base = write_safetensors({"layer.weight": ("F32", (2, 2), 1)}, None, "base.safetensors")
    refusal = run("merge", base, folder(), folder(name="other"), "-o", tmp_path / "output").refusal
    assert "without the weights" in refusal


@pytest.mark.parametrize("config", [{}, {"lora_layers": 4, "lora_parameters": {"rank": 8}}, {"peft_type": None}])
def test_a_config_of_no_known_method(config, folder, run):
    record = json.loads(run("info", folder(config), "--json").stdout)
    assert [problem["code"] for problem in record["problems"]][:1] == ["weights-missing"]


@pytest.mark.parametrize(
    "odd",
    [
        {"r": [1], "lora_alpha": {}, "target_modules": 3},
        {"r": 10**40, "lora_alpha": float("inf"), "target_modules": ["a" * 10**4] * 1000},
        {"peft_type": ["LORA"], "r": "\x1b[31m", "target_modules": "a|" * 10**4},
        {"peft_type": "x" * 10**5, "r": True},
    ],
)
def test_odd_values_are_no_trouble(odd, folder, run):
    ended = run("info", folder({**CONFIG, **odd}))
    assert ended.status == 0
    assert len(ended.stdout) < 4000
    assert "\x1b" not in ended.stdout


def test_in_a_folder_of_adapters_it_has_its_line(folder, run, write_safetensors, tmp_path):
    folder()
    folder({"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 20}, "other")
    write_safetensors({"a.weight": ("F32", (2, 2), 1)}, None, "base.safetensors")
    records = json.loads(run("info", tmp_path, "--json").stdout)
    assert {record["kind"] for record in records} == {"adapter", "base"}
    assert len(records) == 3


def test_a_config_beside_a_pickle_is_not_alone(folder, run):
    path = folder()
    (path / "adapter_model.bin").write_bytes(b"PK\x03\x04")
    assert is_checkpoint_folder(str(folder(name="alone")))
    assert "adapter_model.bin" in run("info", path).refusal
