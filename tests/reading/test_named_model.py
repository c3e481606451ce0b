"""The model that an adapter's config names: a note where the base is another one, and the config.json of its folder."""

import json
import shutil
import struct

import pytest
from adapters import base

from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.reading.base.named_model import named_folder, other_model_note

ID = "meta-llama/Llama-3.1-8B"
CACHE = "hub/models--{}--{}/snapshots/0123abc"


@pytest.fixture
def folder_of(write_safetensors, tmp_path):
    """Write a base into a folder, with what its config.json says of its name."""

    def write(folder, own=None):
        write_safetensors(base(), name=f"{folder}/model.safetensors")
        config = {"model_type": "llama", **({} if own is None else {"_name_or_path": own})}
        (tmp_path / folder / "config.json").write_text(json.dumps(config))
        return open_checkpoint(str(tmp_path / folder)), config

    return write


def note(named, stored):
    checkpoint, config = stored
    return other_model_note("style", {"base_model_name_or_path": named}, checkpoint, config)


@pytest.mark.parametrize(
    ("named", "own"),
    [
        (ID, "meta-llama/Llama-3.1-8B-Instruct"),
        (ID, "meta-llama/Llama-3.2-8B"),
        (ID, "Qwen/Qwen3-8B"),
        ("unsloth/Llama-3.2-1B-bnb-4bit", ID),
        ("/cache/hub/models--Qwen--Qwen3-8B/snapshots/abc", ID),
    ],
)
def test_two_models_have_a_note(named, own, folder_of):
    says = note(named, folder_of("base", own))
    assert says is not None
    assert f"is {own}, by its config.json" in says
    assert "on another model its change is not the trained one" in says


@pytest.mark.parametrize(
    "named",
    [
        *(ID, "META-LLAMA/llama-3.1-8b", "unsloth/Llama-3.1-8B", "unsloth/Meta-Llama-3.1-8B-bnb-4bit"),
        *("someone/Llama-3.1-8B-GPTQ", "someone/llama_3.1_8B-hf"),
        *("/home/me/models/other", "../other", "C:\\models\\other", "models/other", "other", "", None, 7, ["a/b"]),
        "/cache/hub/models--someone--Llama-3.1-8B/snapshots/abc",
    ],
)
def test_another_owner_spelling_storage_or_a_path_has_none(named, folder_of):
    assert note(named, folder_of("base", ID)) is None


def test_the_place_in_the_cache_counts_before_the_config(folder_of):
    stored = folder_of(CACHE.format("meta-llama", "Llama-3.1-8B-Instruct"), own="someone/of-which-it-was-made")
    assert note("meta-llama/Llama-3.1-8B-Instruct", stored) is None
    assert "is Llama-3.1-8B-Instruct, by its path" in note(ID, stored)


def test_a_base_without_a_name_has_none(folder_of):
    assert note(ID, folder_of("base")) is None
    assert note(ID, folder_of("path", own="/home/me/other")) is None


def test_the_name_of_the_folder_counts_for_the_adapter(folder_of):
    assert note(ID, folder_of("Llama-3.1-8B", own="someone/of-which-it-was-made")) is None


