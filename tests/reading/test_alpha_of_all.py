"""What llama.cpp's adapters mean: the scale by their header, the algorithm by their shapes."""

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFType, GGUFWriter
from gguf_files import pair, write_adapter

from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.reading.adapter import read_adapter


def modules_of(file):
    return read_adapter(open_checkpoint(file)).modules


def test_alpha_is_divided_by_the_rank_of_each_module(tmp_path):
    tensors = pair("blk.0.attn_q", 8, 8, 2) | pair("blk.0.attn_v", 4, 8, 4) | pair("output", 32, 8, 1)
    modules = modules_of(write_adapter(tmp_path / "a.gguf", tensors, alpha=6.0))
    assert {name: module.name.scheme for name, module in modules.items()} == dict.fromkeys(modules, "gguf")
    scales = {name: (c.rank, c.alpha, c.scale) for name, m in modules.items() for c in m.contributions}
    assert scales == {"blk.0.attn_q": (2, 6.0, 3.0), "blk.0.attn_v": (4, 6.0, 1.5), "output": (1, 6.0, 6.0)}


@pytest.mark.parametrize("alpha", [0.0, None])
def test_without_an_alpha_or_with_0_llama_cpp_multiplies_by_1(tmp_path, alpha):
    file = write_adapter(tmp_path / "a.gguf", pair("blk.0.attn_q", 8, 8, 2), alpha)
    ((contribution,),) = (module.contributions for module in modules_of(file).values())
    assert (contribution.alpha, contribution.scale) == (None, 1.0)


def test_an_alpha_that_is_no_number_leaves_the_scale_unknown(tmp_path):
    file = write_adapter(tmp_path / "a.gguf", pair("blk.0.attn_q", 8, 8, 2), float("nan"))
    ((contribution,),) = (module.contributions for module in modules_of(file).values())
    assert contribution.scale is None
    assert "not a finite number" in contribution.why


def test_the_tokens_factor_of_an_embedding_is_told_by_its_shape(tmp_path):
    drawn = np.random.default_rng(1)
    tensors = {
        "token_embd.weight.lora_a": drawn.normal(size=(32, 2)).astype(np.float32),
        "token_embd.weight.lora_b": drawn.normal(size=(8, 2)).astype(np.float32),
    }
    module = modules_of(write_adapter(tmp_path / "a.gguf", tensors, alpha=4.0))["token_embd"]
    (contribution,) = module.contributions
    assert contribution.algorithm.name == "lora_embedding_along_tokens"
    assert (contribution.rank, contribution.scale, contribution.shape) == (2, 2.0, (8, 32))


def test_info_says_where_the_scale_comes_from(run, tmp_path):
    file = write_adapter(tmp_path / "a.gguf", pair("blk.0.attn_q", 8, 8, 2), alpha=6.0)
    record = run("info", file, "--json").json
    assert (record["kind"], record["scheme"], record["tensors"]) == ("adapter", "gguf", 2)
    assert (record["alphas"], record["scales"], record["parameters"]) == ({"6": 1}, {"3": 1}, 32)
    assert {"about": "scale", "where": "adapter.lora.alpha"}.items() <= record["evidence"][0].items()
    assert record["metadata"]["general.architecture"] == "llama"


def test_a_norm_beside_the_factors_is_named_as_nobodys(run, tmp_path):
    tensors = pair("blk.0.attn_q", 8, 8, 2) | {"blk.0.attn_norm.weight": np.ones(8, np.float32)}
    assert run("info", write_adapter(tmp_path / "a.gguf", tensors), "--json").json["unclaimed"] == [
        "blk.0.attn_norm.weight"
    ]


def test_quantised_factors_are_described_and_not_computed_with(run, tmp_path):
    writer = GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_type(GGUFType.ADAPTER)
    writer.add_string("adapter.type", "lora")
    for name, rows in (("a", 1), ("b", 32)):
        data = np.zeros((rows, 34), np.uint8)
        writer.add_tensor(f"blk.0.attn_q.weight.lora_{name}", data, raw_dtype=GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = str(tmp_path / "a.gguf")
    assert run("info", file, "--json").json["dtypes"] == {"Q8_0": 2}
