"""Folders of PEFT for a program that takes one rank and one scale: the same in the real PEFT."""

import json

import language_models
import peft_kinds
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from lora_inspect.ops.compat import compat

pytestmark = [pytest.mark.numeric, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def converted(run, tmp_path):
    """`converted(model, kind)`: a folder of PEFT, and what becomes of it for SGLang."""

    def convert(model, kind):
        folder = peft_kinds.make(model, kind, tmp_path / "adapter")
        record = run("convert", folder.path, "--to", "sglang", "-o", tmp_path / "output", "--json").json
        return folder, tmp_path / "output", record

    return convert


def config_of(output):
    return json.loads((output / peft_kinds.CONFIG).read_text())


@pytest.mark.slow
@pytest.mark.parametrize("model", ["LlamaForCausalLM", "Phi3ForCausalLM"])
@pytest.mark.parametrize("kind", ["rslora", "rank_pattern", "alpha_pattern", "patterns and rslora", "negative alpha"])
def test_peft_computes_the_same_with_it(converted, model, kind):
    folder, output, record = converted(model, peft_kinds.KINDS[kind])
    config = config_of(output)
    assert (config["rank_pattern"], config["alpha_pattern"], config["use_rslora"]) == ({}, {}, False)
    ranks = {tensor.shape["lora_B" in key] for key, tensor in load_file(output / peft_kinds.WEIGHTS).items()}
    assert ranks == {config["r"]}
    assert record["exact"]
    network = PeftModel.from_pretrained(language_models.model(model), str(output)).eval()
    assert folder.is_like_trained(language_models.output(network))
    (verdict,) = compat(str(output), "sglang").verdicts
    assert verdict.verdict == "same meaning"


def test_one_scale_that_all_have_stays_in_the_config(converted):
    folder, output, _ = converted("LlamaForCausalLM", peft_kinds.KINDS["rslora"])
    before, after = (load_file(one / peft_kinds.WEIGHTS) for one in (folder.path, output))
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert config_of(output)["lora_alpha"] == 6 * 4**0.5


def test_ranks_that_differ_get_zeros_alone_where_the_scale_is_one(converted):
    asked = {"r": 4, "lora_alpha": 8, "rank_pattern": {"o_proj": 2}, "alpha_pattern": {"o_proj": 4}}
    folder, output, _ = converted("LlamaForCausalLM", peft_kinds.Kind(asked))
    before, after = (load_file(one / peft_kinds.WEIGHTS) for one in (folder.path, output))
    for key, tensor in after.items():
        rows, columns = before[key].shape
        assert torch.equal(tensor[:rows, :columns], before[key])
        assert not tensor[rows:].any()
        assert not tensor[:, columns:].any()
    assert (config_of(output)["r"], config_of(output)["lora_alpha"]) == (4, 8)
