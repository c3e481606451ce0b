"""GGUF adapters in bases of transformers: what llama.cpp converted merges as the PEFT adapter that it was made from."""

import json
import shutil

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFType, GGUFWriter
from gguf_files import pair, write_adapter
from safetensors.torch import load_file, save_file

from lora_inspect.errors import LoraInspectError
from lora_inspect.ops.merge import MergeOptions, merge, plan_merge
from lora_inspect.reading.model.settings import Settings

pytestmark = pytest.mark.numeric

MODELS = ("llama", "granite", "smollm3", "qwen3", "qwen2moe", "gemma3", "phi3", "gptneox", "bert")
NO_HEADS = (
    {},
    {"num_attention_heads": True},
    {"num_attention_heads": "4"},
    {"num_attention_heads": 0},
    {"num_attention_heads": 4, "num_key_value_heads": -1},
    {"text_config": {}, "num_attention_heads": 4},
)
EXPERTS = {
    "qwen3moe": ("mlp.experts.{}.gate_proj", "mlp.experts.{}.up_proj", "mlp.experts.{}.down_proj"),
    "mixtral": ("block_sparse_moe.experts.{}.w1", "block_sparse_moe.experts.{}.w3", "block_sparse_moe.experts.{}.w2"),
}
ARRANGED = ("llama", "granite", "smollm3", "gptneox")


def base_of(folder, tmp_path, config=None, name="base"):
    """A base with drawn numbers for all that the PEFT adapter of a folder changes, and its config beside it."""
    tensors = load_file(folder / "adapter_model.safetensors")
    generator = torch.Generator().manual_seed(3)
    base = {}
    for key, a in tensors.items():
        path = key.removeprefix("base_model.model.")
        if path.endswith(".lora_A.weight"):
            path = path.removesuffix(".lora_A.weight")
            base[f"{path}.weight"] = (tensors[key.replace("lora_A", "lora_B")].shape[0], a.shape[1])
        elif path.endswith(".lora_embedding_A"):
            path = path.removesuffix(".lora_embedding_A")
            base[f"{path}.weight"] = (a.shape[1], tensors[key.replace("embedding_A", "embedding_B")].shape[0])
    (tmp_path / name).mkdir()
    numbers = {key: torch.randn(shape, generator=generator) for key, shape in base.items()}
    save_file(numbers, tmp_path / name / "model.safetensors")
    said = (folder / "config.json").read_text() if config is None else json.dumps(config)
    (tmp_path / name / "config.json").write_text(said)
    return str(tmp_path / name)


def merged(base, adapter, tmp_path, multiplier=1.0):
    output = str(tmp_path / f"merged-{len(list(tmp_path.iterdir()))}")
    merge(plan_merge(base, [(str(adapter), Settings(multiplier=multiplier))], MergeOptions()), output)
    return load_file(f"{output}/model.safetensors")


@pytest.mark.parametrize("multiplier", [1.0, -0.5])
@pytest.mark.parametrize("model", [*MODELS, *EXPERTS])
def test_merges_as_what_it_was_converted_from(fixtures, tmp_path, model, multiplier):
    folder = fixtures / "gguf" / model
    base = base_of(folder, tmp_path)
    expected, found = (merged(base, folder / each, tmp_path, multiplier) for each in ("", "adapter.gguf"))
    before = load_file(f"{base}/model.safetensors")
    assert found.keys() == before.keys()
    for key, tensor in found.items():
        assert not torch.allclose(tensor, before[key])
        # Products of rank 2 in float32.
        torch.testing.assert_close(tensor, expected[key], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model", EXPERTS)
def test_stacked_experts_in_the_parameters_of_all(fixtures, tmp_path, model):
    """Gate and up of each expert in one parameter, as transformers has them since 5.0, by the formula of each."""
    tensors = load_file(fixtures / "gguf" / model / "adapter_model.safetensors")
    prefix = "base_model.model.model.layers.0."

    def deltas(leaf):
        names = [f"{prefix}{leaf.format(expert)}.lora" for expert in range(3)]
        pairs = [(tensors[f"{name}_A.weight"].double(), tensors[f"{name}_B.weight"].double()) for name in names]
        return torch.stack([3 / 2 * b @ a for a, b in pairs])

    gate, up, down = map(deltas, EXPERTS[model])
    expected = {"gate_up_proj": torch.cat([gate, up], 1), "down_proj": down}
    base = {f"model.layers.0.mlp.experts.{leaf}": torch.zeros(values.shape) for leaf, values in expected.items()}
    (tmp_path / "fused").mkdir()
    save_file(base, tmp_path / "fused" / "model.safetensors")
    found = merged(str(tmp_path / "fused"), fixtures / "gguf" / model / "adapter.gguf", tmp_path)
    for leaf, values in expected.items():
        torch.testing.assert_close(found[f"model.layers.0.mlp.experts.{leaf}"].double(), values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        ((3, 2, 16), (4, 8, 2), "3 experts of rank 2 and B"),
        ((3, 2, 16), (3, 8, 4), "rank 2 and B"),
        ((3, 0, 16), (3, 8, 0), "is empty"),
        ((3, 2, 16), (8, 2), "is not a matrix"),
    ],
)
def test_stacked_factors_that_do_not_fit_together_are_refused(run, tmp_path, a, b, words):
    name = "blk.0.ffn_gate_exps.weight.lora"
    tensors = {f"{name}_a": np.zeros(a, np.float32), f"{name}_b": np.zeros(b, np.float32)}
    file = write_adapter(tmp_path / "a.gguf", tensors, architecture="qwen3moe")
    said = " ".join(problem["message"] for problem in run("info", file, "--json").json["problems"])
    assert words in said


