"""Adapters of the input embedding, merged into tied bases of classes that name their embedding in other ways."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

_BERT = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
TIED: dict[str, tuple[str, dict[str, Any]]] = {
    "BertLMHeadModel": ("bert.embeddings.word_embeddings", {**_BERT, "is_decoder": True}),
    "BloomForCausalLM": (
        "transformer.word_embeddings",
        {"vocab_size": 32, "hidden_size": 16, "n_layer": 1, "n_head": 2},
    ),
    "ElectraForCausalLM": ("electra.embeddings.word_embeddings", {**_BERT, "embedding_size": 16, "is_decoder": True}),
    "FalconForCausalLM": (
        "transformer.word_embeddings",
        {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    ),
    "MambaForCausalLM": (
        "backbone.embeddings",
        {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4, "tie_word_embeddings": True},
    ),
    "OpenAIGPTLMHeadModel": (
        "transformer.tokens_embed",
        {"vocab_size": 32, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2},
    ),
}
# transformers warns of an attribute that PEFT reads.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
IDS = torch.arange(1, 9).reshape(1, 8)


def write_pair(folder: Path, name: str, **changes: Any) -> torch.Tensor:
    """Write a base of a class and a LoRA of its embedding to a folder, and return PEFT's logits."""
    embedding, sizes = TIED[name]
    model_class = getattr(transformers, name)
    torch.manual_seed(0)
    model = model_class(model_class.config_class(**{**sizes, **changes})).eval()
    model.save_pretrained(folder / "base")
    adapted = get_peft_model(model, LoraConfig(r=2, init_lora_weights=False, target_modules=[embedding])).eval()
    adapted.save_pretrained(folder / "adapter", save_embedding_layers=False)
    with torch.no_grad():
        logits: torch.Tensor = adapted(IDS).logits
    return logits


@pytest.mark.parametrize("name", TIED)
def test_merge_embedding_of_tied_class_is_refused(name: str, tmp_path: Path, run: Any) -> None:
    write_pair(tmp_path, name)
    refusal = run("merge", tmp_path / "base", tmp_path / "adapter", "-o", tmp_path / "merged").refusal
    assert "was trained without the head" in refusal
    assert f"would change with {TIED[name][0]}.weight" in refusal
    assert not (tmp_path / "merged").exists()


@pytest.mark.numeric
@pytest.mark.parametrize("name", ["BloomForCausalLM", "FalconForCausalLM"])
def test_merge_embedding_of_untied_class_equals_peft(name: str, tmp_path: Path, run: Any) -> None:
    expected = write_pair(tmp_path, name, tie_word_embeddings=False)
    assert run("merge", tmp_path / "base", tmp_path / "adapter", "-o", tmp_path / "merged").status == 0
    merged = getattr(transformers, name).from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        logits = merged(IDS).logits
    assert float((logits - expected).abs().max()) <= 1e-4 * float(expected.abs().max())


def test_merge_falcon_without_config_key_takes_class_default(tmp_path: Path, run: Any) -> None:
    write_pair(tmp_path, "FalconForCausalLM")
    path = tmp_path / "base" / "config.json"
    config = json.loads(path.read_text())
    config.pop("tie_word_embeddings", None)
    path.write_text(json.dumps(config))
    refusal = run("merge", tmp_path / "base", tmp_path / "adapter", "-o", tmp_path / "merged").refusal
    assert "was trained without the head" in refusal
