"""Weights that PEFT saved whole become LoRA of what they differ from the base's: the same model in the real PEFT."""

import json

import language_models
import peft_kinds
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from lora_inspect.ops.compat import compat

pytestmark = [pytest.mark.numeric, pytest.mark.filterwarnings("ignore")]

MODEL = "LlamaForCausalLM"
HEAD, EMBEDDING, NORM = "lm_head", "model.embed_tokens", "model.layers.0.input_layernorm"
LIMIT = ("--max-error", "1e-6")


@pytest.fixture
def made(tmp_path):
    """`made(*names)`: a folder with these modules saved whole beside LoRA, and its base."""

    def make(*names, tensors=lambda tensors: tensors):
        language_models.model(MODEL).save_pretrained(str(tmp_path / "base"))
        kind = peft_kinds.Kind({"modules_to_save": list(names)}, tensors=tensors)
        return peft_kinds.make(MODEL, kind, tmp_path / "adapter")

    return make


@pytest.fixture
def converted(run, tmp_path):
    def convert(folder, *options):
        asked = ("--algorithm", "lora", "--base", tmp_path / "base", *options)
        return run("convert", folder.path, *asked, "-o", tmp_path / "output", "--json")

    return convert


def keys_of(folder, part):
    return [key for key in load_file(folder / peft_kinds.WEIGHTS) if part in key]


@pytest.mark.parametrize(("name", "suffix"), [(HEAD, "lora_A.weight"), ("embed_tokens", "lora_embedding_A")])
@pytest.mark.parametrize("scheme", ["peft", "vllm", "sglang"])
def test_peft_computes_the_same_with_lora_of_the_difference(made, converted, tmp_path, name, suffix, scheme):
    folder = made(name)
    record = converted(folder, "--to", scheme, *LIMIT).json
    assert record["relative_error"]["max"] <= 1e-6
    assert [key.endswith(suffix) for key in keys_of(tmp_path / "output", f"{name}.lora_") if "A" in key[-9:]] == [True]
    assert json.loads((tmp_path / "output" / peft_kinds.CONFIG).read_text())["modules_to_save"] is None
    network = PeftModel.from_pretrained(language_models.model(MODEL), str(tmp_path / "output")).eval()
    assert folder.is_like_trained(language_models.output(network))
    if scheme == "sglang":
        assert compat(str(tmp_path / "output"), "sglang").verdicts[0].verdict == "same meaning"


def low_rank(tensors):
    """The head two ranks away from that of the base."""
    key = "base_model.model.lm_head.weight"
    numbers = torch.Generator().manual_seed(1)
    base = language_models.model(MODEL).lm_head.weight
    change = torch.randn(16, 2, generator=numbers) @ torch.randn(2, 16, generator=numbers)
    return {**tensors, key: base + change}


def test_a_difference_of_the_rank_is_exact(made, converted, tmp_path):
    record = converted(made(HEAD, tensors=low_rank), "--rank", "2").json
    assert record["relative_error"]["max"] < 2**-20
    assert record["to"]["ranks"] == {"4": 14, "2": 1}


def test_a_difference_of_more_ranks_is_measured(made, converted):
    folder = made(HEAD)
    assert "--allow-loss" in converted(folder, "--rank", "1").refusal
    errors = converted(folder, "--rank", "1", "--allow-loss").json["relative_error"]["per_module"]
    assert 0.05 < errors.pop("base_model.model.lm_head") < 1
    assert set(errors.values()) == {0.0}


def test_a_weight_that_is_the_bases_own_is_left_out(made, converted, tmp_path):
    base = language_models.model(MODEL).lm_head.weight
    folder = made(HEAD, tensors=lambda tensors: {**tensors, "base_model.model.lm_head.weight": base})
    record = converted(folder, *LIMIT).json
    assert not keys_of(tmp_path / "output", "lm_head")
    assert any("lm_head is the same as in the base" in remark for remark in record["remarks"])
    assert record["verified"]["modules"] == 14


def test_norms_stay_saved_beside_it(made, converted, tmp_path):
    folder = made(HEAD, "input_layernorm")
    converted(folder, *LIMIT)
    config = json.loads((tmp_path / "output" / peft_kinds.CONFIG).read_text())
    assert config["modules_to_save"] == ["input_layernorm"]
    network = PeftModel.from_pretrained(language_models.model(MODEL), str(tmp_path / "output")).eval()
    assert folder.is_like_trained(language_models.output(network))
    for program in ("vllm", "sglang"):
        refusal = converted(folder, "--to", program, "--force", *LIMIT).refusal
        assert "input_layernorm is a tensor saved whole" in refusal


def test_without_a_base_the_way_out_is_named(made, run, tmp_path):
    folder = made(HEAD)
    refusal = run("convert", folder.path, "--algorithm", "lora", "--rank", "2", "-o", tmp_path / "output").refusal
    assert "--base BASE" in refusal
    assert HEAD in refusal


def test_a_limit_is_asked_for(made, converted):
    assert "--rank N or --max-error X" in converted(made(HEAD)).refusal


def test_the_weight_of_another_base_is_another_difference(made, converted, run, tmp_path):
    folder = made(HEAD)
    weights = tmp_path / "base" / "model.safetensors"
    tensors = load_file(weights)
    save_file({**tensors, "lm_head.weight": 2 * tensors["lm_head.weight"]}, weights, {"format": "pt"})
    converted(folder, *LIMIT)
    network = PeftModel.from_pretrained(language_models.model(MODEL), str(tmp_path / "output")).eval()
    assert not folder.is_like_trained(language_models.output(network))
