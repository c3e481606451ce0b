"""Bases whose head shares the weight of the embedding: what PEFT's own model computes, or a refusal."""

import json
import warnings

import pytest
import torch
from peft import LoraConfig, TrainableTokensConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

pytestmark = pytest.mark.numeric

IDS = torch.arange(1, 9).reshape(1, 8)
SIZES = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip


def llama(tied=True, kind=LlamaForCausalLM):
    """The same numbers in every one, so that an untied head begins as the tied one is."""
    torch.manual_seed(0)
    model = kind(LlamaConfig(**SIZES, tie_word_embeddings=tied)).eval()
    if not tied:
        model.lm_head.weight.data.copy_(model.model.embed_tokens.weight)
    return model


def outputs(model):
    with torch.no_grad():
        return model(IDS).logits


def trained(folder, **config):
    """A LoRA of a tied model, and the logits of PEFT's own model with it."""
    return trained_by(LoraConfig(r=2, lora_alpha=4, init_lora_weights=False, **config), folder)


def trained_by(config, folder, tied=True):
    """An adapter of a model, and the logits of PEFT's own model with it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(1)
        model = get_peft_model(llama(tied), config).eval()
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name or "trainable_tokens" in name:
                parameter.data += torch.randn_like(parameter)
        model.save_pretrained(folder)
    return outputs(model)


def assert_same(found, expected):
    assert float((found - expected).abs().max()) <= 1e-4 * float(expected.abs().max())


EMBEDDINGS = {
    "LoRA": {"target_modules": ["embed_tokens"]},
    "saved whole": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
}
every_embedding = pytest.mark.parametrize("config", EMBEDDINGS.values(), ids=EMBEDDINGS)


@every_embedding
def test_a_head_that_would_change_too_is_refused_and_one_of_its_own_stays(config, tmp_path, run):
    expected = trained(tmp_path / "adapter", **config)
    for tied in (True, False):
        llama(tied).save_pretrained(tmp_path / f"base {tied}")
    words = tmp_path / "adapter", "-o", tmp_path / "merged"
    refusal = run("merge", tmp_path / "base True", *words).refusal
    assert "was trained without the head" in refusal
    assert "would change with model.embed_tokens.weight" in refusal
    assert run("merge", tmp_path / "base False", *words).status == 0
    assert_same(outputs(LlamaForCausalLM.from_pretrained(tmp_path / "merged").eval()), expected)


def test_the_way_out_of_leaving_it_out_is_one(tmp_path, run):
    trained(tmp_path / "adapter", target_modules=["embed_tokens", "q_proj"])
    llama().save_pretrained(tmp_path / "base")
    refusal = run("merge", tmp_path / "base", tmp_path / "adapter", "-o", tmp_path / "merged").refusal
    setting = refusal.rpartition("leave it out with ")[2].rstrip(".")
    assert setting == f"{tmp_path / 'adapter'}:model.embed_tokens=0"
    assert run("merge", tmp_path / "base", setting, "-o", tmp_path / "merged").status == 0


def test_an_adapter_of_the_head_alone_is_told_why_there_is_none(tmp_path, run):
    expected = trained(tmp_path / "adapter", target_modules=["lm_head"])
    for tied in (True, False):
        llama(tied).save_pretrained(tmp_path / f"base {tied}")
    words = tmp_path / "adapter", "-o", tmp_path / "merged"
    refusal = run("merge", tmp_path / "base True", *words).refusal
    assert "lm_head has no weight of its own there, as the head shares model.embed_tokens.weight" in refusal
    assert run("merge", tmp_path / "base False", *words).status == 0
    assert_same(outputs(LlamaForCausalLM.from_pretrained(tmp_path / "merged").eval()), expected)


def test_what_peft_has_tied_changes_both(tmp_path, run):
    expected = trained(tmp_path / "adapter", target_modules=["embed_tokens"], ensure_weight_tying=True)
    llama().save_pretrained(tmp_path / "base")
    words = "merge", tmp_path / "base", tmp_path / "adapter", "-o", tmp_path / "merged"
    assert run(*words).status == 0
    assert_same(outputs(LlamaForCausalLM.from_pretrained(tmp_path / "merged").eval()), expected)


@pytest.mark.parametrize("changed", ["lm_head.lora_A.weight", "lm_head.lora_B.weight", "lm_head.base_layer.weight"])
def test_a_head_that_says_anything_else_than_its_embedding_is_refused(changed, tmp_path, run):
    trained(tmp_path / "adapter", target_modules=["embed_tokens"], ensure_weight_tying=True)
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors[f"base_model.model.{changed}"][1, 1] += 0.5
    save_file(tensors, path)
    llama().save_pretrained(tmp_path / "base")
    refusal = run("merge", tmp_path / "base", tmp_path / "adapter", "-o", tmp_path / "merged").refusal
    assert (
        "differs from model.embed_tokens.weight" if "base_layer" in changed else "has no weight of its own"
    ) in refusal


def test_a_head_of_another_scale_than_its_embedding_is_refused(tmp_path, run):
    trained(tmp_path / "adapter", target_modules=["embed_tokens"], ensure_weight_tying=True)
    config = tmp_path / "adapter" / "adapter_config.json"
    said = json.loads(config.read_text())
    config.write_text(json.dumps({**said, "alpha_pattern": {"lm_head": 16}}))
    llama().save_pretrained(tmp_path / "base")
    refusal = run("merge", tmp_path / "base", tmp_path / "adapter", "-o", tmp_path / "merged").refusal
    assert "lm_head has no weight of its own there" in refusal


@pytest.mark.parametrize("tied", [True, False])
def test_convert_keeps_tied_weights_apart(tied, tmp_path, run):
    """What it writes is the adapter of both layers, whichever base it is for."""
    expected = trained(tmp_path / "adapter", target_modules=["embed_tokens"], ensure_weight_tying=True)
    ended = run("convert", tmp_path / "adapter", "-o", tmp_path / "standard")
    assert ended.status == 0, ended.stderr
    llama(tied).save_pretrained(tmp_path / "base")
    merged = run("merge", tmp_path / "base", tmp_path / "standard", "-o", tmp_path / "merged")
    assert merged.status == 0, merged.stderr
    assert_same(outputs(LlamaForCausalLM.from_pretrained(tmp_path / "merged").eval()), expected)


def test_a_magnitude_of_a_head_needs_a_base_with_its_own_weight(tmp_path, run):
    trained(tmp_path / "adapter", target_modules=["lm_head"], use_dora=True)
    for tied in (True, False):
        llama(tied).save_pretrained(tmp_path / f"base {tied}")
    words = "convert", tmp_path / "adapter", "--rank", "2", "--allow-loss", "-o", tmp_path / "plain", "--base"
    assert "save the base with" in run(*words, tmp_path / "base True").refusal
    assert run(*words, tmp_path / "base False").status == 0


@pytest.mark.parametrize("has_config", [True, False])
def test_a_model_that_may_have_no_head_at_all_gets_a_note(has_config, tmp_path, run):
    trained(tmp_path / "adapter", target_modules=["embed_tokens"])
    base = tmp_path / "base"
    llama(kind=LlamaModel).save_pretrained(base)
    if not has_config:
        save_file(llama(kind=LlamaModel).state_dict(), base := tmp_path / "base.safetensors")
    ended = run("merge", base, tmp_path / "adapter", "-o", tmp_path / f"merged{base.suffix}")
    assert ended.status == 0
    assert "has no head; one that shares embed_tokens.weight would change with it" in ended.stderr


TOKENS = [5, 2]
OF_TOKENS = {
    "alone": TrainableTokensConfig(token_indices=TOKENS),
    "beside LoRA": LoraConfig(target_modules=["q_proj"], trainable_token_indices=TOKENS),
    "beside LoRA, of both": LoraConfig(
        target_modules=["q_proj"], trainable_token_indices={"embed_tokens": TOKENS, "lm_head": TOKENS}
    ),
}


@pytest.mark.parametrize("config", OF_TOKENS.values(), ids=OF_TOKENS)
@pytest.mark.parametrize("tied", [True, False])
def test_rows_of_tokens_change_a_head_as_they_do_in_peft(config, tied, tmp_path, run):
    expected = trained_by(config, tmp_path / "adapter", tied)
    llama(tied).save_pretrained(tmp_path / "base")
    assert run("merge", tmp_path / "base", tmp_path / "adapter", "-o", tmp_path / "merged").status == 0
    assert_same(outputs(LlamaForCausalLM.from_pretrained(tmp_path / "merged").eval()), expected)


def test_other_rows_for_the_head_than_for_the_embedding_whose_weight_it_shares(tmp_path, run):
    trained_by(OF_TOKENS["beside LoRA, of both"], tmp_path / "adapter", tied=False)
    llama().save_pretrained(tmp_path / "base")
    refusal = run("merge", tmp_path / "base", tmp_path / "adapter", "-o", tmp_path / "merged").refusal
    assert "lm_head has no weight of its own there" in refusal


def test_tokens_beyond_the_embedding(tmp_path, run):
    trained_by(TrainableTokensConfig(token_indices=[1, 31]), tmp_path / "adapter")
    base = llama()
    base.resize_token_embeddings(31)
    base.save_pretrained(tmp_path / "base")
    refusal = run("merge", tmp_path / "base", tmp_path / "adapter", "-o", tmp_path / "merged").refusal
    assert "embed_tokens replaces the row of token 31, but model.embed_tokens.weight is [31, 16]" in refusal


def test_rows_of_tokens_that_were_lost(tmp_path, run):
    trained_by(OF_TOKENS["beside LoRA"], tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({key: tensor for key, tensor in load_file(path).items() if "token" not in key}, path)
    llama().save_pretrained(tmp_path / "base")
    refusal = run("merge", tmp_path / "base", tmp_path / "adapter", "-o", tmp_path / "merged").refusal
    assert "lists trainable_token_indices, but the file has no rows of tokens" in refusal
