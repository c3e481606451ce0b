"""Language models of transformers, at their smallest, and what they make of a sentence."""

from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

_SIZES = {
    "vocab_size": 16,
    "hidden_size": 16,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
_GROUPED = {**_SIZES, "num_key_value_heads": 2, "head_dim": 4, "eos_token_id": 1}
_GPT2 = {"vocab_size": 16, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_inner": 12, "n_positions": 16}
MODELS: dict[str, dict[str, Any]] = {
    "BertForMaskedLM": _SIZES,
    "DistilBertForSequenceClassification": {"vocab_size": 16, "dim": 16, "hidden_dim": 12, "n_layers": 2, "n_heads": 4},
    "GPT2LMHeadModel": {**_GPT2, "tie_word_embeddings": False},
    "GPTBigCodeForCausalLM": {**_GPT2, "tie_word_embeddings": False},
    "GPTNeoXForCausalLM": _SIZES,
    "Gemma2ForCausalLM": {**_GROUPED, "query_pre_attn_scalar": 4},
    "Gemma3ForCausalLM": _GROUPED,
    "GemmaForCausalLM": _GROUPED,
    "LlamaForCausalLM": _GROUPED,
    "MistralForCausalLM": _GROUPED,
    "Phi3ForCausalLM": _GROUPED,
    "Qwen2ForCausalLM": _GROUPED,
    "Qwen3ForCausalLM": _GROUPED,
    "T5ForConditionalGeneration": {
        "vocab_size": 16,
        "d_model": 16,
        "d_kv": 4,
        "d_ff": 12,
        "num_layers": 2,
        "num_heads": 4,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
    },
}
# Layers that no table of a family lists, because they are of the task.
HEADS = ("lm_head", "decoder", "vocab_projector", "pre_classifier", "classifier", "embed_out")


def model(name: str) -> nn.Module:
    """The model called `name`, frozen; the same weights each time."""
    kind = getattr(transformers, name)
    torch.manual_seed(0)
    # The config of Gemma 3 itself is of a model of pictures too.
    config = transformers.Gemma3TextConfig if name.startswith("Gemma3") else kind.config_class
    made: nn.Module = kind(config(**MODELS[name]))
    for parameter in made.requires_grad_(False).parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=0.3)
        elif name.startswith("T5"):
            # Its norms: T5 does not scale down its attention's scores, which magnify rounding unless inputs are small.
            parameter.fill_(0.5)
    return made.eval()


def has_conv1d(network: nn.Module) -> bool:
    """Whether the network has weights that are stored as (in, out)."""
    return any(isinstance(layer, Conv1D) for layer in network.modules())


def shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """(out, in) of every layer but those of a task, by path."""
    found = {}
    for path, layer in network.named_modules():
        if isinstance(layer, (nn.Linear, Conv1D)) and not path.endswith(HEADS):
            found[path] = tuple(layer.weight.shape[:: -1 if isinstance(layer, Conv1D) else 1])
    return found


def output(network: Any) -> Tensor:
    """The logits of a sentence."""
    ids = torch.arange(1, 9).reshape(1, 8)
    also = {"decoder_input_ids": ids} if network.config.is_encoder_decoder else {}
    with torch.no_grad():
        logits: Tensor = network(ids, **also).logits
    return logits