def test_another_number_of_experts_is_refused(fixtures, tmp_path):
    base = {f"model.layers.0.mlp.experts.{leaf}": torch.zeros(4, *shape) for leaf, shape in
            (("gate_up_proj", (16, 16)), ("down_proj", (16, 8)))}  # fmt: skip
    (tmp_path / "fused").mkdir()
    save_file(base, tmp_path / "fused" / "model.safetensors")
    with pytest.raises(LoraInspectError, match="3 experts"):
        merged(str(tmp_path / "fused"), fixtures / "gguf" / "qwen3moe" / "adapter.gguf", tmp_path)


def test_the_formula_written_out(fixtures, tmp_path):
    folder = fixtures / "gguf" / "llama"
    base = base_of(folder, tmp_path)
    before = load_file(f"{base}/model.safetensors")["model.layers.0.self_attn.k_proj.weight"].double()
    tensors = load_file(folder / "adapter_model.safetensors")
    a, b = (tensors[f"base_model.model.model.layers.0.self_attn.k_proj.lora_{name}.weight"].double() for name in "AB")
    found = merged(base, folder / "adapter.gguf", tmp_path)["model.layers.0.self_attn.k_proj.weight"]
    torch.testing.assert_close(found.double(), before + 3 / 2 * b @ a, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model", ARRANGED)
@pytest.mark.parametrize("config", NO_HEADS, ids=str)
def test_rows_in_another_order_need_the_number_of_heads(fixtures, tmp_path, model, config):
    folder = fixtures / "gguf" / model
    base = base_of(folder, tmp_path, config)
    says = r"by the number of heads, .*; put the model's config\.json, which holds that number, next to"
    with pytest.raises(LoraInspectError, match=says):
        merged(base, folder / "adapter.gguf", tmp_path)


def test_a_config_that_is_no_object_is_refused_as_what_it_is(fixtures, tmp_path):
    folder = fixtures / "gguf" / "llama"
    with pytest.raises(LoraInspectError, match=r"config\.json: it is JSON but not an object"):
        merged(base_of(folder, tmp_path, []), folder / "adapter.gguf", tmp_path)


def test_without_a_config_at_all_other_models_merge(fixtures, tmp_path):
    for model in ("qwen3", "llama"):
        folder = fixtures / "gguf" / model
        base = base_of(folder, tmp_path, name=model)
        (tmp_path / model / "config.json").unlink()
        if model == "qwen3":
            assert merged(base, folder / "adapter.gguf", tmp_path)
        else:
            with pytest.raises(LoraInspectError, match="number of heads"):
                merged(base, folder / "adapter.gguf", tmp_path)


def test_the_config_of_a_multimodal_model_and_of_a_single_file_counts(fixtures, tmp_path):
    folder = fixtures / "gguf" / "llama"
    own = {"num_attention_heads": 4, "num_key_value_heads": 2}
    first = base_of(folder, tmp_path, {"text_config": own, "num_attention_heads": 1})
    expected = merged(first, folder, tmp_path)
    file = f"{first}/model.safetensors"
    merge(
        plan_merge(file, [(str(folder / "adapter.gguf"), Settings())], MergeOptions()), str(tmp_path / "m.safetensors")
    )
    for found in (merged(first, folder / "adapter.gguf", tmp_path), load_file(tmp_path / "m.safetensors")):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_wrong_number_of_heads_makes_another_model(fixtures, tmp_path):
    folder = fixtures / "gguf" / "llama"
    base = base_of(folder, tmp_path, {"num_attention_heads": 2, "num_key_value_heads": 2})
    expected, found = (merged(base, folder / each, tmp_path) for each in ("", "adapter.gguf"))
    other = {key for key in found if not torch.allclose(found[key], expected[key], rtol=1e-4, atol=1e-4)}
    assert other == {"model.layers.0.self_attn.q_proj.weight"}


def test_heads_that_do_not_divide_the_rows_are_refused(fixtures, tmp_path):
    folder = fixtures / "gguf" / "llama"
    base = base_of(folder, tmp_path, {"num_attention_heads": 5, "num_key_value_heads": 2})
    with pytest.raises(LoraInspectError, match=r"blk\.0\.attn_q has other rows in this layout"):
        merged(base, folder / "adapter.gguf", tmp_path)


def test_the_conv1d_layers_of_gpt2(tmp_path):
    tensors = pair("blk.1.attn_qkv", 12, 4, 2) | pair("blk.1.ffn_down", 4, 16, 2, seed=1)
    adapter = write_adapter(tmp_path / "a.gguf", tensors, alpha=2.0, architecture="gpt2")
    base = {"h.1.attn.c_attn.weight": torch.zeros(4, 12), "h.1.mlp.c_proj.weight": torch.zeros(16, 4)}
    (tmp_path / "base").mkdir()
    save_file(base, tmp_path / "base" / "model.safetensors")
    found = merged(str(tmp_path / "base"), adapter, tmp_path)
    for key, name in (("h.1.attn.c_attn.weight", "attn_qkv"), ("h.1.mlp.c_proj.weight", "ffn_down")):
        a, b = (tensors[f"blk.1.{name}.weight.lora_{which}"].astype(np.float64) for which in "ab")
        np.testing.assert_allclose(found[key].double().numpy(), (b @ a).T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ["mamba", ""])
def test_an_architecture_that_is_not_known_is_refused_by_its_name(fixtures, tmp_path, architecture):
    adapter = write_adapter(tmp_path / "a.gguf", pair("blk.0.attn_q", 8, 8, 2), architecture=architecture)
    base = base_of(fixtures / "gguf" / "llama", tmp_path)
    says = rf"general\.architecture is {architecture or 'missing'}, and lora-inspect knows only"
    with pytest.raises(LoraInspectError, match=says):
        merged(base, adapter, tmp_path)


def test_a_module_that_the_base_has_not_is_named(fixtures, tmp_path):
    adapter = write_adapter(tmp_path / "a.gguf", pair("blk.7.attn_v", 8, 16, 2), architecture="llama")
    base = base_of(fixtures / "gguf" / "llama", tmp_path)
    with pytest.raises(LoraInspectError, match=r"nothing in it resembles blk\.7\.attn_v"):
        merged(base, adapter, tmp_path)


def test_quantised_factors_are_refused_by_their_type(fixtures, tmp_path):
    writer = GGUFWriter(tmp_path / "a.gguf", "qwen3")
    writer.add_type(GGUFType.ADAPTER)
    writer.add_string("adapter.type", "lora")
    for name in "ab":
        data = np.zeros((32, 34), np.uint8)
        writer.add_tensor(f"blk.0.attn_v.weight.lora_{name}", data, raw_dtype=GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    base = tmp_path / "base.safetensors"
    save_file({"model.layers.0.self_attn.v_proj.weight": torch.zeros(32, 32)}, base)
    with pytest.raises(LoraInspectError, match="Q8_0"):
        merge(
            plan_merge(str(base), [(str(tmp_path / "a.gguf"), Settings())], MergeOptions()),
            str(tmp_path / "m.safetensors"),
        )


def test_info_names_the_family(run, fixtures):
    record = run("info", fixtures / "gguf" / "llama" / "adapter.gguf", "--json").json
    assert (record["architecture"], record["layout"]) == ("llm", "gguf")
    assert any("general.architecture is llama" in one["says"] for one in record["evidence"])


def test_what_was_rslora_before_it_was_converted_is_so_where_the_user_says_it(run, fixtures, tmp_path):
    adapter = f"{fixtures / 'gguf' / 'llama' / 'adapter.gguf'}"
    assert run("info", f"{adapter}:rslora=yes", "--json").json["scales"] == {f"{3 / 2**0.5:.6g}": 9}
    options = ("--to", "gguf", "-o", tmp_path / "right.gguf")
    assert run("convert", f"{adapter}:rslora=yes", *options).status == 0
    assert run("info", tmp_path / "right.gguf", "--json").json["scales"] == {f"{3 / 2**0.5:.6g}": 9}


@pytest.mark.parametrize("name", ["adapter.gguf", "adapter_model.gguf"])
def test_a_gguf_file_beside_a_peft_config_is_not_read_by_it(fixtures, tmp_path, name):
    shutil.copytree(fixtures / "gguf" / "llama", tmp_path / "both")
    (tmp_path / "both" / "adapter.gguf").rename(tmp_path / "both" / name)
    config = json.loads((tmp_path / "both" / "adapter_config.json").read_text())
    (tmp_path / "both" / "adapter_config.json").write_text(json.dumps({**config, "use_rslora": True}))
    base = base_of(fixtures / "gguf" / "llama", tmp_path)
    expected = merged(base, fixtures / "gguf" / "llama", tmp_path)
    found = merged(base, tmp_path / "both" / name, tmp_path)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
