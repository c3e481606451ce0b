"""Folders of PEFT on a tiny language model, each of one kind, with what the model that was trained computes.

A kind is a config for PEFT, or one of its folders with something changed by hand afterwards.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import language_models
import peft
import torch
from peft import IA3Config, LoHaConfig, LoKrConfig, LoraConfig, OFTConfig, VeraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

# As transformers calls the dense layers of a block.
LEAVES = {
    "LlamaForCausalLM": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "Qwen2ForCausalLM": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "Phi3ForCausalLM": ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
    "GPT2LMHeadModel": ("c_attn", "c_proj", "c_fc"),
}
MODELS = tuple(LEAVES)
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
# The relative distance within which two models compute the same; what is wrong is beyond a hundred times of it.
SAME = 1e-3

Tensors = dict[str, Tensor]
Config = dict[str, Any]


class Kind(NamedTuple):
    """What PEFT is asked for beside the defaults, and what is done to its folder.

    `method` is the class of the config, `leaves` replaces the layers, the first ones of the model for a number, and
    `tensors` and `config` change what was saved.
    """

    asked: Mapping[str, Any] = MappingProxyType({})
    method: type[peft.PeftConfig] = LoraConfig
    leaves: int | tuple[str, ...] | None = None
    tensors: Callable[[Tensors], Tensors] = lambda tensors: tensors
    config: Callable[[Config], Config] = lambda config: config
    copies: bool = False


def _renamed(old: str, new: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key.replace(old, new): value for key, value in tensors.items()}


_LORA = {"r": 4, "lora_alpha": 6}
KINDS = {
    "plain": Kind(),
    "two layers": Kind(leaves=2),
    "one layer": Kind(leaves=1),
    "rank 24": Kind({"r": 24, "lora_alpha": 12}),
    "negative alpha": Kind({"lora_alpha": -6}),
    "alpha 0": Kind({"lora_alpha": 0}),
    "alpha 2.5": Kind({"lora_alpha": 2.5}),
    "half precision": Kind(tensors=lambda tensors: {key: value.half() for key, value in tensors.items()}),
    "rslora": Kind({"use_rslora": True}),
    "dora": Kind({"use_dora": True}),
    "dora and rslora": Kind({"use_dora": True, "use_rslora": True}),
    "rank_pattern": Kind({"rank_pattern": {"o_proj": 2, "c_fc": 2, "h.1.attn.c_proj": 8, "layers.1.mlp.down_proj": 8}}),
    "alpha_pattern": Kind({"alpha_pattern": {"o_proj": 2, "c_fc": 2, "down_proj": 12}}),
    "patterns and rslora": Kind(
        {"rank_pattern": {"o_proj": 2, "c_fc": 2}, "alpha_pattern": {"down_proj": 12}, "use_rslora": True}
    ),
    "embeddings": Kind(leaves=("embed_tokens", "wte")),
    "head": Kind(leaves=("lm_head",)),
    "copies of embeddings": Kind(leaves=("embed_tokens", "wte"), copies=True),
    "saved head": Kind({"modules_to_save": ["lm_head"]}),
    "saved embeddings": Kind({"modules_to_save": ["embed_tokens", "wte"]}),
    "saved norms": Kind({"modules_to_save": ["input_layernorm", "ln_1"]}),
    "tokens": Kind({"trainable_token_indices": [3, 5]}),
    "biases": Kind({"bias": "all"}),
    "biases of its layers": Kind({"bias": "lora_only"}),
    "lora_bias": Kind({"lora_bias": True}),
    "pissa": Kind({"init_lora_weights": "pissa"}),
    "layers_to_transform": Kind({"layers_to_transform": [1]}),
    "excluded": Kind({"exclude_modules": ["down_proj", "c_fc"]}),
    "expression": Kind(leaves=(r".*\.1\..*(_proj|c_attn)",)),
    "default inside": Kind(tensors=_renamed(".weight", ".default.weight")),
    "unknown key": Kind(tensors=lambda tensors: {**tensors, "base_model.model.other": torch.ones(3)}),
    "narrow targets": Kind(config=lambda config: {**config, "target_modules": config["target_modules"][:1]}),
    "narrow layers": Kind(config=lambda config: {**config, "layers_to_transform": [1]}),
    "narrow exclusion": Kind(config=lambda config: {**config, "exclude_modules": ["o_proj", "c_fc"]}),
    "ia3": Kind({"feedforward_modules": []}, IA3Config),
    "loha": Kind({"r": 2, "alpha": 3}, LoHaConfig),
    "lokr": Kind({"r": 2, "alpha": 3}, LoKrConfig),
    "oft": Kind({"r": 0, "oft_block_size": 4}, OFTConfig),
    "vera": Kind({"r": 4}, VeraConfig, leaves=1),
}


class Folder(NamedTuple):
    """A folder of PEFT, and the logits of the `base` and of the model that was `trained`."""

    path: Path
    base: Tensor
    trained: Tensor

    def is_like_trained(self, logits: Tensor) -> bool:
        """Whether logits are those of the trained model."""
        return bool((logits - self.trained).norm() <= SAME * (self.trained - self.base).norm())


def make(model: str, kind: Kind, path: Path) -> Folder:
    """Trains nothing, but gives the adapter's tensors random values and saves it; raises ValueError as PEFT does."""
    network = language_models.model(model)
    before = language_models.output(network)
    conv1d = {"fan_in_fan_out": True} if language_models.has_conv1d(network) else {}
    defaults = {**_LORA, **conv1d} if kind.method is LoraConfig else conv1d if kind.method is IA3Config else {}
    asked: Config = {"target_modules": _targets(model, kind), **defaults, **kind.asked}
    adapted: Any = get_peft_model(network, kind.method(**asked))
    numbers = torch.Generator().manual_seed(3)
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            drawn = torch.randn(parameter.shape, generator=numbers)
            # Magnitudes and saved tensors are near what they were, factors of their own size.
            parameter.data += drawn * (0.1 * parameter.data.std() if "magnitude" in name else 0.2)
    trained = language_models.output(adapted.eval())
    adapted.save_pretrained(str(path), save_embedding_layers=kind.copies)
    tensors = kind.tensors(load_file(path / WEIGHTS))
    save_file({key: value.contiguous() for key, value in tensors.items()}, path / WEIGHTS)
    config = json.loads((path / CONFIG).read_text())
    (path / CONFIG).write_text(json.dumps(kind.config(config)))
    return Folder(path, before, trained)


def _targets(model: str, kind: Kind) -> Any:
    if isinstance(kind.leaves, tuple):
        own = LEAVES[model]
        named = [leaf for leaf in kind.leaves if not (leaf == "wte") ^ (model == "GPT2LMHeadModel")]
        return kind.leaves[0] if ".*" in kind.leaves[0] else [*own, *(named or kind.leaves)]
    return list(LEAVES[model][: kind.leaves])
