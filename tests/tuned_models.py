"""Tiny language models of transformers, tuned copies of them with changes of low rank, and their logits."""

import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

RANK = 4
WEIGHTS = "model.safetensors"
_SIZES = {
    "vocab_size": 48, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "head_dim": 8, "intermediate_size": 24, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_QWEN = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
_MIXTRAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
_GLM = {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 0}
MODELS: Mapping[str, dict[str, Any]] = {
    "LlamaForCausalLM": _SIZES,
    "Qwen3ForCausalLM": _SIZES,
    "GPT2LMHeadModel": {"vocab_size": 48, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32},
    "GPTNeoXForCausalLM": {
        "vocab_size": 48, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24,
    },
    "Qwen3MoeForCausalLM": {**_SIZES, **_QWEN},
    "Qwen3NextForCausalLM": {
        **_SIZES, **_QWEN, "shared_expert_intermediate_size": 12, "layer_types": ["full_attention"] * 2,
    },
    "Qwen2MoeForCausalLM": {**_SIZES, **_QWEN, "shared_expert_intermediate_size": 12},
    "OlmoeForCausalLM": {**_SIZES, "num_experts": 4, "num_experts_per_tok": 2},
    "MixtralForCausalLM": {**_SIZES, **_MIXTRAL},
    "MiniMaxM2ForCausalLM": {**_SIZES, **_MIXTRAL},
    "Glm4MoeForCausalLM": {**_SIZES, **_GLM, "moe_intermediate_size": 12, "num_experts_per_tok": 2},
}  # fmt: skip


def save_model(name: str, folder: Path, tied: bool = False) -> Path:
    """Save a model with random weights; `tied` gives the head the weight of the embedding."""
    model_class = getattr(transformers, name)
    torch.manual_seed(0)
    model = model_class(model_class.config_class(**MODELS[name], tie_word_embeddings=tied))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return folder


def tuned_copy(
    base: Path,
    folder: Path,
    rank: Callable[[str], int] = lambda name: RANK,
    keeps: Callable[[str], bool] = lambda name: False,
) -> Path:
    """Save a copy of a model with a change of low rank in each matrix, but for those that it `keeps`."""
    shutil.copytree(base, folder)
    tensors, numbers = load_file(base / WEIGHTS), torch.Generator().manual_seed(3)
    for name in sorted(tensors):
        weight = tensors[name]
        if weight.dim() != 2 or keeps(name):
            continue
        rows, columns = weight.shape
        up, down = (torch.randn(shape, generator=numbers) for shape in ((rows, rank(name)), (rank(name), columns)))
        tensors[name] = weight + 0.05 * up @ down
    save_weights(folder, tensors)
    return folder


def save_weights(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Replace the weights of a saved model."""
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / WEIGHTS, {"format": "pt"})


def logits(name: str, folder: Path, adapter: Path | None = None) -> Tensor:
    """Return the logits (1, tokens, vocabulary) of a saved model, with an adapter in the real PEFT."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: Any = getattr(transformers, name).from_pretrained(folder)
        if adapter is not None:
            model = peft.PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        found: Tensor = model.eval()(torch.arange(1, 25)[None]).logits.double()
    return found


def distance(actual: Tensor, expected: Tensor, base: Tensor) -> float:
    """Return ‖actual - expected‖ / ‖base - expected‖."""
    return float((actual - expected).norm() / (base - expected).norm())