def test_merge_and_verify_print_it_and_go_on(write_safetensors, tmp_path, run):
    weight = {"encoder.weight": ("F32", (6, 4), 1.0)}
    write_safetensors(weight, name="base/model.safetensors")
    (tmp_path / "base" / "config.json").write_text(json.dumps({"_name_or_path": "Qwen/Qwen3-8B"}))
    tensors = {
        "base_model.model.encoder.lora_A.weight": ("F32", (2, 4), 1.0),
        "base_model.model.encoder.lora_B.weight": ("F32", (6, 2), 1.0),
    }
    write_safetensors(tensors, name="style/adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["encoder"]}
    (tmp_path / "style" / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": ID}))
    says = f"its config names {ID} as its base, but {tmp_path / 'base'} is Qwen/Qwen3-8B, by its config.json"
    merged = run("merge", tmp_path / "base", tmp_path / "style", "-o", tmp_path / "out")
    assert merged.status == 0
    assert merged.stderr.count(says) == 1
    verified = run("verify", tmp_path / "out", tmp_path / "base", tmp_path / "style")
    assert verified.status == 0
    assert verified.stderr.count(says) == 1


def test_a_hostile_name_takes_no_time(folder_of):
    for name in ("/models--a--" * 100_000, "models--" * 100_000, "a-" * 100_000 + "/b", "hf://" + "a/@" * 100_000):
        assert note(name, folder_of("base", ID)) is None or "/b" in name


def test_a_folder_counts_where_it_has_a_config(tmp_path):
    (tmp_path / "model").mkdir()
    named = {"base_model_name_or_path": str(tmp_path / "model")}
    assert named_folder(named) is None
    (tmp_path / "model" / "config.json").write_text("{}")
    assert named_folder(named) == str(tmp_path / "model")
    for other in ({}, None, {"base_model_name_or_path": 7}, {"base_model_name_or_path": ""}):
        assert named_folder(other) is None


@pytest.mark.parametrize("name", ["//host/share", "\\\\host\\share"])
def test_a_name_that_would_ask_the_network_is_none(name, monkeypatch):
    monkeypatch.setattr("os.path.isfile", lambda path: pytest.fail(f"{path} was looked for"))
    assert named_folder({"base_model_name_or_path": name}) is None


LAYER = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture
def llama(write_safetensors, tmp_path):
    """An adapter of PEFT whose config names a folder with the config.json of a Llama."""
    (tmp_path / "llama").mkdir()
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    (tmp_path / "llama" / "config.json").write_text(json.dumps({"model_type": "llama", **heads}))
    tensors = {
        f"{LAYER}.lora_A.weight": ("F32", (2, 8), struct.pack("<16f", *range(16))),
        f"{LAYER}.lora_B.weight": ("F32", (8, 2), struct.pack("<16f", *(n * n for n in range(16)))),
    }
    write_safetensors(tensors, name="style/adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]}
    named = {**config, "base_model_name_or_path": str(tmp_path / "llama")}
    (tmp_path / "style" / "adapter_config.json").write_text(json.dumps(named))
    return tmp_path / "style"


@pytest.mark.parametrize("target", ["llama-cpp", "gguf"])
def test_gguf_takes_the_config_of_the_named_folder(target, llama, tmp_path, run):
    shown = run("convert", llama, "--to", target, "-o", tmp_path / "own.gguf")
    assert shown.status == 0, shown.stderr
    assert f"its config names {tmp_path / 'llama'} as its base, so convert reads config.json there" in shown.stderr
    given = run("convert", llama, "--to", target, "--model-config", tmp_path / "llama", "-o", tmp_path / "given.gguf")
    assert "reads config.json there" not in given.stderr
    assert (tmp_path / "own.gguf").read_bytes() == (tmp_path / "given.gguf").read_bytes()


def test_gguf_needs_the_option_where_the_folder_is_gone(llama, tmp_path, run):
    shutil.rmtree(tmp_path / "llama")
    refusal = run("convert", llama, "--to", "llama-cpp", "-o", tmp_path / "own.gguf").refusal
    assert refusal.endswith("give the model's config.json with --model-config.")


def test_the_config_of_the_folder_is_no_output(llama, tmp_path, run):
    config = tmp_path / "llama" / "config.json"
    before = config.read_bytes()
    shown = run("convert", llama, "--to", "llama-cpp", "-o", config, "--force")
    assert shown.status in (1, 2)
    assert config.read_bytes() == before


def test_other_names_need_no_config(llama, tmp_path, run):
    assert "config.json there" not in run("convert", llama, "--to", "peft", "-o", tmp_path / "out").stderr
