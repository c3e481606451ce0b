"""Adapters to GGUF and back: llama.cpp's own converter makes the same tensors of the same PEFT adapter."""

import json
import shutil

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from gguf_files import pair, write_adapter
from safetensors.torch import load_file, save_file

from lora_inspect.files.gguf.gguf_reader import read_gguf

pytestmark = pytest.mark.numeric

MODELS = ("llama", "granite", "smollm3", "qwen3", "qwen2moe", "gemma3", "phi3", "gptneox", "bert")
ARRANGED = ("llama", "granite", "smollm3", "gptneox")


def arrays_of(file):
    return {tensor.name: tensor.data for tensor in GGUFReader(file).tensors}


def value_of(file, key):
    return GGUFReader(file).fields[key].contents()


@pytest.fixture
def to_gguf(run, tmp_path):
    """`to_gguf(folder)`: the GGUF file of an adapter, with the config beside it."""

    def convert(folder, *options):
        output = tmp_path / "converted.gguf"
        arguments = ("--to", "gguf", "--model-config", folder, "-o", output, "--force", *options)
        assert run("convert", folder, *arguments, "--json").json["output"] == str(output)
        return output

    return convert


@pytest.fixture
def changed(fixtures, tmp_path):
    """A copy of a fixture whose config says something else, and whose tensors are changed."""

    def copy(model, change=lambda tensors: None, **config):
        folder = tmp_path / "changed"
        shutil.copytree(fixtures / "gguf" / model, folder)
        said = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**said, **config}))
        tensors = load_file(folder / "adapter_model.safetensors")
        change(tensors)
        save_file(tensors, folder / "adapter_model.safetensors")
        return folder

    return copy


@pytest.mark.parametrize("model", MODELS)
def test_the_tensors_are_those_of_llama_cpps_converter(fixtures, to_gguf, model):
    folder = fixtures / "gguf" / model
    file = to_gguf(folder)
    expected, found = arrays_of(folder / "adapter.gguf"), arrays_of(file)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert np.array_equal(found[name], values), name
    for key in ("general.architecture", "general.type", "adapter.type", "adapter.lora.alpha"):
        assert value_of(file, key) == value_of(folder / "adapter.gguf", key)


