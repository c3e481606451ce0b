"""Sums under the names of programs that keep scale and rank elsewhere: mlx-lm, llama.cpp, SGLang, and PEFT's biases."""

import json
from contextlib import suppress

import numpy
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file

import lora_inspect

MODELS = ("bert", "gemma3", "gptneox", "granite", "llama", "phi3", "qwen2moe", "qwen3", "smollm3")


def deltas(path):
    """The changes of the modules that can be had of the file alone, by key."""
    found = {}
    for module in lora_inspect.open_adapter(path).modules:
        with suppress(lora_inspect.RefusedError):
            found[module.key] = module.delta().double().numpy()
    return found


@pytest.mark.parametrize("model", MODELS)
def test_a_sum_of_files_of_llama_cpp_is_one(model, fixtures, tmp_path):
    adapter = fixtures / "gguf" / model / "adapter.gguf"
    lora_inspect.combine([(adapter, 0.75), (adapter, -0.25)], tmp_path / "sum.gguf", dtype="float32")
    before, found = deltas(adapter), deltas(tmp_path / "sum.gguf")
    assert before.keys() == found.keys()
    assert before
    for key, delta in before.items():
        numpy.testing.assert_allclose(found[key], 0.5 * delta, atol=1e-6 * numpy.abs(delta).max())


@pytest.mark.parametrize("model", MODELS)
def test_adapters_of_peft_become_one_file_of_llama_cpp(model, fixtures, tmp_path):
    adapter = fixtures / "gguf" / model
    lora_inspect.combine(
        [(adapter, 0.75), (adapter, -0.25)], tmp_path / "sum.gguf", to="gguf", model_config=adapter / "config.json"
    )
    before, found = deltas(adapter / "adapter.gguf"), deltas(tmp_path / "sum.gguf")
    assert before.keys() == found.keys()
    assert before
    for key, delta in before.items():
        numpy.testing.assert_allclose(found[key], 0.5 * delta, atol=1e-3 * numpy.abs(delta).max())


def test_llama_cpp_needs_the_name_of_the_model(fixtures, tmp_path):
    with pytest.raises(lora_inspect.RefusedError, match="model_config"):
        lora_inspect.combine([fixtures / "gguf/llama"] * 2, tmp_path / "sum.gguf", to="gguf")


@pytest.mark.parametrize(("adapter", "base"), [("lora", "llama"), ("square-lora", "llama-square")])
def test_a_sum_of_folders_of_mlx_is_merged_as_both_are(adapter, base, fixtures, tmp_path):
    adapter, base = fixtures / "mlx" / adapter, fixtures / "mlx" / f"{base}.safetensors"
    lora_inspect.merge(base, [(adapter, 0.45)], tmp_path / "one.safetensors")
    result = lora_inspect.combine([(adapter, 0.7), (adapter, -0.25)], tmp_path / "sum")
    lora_inspect.merge(base, [tmp_path / "sum"], tmp_path / "two.safetensors")
    one, two, before = (load_file(path) for path in (tmp_path / "one.safetensors", tmp_path / "two.safetensors", base))
    assert any(numpy.abs(one[key] - before[key]).max() > 0.1 for key in one)
    for key in one:
        numpy.testing.assert_allclose(one[key], two[key], atol=1e-6)
    config = json.loads((tmp_path / "sum/adapter_config.json").read_text())
    assert config["lora_parameters"]["scale"] == 1.0
    assert {config["lora_parameters"]["rank"]} == result.ranks.keys()


@pytest.mark.parametrize("adapter", ["lora", "square-lora"])
def test_sums_of_mlx_become_peft_and_mlx_again(adapter, fixtures, tmp_path):
    adapter = fixtures / "mlx" / adapter
    lora_inspect.combine([(adapter, 0.7), (adapter, -0.2)], tmp_path / "peft", to="peft")
    lora_inspect.combine([(tmp_path / "peft", 0.75), (tmp_path / "peft", 1.25)], tmp_path / "mlx", to="mlx")
    before, halves, found = deltas(adapter), deltas(tmp_path / "peft"), deltas(tmp_path / "mlx")
    assert "model.embed_tokens" in before
    assert before.keys() == found.keys()
    for key, delta in before.items():
        numpy.testing.assert_allclose(halves[f"base_model.model.{key}"], 0.5 * delta, atol=1e-6)
        numpy.testing.assert_allclose(found[key], delta, atol=1e-6)


def test_ranks_that_differ_are_filled_with_zeros_for_mlx(fixtures, tmp_path):
    adapter = fixtures / "minilm-peft-lora-rankpattern"
    with suppress(lora_inspect.RefusedError):  # mlx-lm has no model of BERT
        lora_inspect.combine([adapter] * 2, tmp_path / "sum", to="mlx")
    lora_inspect.combine([adapter] * 2, tmp_path / "uniform", to="sglang")
    tensors = load_file(tmp_path / "uniform/adapter_model.safetensors")
    config = json.loads((tmp_path / "uniform/adapter_config.json").read_text())
    assert {tensor.shape[0] for key, tensor in tensors.items() if "lora_A" in key} == {config["r"]}
    assert config["rank_pattern"] == {} == config["alpha_pattern"]
    assert config["lora_alpha"] == config["r"]
    before, found = deltas(adapter), deltas(tmp_path / "uniform")
    assert before.keys() == found.keys()
    for key, delta in before.items():
        numpy.testing.assert_allclose(found[key], 2 * delta, atol=2e-6 * numpy.abs(delta).max())


def test_biases_on_the_up_layer_of_peft_are_added(fixtures, tmp_path):
    adapter = fixtures / "minilm-peft-lora-lorabias" / "adapter_model.safetensors"
    lora_inspect.combine([(adapter, 0.7), (adapter, -0.2)], tmp_path / "sum")
    config = json.loads((tmp_path / "sum/adapter_config.json").read_text())
    scale = json.loads((adapter.parent / "adapter_config.json").read_text())
    before, found = load_file(adapter), load_file(tmp_path / "sum/adapter_model.safetensors")
    assert config["lora_bias"] is True
    biases = [key for key in before if key.endswith("lora_B.bias")]
    assert biases
    for key in biases:
        meant = 0.5 * scale["lora_alpha"] / scale["r"] * before[key].astype(float)
        numpy.testing.assert_allclose(found[key], meant, rtol=1e-6)


def attention_of_sdxl(leaves, rank):
    numbers = torch.Generator().manual_seed(rank)
    tensors = {}
    for block in (0, 1):
        for leaf, (rows, columns) in leaves.items():
            name = f"lora_unet_input_blocks_4_1_transformer_blocks_{block}_{leaf}"
            tensors[f"{name}.lora_down.weight"] = torch.randn(rank, columns, generator=numbers)
            tensors[f"{name}.lora_up.weight"] = torch.randn(rows, rank, generator=numbers)
            tensors[f"{name}.alpha"] = torch.tensor(float(rank))
    return tensors


def test_a_program_that_refuses_ranks_that_differ_is_named(tmp_path):
    attention = {"attn1_to_q": (640, 640), "attn1_to_k": (640, 640), "attn2_to_k": (640, 2048)}
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    save_file(attention_of_sdxl(attention, 4), paths[0])
    save_file(attention_of_sdxl({**attention, "ff_net_0_proj": (5120, 640)}, 2), paths[1])
    result = lora_inspect.combine(paths, tmp_path / "sum.safetensors")
    assert result.ranks == {2: 2, 6: 6}
    assert any("in OneTrainer the inputs are right, but the output may not be" in note for note in result.notes)
    alike = lora_inspect.combine(paths, tmp_path / "trimmed.safetensors", rank=2)
    assert not any("OneTrainer" in note for note in alike.notes)
    other = lora_inspect.combine(paths, tmp_path / "other.safetensors", to="diffusers")
    assert not any("in diffusers" in note for note in other.notes)


def sum_of_blocks(adapter, program, folder):
    """The tensors and the config of twice an adapter without its embeddings and head, whose changes are checked."""
    lora_inspect.combine([adapter] * 2, folder, to=program, dtype="float32", include=["*.layers.*"])
    before, after = deltas(adapter), deltas(folder)
    assert after
    for key, delta in after.items():
        numpy.testing.assert_allclose(delta, 2 * before[key], atol=2e-6 * numpy.abs(delta).max())
    return load_file(folder / "adapter_model.safetensors"), json.loads((folder / "adapter_config.json").read_text())


def test_sums_for_tgi_have_a_rank_that_it_takes(fixtures, tmp_path):
    # TGI raises at other ranks than 8, 16, 32, 48 and so on.
    tensors, config = sum_of_blocks(fixtures / "gguf" / "llama", "tgi", tmp_path / "sum")
    assert {tensor.shape[0] for key, tensor in tensors.items() if "lora_A" in key} == {8}
    assert config["r"] == config["lora_alpha"] == 8


def test_sums_for_lmdeploy_name_layers_by_the_ends_of_their_paths(fixtures, tmp_path):
    tensors, config = sum_of_blocks(fixtures / "gguf" / "llama", "lmdeploy", tmp_path / "sum")
    ends = {key.removesuffix(".lora_A.weight").rpartition(".")[2] for key in tensors if key.endswith(".lora_A.weight")}
    assert set(config["target_modules"]) == ends