@pytest.mark.parametrize("model", MODELS)
def test_and_back_they_are_those_of_peft(run, fixtures, tmp_path, model):
    folder = fixtures / "gguf" / model
    ended = run("convert", folder / "adapter.gguf", "--model-config", folder / "config.json", "-o", tmp_path / "back")
    assert ended.status == 0, ended.stderr
    expected = load_file(folder / "adapter_model.safetensors")
    found = load_file(tmp_path / "back" / "adapter_model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    config = json.loads((tmp_path / "back" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (2, 3, False)
    assert (config["rank_pattern"], config["alpha_pattern"]) == ({}, {})


def products(file, alpha):
    """What llama.cpp adds to each weight, by its formula; of the embedding, in its own orientation."""
    arrays = {name: values.astype(np.float64) for name, values in arrays_of(file).items()}
    found = {}
    for name in {name.rpartition(".")[0] for name in arrays}:
        a, b = arrays[f"{name}.lora_a"], arrays[f"{name}.lora_b"]
        a = a.T if name == "token_embd.weight" else a
        found[name] = alpha / b.shape[1] * b @ a
    return found


@pytest.mark.parametrize("rslora", [False, True])
def test_one_alpha_gives_every_module_its_own_scale(changed, to_gguf, rslora):
    def widen(tensors):
        for key in [key for key in tensors if "down_proj.lora" in key]:
            tensors[key] = torch.cat([tensors[key]] * 2, 0 if "lora_A" in key else 1)

    patterns = {"rank_pattern": {"down_proj": 4}, "alpha_pattern": {"v_proj": 7.3, "embed_tokens": 0.2, "o_proj": -1.0}}
    folder = changed("llama", widen, use_rslora=rslora, **patterns)
    file = to_gguf(folder)
    alpha = float(value_of(file, "adapter.lora.alpha"))
    found = products(file, alpha)
    tensors = load_file(folder / "adapter_model.safetensors")
    names = {"v_proj": "attn_v", "o_proj": "attn_output", "down_proj": "ffn_down", "up_proj": "ffn_up"}
    for leaf, name in names.items():
        parent = "self_attn" if leaf in ("v_proj", "o_proj") else "mlp"
        path = f"base_model.model.model.layers.0.{parent}.{leaf}"
        a, b = (tensors[f"{path}.lora_{which}.weight"].double().numpy() for which in "AB")
        own = patterns["alpha_pattern"].get(leaf, 3)
        scale = own / (a.shape[0] ** 0.5 if rslora else a.shape[0])
        np.testing.assert_allclose(found[f"blk.0.{name}.weight"], scale * b @ a, rtol=1e-5, atol=1e-6)
    a, b = (tensors[f"base_model.model.model.embed_tokens.lora_embedding_{which}"].double().numpy() for which in "AB")
    scale = 0.2 / (2**0.5 if rslora else 2)
    np.testing.assert_allclose(found["token_embd.weight"], scale * b @ a, rtol=1e-5, atol=1e-6)


def test_modules_of_the_common_alpha_keep_their_bytes(fixtures, changed, to_gguf):
    found = arrays_of(to_gguf(changed("qwen3", alpha_pattern={"v_proj": 7.3})))
    expected = arrays_of(fixtures / "gguf" / "qwen3" / "adapter.gguf")
    other = {name for name in expected if not np.array_equal(found[name], expected[name])}
    assert other == {"blk.0.attn_v.weight.lora_b"}


@pytest.mark.parametrize("alphas", [{"lora_alpha": 0}, {"lora_alpha": 3, "alpha_pattern": {"v_proj": 0}}])
def test_a_scale_of_0_is_no_alpha_of_0(changed, to_gguf, alphas):
    file = to_gguf(changed("qwen3", **alphas))
    alpha = float(value_of(file, "adapter.lora.alpha"))
    assert alpha
    found = products(file, alpha)
    assert not found["blk.0.attn_v.weight"].any()
    assert found["blk.0.attn_q.weight"].any() == bool(alphas["lora_alpha"])


def test_half_precision_stays(changed, to_gguf):
    def halve(tensors):
        tensors.update({key: value.half() if "q_proj" in key else value.bfloat16() for key, value in tensors.items()})

    folder = changed("qwen3", halve)
    found = read_gguf(str(to_gguf(folder))).tensors
    assert {name: info.dtype for name, info in found.items()} == {
        name: "F16" if "attn_q" in name else "BF16" for name in found
    }


def test_a_gguf_file_stays_one_where_that_is_asked_for(run, fixtures, tmp_path):
    source, output = fixtures / "gguf" / "llama" / "adapter.gguf", tmp_path / "copy.gguf"
    assert run("convert", source, "--to", "gguf", "-o", output).status == 0
    expected, found = arrays_of(source), arrays_of(output)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    assert value_of(output, "general.architecture") == "llama"


def test_what_is_written_says_where_it_comes_from(fixtures, to_gguf):
    metadata = read_gguf(str(to_gguf(fixtures / "gguf" / "qwen3"))).metadata
    assert json.loads(metadata["lora_inspect.converted"])["file"] == "qwen3"
    assert metadata["lora_inspect.scale"] == "alpha/rank"


@pytest.mark.parametrize("model", ARRANGED)
def test_the_way_back_needs_the_number_of_heads(run, fixtures, tmp_path, model):
    source = fixtures / "gguf" / model / "adapter.gguf"
    refused = run("convert", source, "-o", tmp_path / "back").refusal
    assert "number of heads" in refused
    assert "--model-config" in refused
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("model", sorted(set(MODELS) - set(ARRANGED)))
def test_the_way_back_needs_no_config_otherwise(run, fixtures, tmp_path, model):
    assert run("convert", fixtures / "gguf" / model / "adapter.gguf", "-o", tmp_path / "back").status == 0


CONFIGS = {
    "nothing": (None, ["names none", "--model-config"]),
    "another model": ({"model_type": "t5"}, ["model_type is t5", "module names only for"]),
    "no model_type": ({"num_attention_heads": 4}, ["model_type is missing"]),
    "no heads": ({"model_type": "llama"}, ["blk.", "number of heads, and ", "config.json does not give it;"]),
    "heads that do not fit": ({"model_type": "llama", "num_attention_heads": 3}, ["do not show their rows"]),
    "no object": ([], ["not an object"]),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_without_a_config_that_says_enough_nothing_is_written(run, fixtures, tmp_path, case):
    config, words = CONFIGS[case]
    (tmp_path / "config.json").write_text(json.dumps(config))
    options = () if config is None else ("--model-config", tmp_path)
    refused = run("convert", fixtures / "gguf" / "llama", "--to", "gguf", "-o", tmp_path / "a.gguf", *options).refusal
    assert all(word.replace("blk.", "self_attn.") in refused for word in words), refused
    assert not (tmp_path / "a.gguf").exists()


def test_a_config_that_is_not_there_is_named(run, fixtures, tmp_path):
    folder = fixtures / "gguf" / "llama"
    for missing in (tmp_path, tmp_path / "config.json"):
        options = ("--to", "gguf", "--model-config", missing, "-o", tmp_path / "a.gguf")
        assert "the config.json of the model does not exist" in run("convert", folder, *options).failure


def test_the_config_is_an_input_that_no_output_replaces(run, fixtures, tmp_path):
    folder, config = fixtures / "gguf" / "llama", tmp_path / "config.gguf"
    config.write_bytes((folder / "config.json").read_bytes())
    ended = run("convert", folder, "--to", "gguf", "--model-config", config, "-o", config, "--force")
    assert ended.refusal == f"{config}: it is an input of the command; choose another output."
    assert config.read_bytes() == (folder / "config.json").read_bytes()


def test_the_language_part_of_a_multimodal_model_counts(fixtures, changed, to_gguf):
    folder = changed("llama")
    config = {"model_type": "llava", "text_config": json.loads((folder / "config.json").read_text())}
    (folder / "config.json").write_text(json.dumps(config))
    expected, found = arrays_of(fixtures / "gguf" / "llama" / "adapter.gguf"), arrays_of(to_gguf(folder))
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


def magnitudes(tensors):
    for key in [key for key in tensors if "lora_B" in key]:
        tensors[key.replace("lora_B.weight", "lora_magnitude_vector")] = torch.ones(tensors[key].shape[0])


def bias(tensors):
    tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias"] = torch.ones(16)


def head(tensors):
    tensors["base_model.model.lm_head.weight"] = torch.ones(12, 16)


def foreign(tensors):
    tensors["base_model.model.model.layers.0.vision.lora_A.weight"] = torch.ones(2, 16)
    tensors["base_model.model.model.layers.0.vision.lora_B.weight"] = torch.ones(16, 2)


REFUSED = {
    "DoRA": (magnitudes, {"use_dora": True}, (), ["--drop-magnitude"]),
    "DoRA kept": (magnitudes, {"use_dora": True}, ("--keep-dora",), ["llama.cpp applies none"]),
    "a bias": (bias, {"lora_bias": True}, (), ["llama.cpp cannot load"]),
    "a head saved whole": (head, {"modules_to_save": ["lm_head"]}, (), ["llama.cpp cannot load"]),
    "a module without a name": (foreign, {}, (), ["model.layers.0.vision", "no known counterpart in gguf names"]),
    "float64": (lambda t: t.update({k: v.double() for k, v in t.items()}), {}, (), ["F64", "F32, F16 or BF16"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_gguf_form_is_refused(run, changed, tmp_path, case):
    change, config, options, words = REFUSED[case]
    folder = changed("qwen3", change, **config)
    arguments = ("--to", "gguf", "--model-config", folder, "-o", tmp_path / "a.gguf", *options)
    refused = run("convert", folder, *arguments).refusal
    assert all(word in refused for word in words), refused
    assert not (tmp_path / "a.gguf").exists()


def test_without_its_magnitude_dora_is_written(changed, to_gguf, fixtures):
    file = to_gguf(changed("qwen3", magnitudes, use_dora=True), "--drop-magnitude")
    expected, found = arrays_of(fixtures / "gguf" / "qwen3" / "adapter.gguf"), arrays_of(file)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_gpt2_is_written_as_llama_cpp_stores_its_weights(run, tmp_path):
    """Its Conv1D layers are (in, out) in transformers and (out, in) there, where A has the inputs."""
    path = "base_model.model.transformer.h.0.attn.c_attn"
    tensors = {f"{path}.lora_A.weight": torch.randn(2, 4), f"{path}.lora_B.weight": torch.randn(12, 2)}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["c_attn"], "fan_in_fan_out": True}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    arguments = ("--to", "gguf", "--model-config", tmp_path, "-o", tmp_path / "a.gguf", "--json")
    assert not any("fan_in_fan_out" in remark for remark in run("convert", tmp_path, *arguments).json["remarks"])
    found = arrays_of(tmp_path / "a.gguf")
    assert np.array_equal(found["blk.0.attn_qkv.weight.lora_a"], tensors[f"{path}.lora_A.weight"].numpy())
    assert np.array_equal(found["blk.0.attn_qkv.weight.lora_b"], tensors[f"{path}.lora_B.weight"].numpy())


def test_the_name_of_the_output_ends_as_its_format(run, fixtures, tmp_path):
    folder = fixtures / "gguf" / "qwen3"
    arguments = ("--to", "gguf", "--model-config", folder)
    refused = run("convert", folder, *arguments, "-o", tmp_path / "a.safetensors").refusal
    assert "the output is a GGUF file" in refused
    assert str(tmp_path / "a.gguf") in refused
    (tmp_path / "folder").mkdir()
    assert run("convert", folder, *arguments, "-o", tmp_path / "folder").status == 0
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["adapter_model.gguf"]


@pytest.mark.parametrize("scheme", ["kohya", "comfyui", "diffusers", "musubi"])
def test_schemes_of_diffusion_models_have_no_such_file(run, fixtures, tmp_path, scheme):
    source = fixtures / "gguf" / "qwen3" / "adapter.gguf"
    assert f"no {scheme} names" in run("convert", source, "--to", scheme, "-o", tmp_path / "a.safetensors").refusal


@pytest.mark.parametrize("model", ["qwen3moe", "mixtral"])
def test_stacked_experts_are_merged_and_not_converted(run, fixtures, tmp_path, model):
    folder = fixtures / "gguf" / model
    options = ("--model-config", folder, "-o", tmp_path / "back")
    assert "stacked, which PEFT cannot load" in run("convert", folder / "adapter.gguf", *options).refusal
    options = ("--to", "gguf", "--model-config", folder, "-o", tmp_path / "a.gguf")
    assert "has no known counterpart in gguf names" in run("convert", folder, *options).refusal


def test_names_that_are_not_known_are_refused(run, tmp_path):
    file = write_adapter(tmp_path / "a.gguf", pair("blk.0.attn_q", 8, 8, 2), architecture="mamba")
    assert "general.architecture is mamba" in run("convert", file, "-o", tmp_path / "back").refusal
    file = write_adapter(tmp_path / "b.gguf", pair("blk.0.ssm_in", 8, 8, 2), architecture="qwen3")
    assert "blk.0.ssm_in" in run("convert", file, "-o", tmp_path / "back").refusal
