"""The layers of the real classes of transformers, tiny and without storage, are paths of their family."""

import re
from collections.abc import Iterator

import pytest
import torch
import transformers
from transformers.pytorch_utils import Conv1D

from lora_inspect.architectures.detection import candidates

LAYERS = (torch.nn.Linear, torch.nn.Embedding, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d, Conv1D)
DECODER = {
    "vocab_size": 16,
    "hidden_size": 16,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
EXPERTS = {
    "moe_intermediate_size": 8,
    "shared_expert_intermediate_size": 8,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "decoder_sparse_step": 1,
}
DEEPSEEK = {**EXPERTS, "n_routed_experts": 4, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}
MIXED = {**EXPERTS, "layer_types": ["linear_attention", "full_attention"]}
GPT2 = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 16, "add_cross_attention": True}
BIGCODE = {**GPT2, "add_cross_attention": False}
NEOX = {**DECODER, "num_key_value_heads": 4}
BERT = {name: DECODER[name] for name in DECODER if name != "num_key_value_heads"}
DISTILBERT = {"vocab_size": 16, "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 12}
T5 = {"vocab_size": 16, "d_model": 16, "d_kv": 4, "d_ff": 12, "num_layers": 1, "num_heads": 2}

# Class, arguments of a tiny model, and the family and layout that hold every layer of it.
MODELS = [
    *((f"{name}ForCausalLM", DECODER, "llm", "hf") for name in (
        "Llama", "Mistral", "Qwen2", "Qwen3", "Gemma", "Gemma2", "Gemma3", "Phi", "Phi3", "Olmo2", "Cohere", "Glm4",
        "Granite", "SmolLM3", "Starcoder2", "StableLm",
    )),
    *((f"{name}ForCausalLM", {**DECODER, **EXPERTS}, "llm", "hf") for name in (
        "Mixtral", "Qwen2Moe", "Qwen3Moe", "GptOss", "Olmoe", "Phimoe",
    )),
    *((f"{name}ForCausalLM", {**DECODER, **DEEPSEEK}, "llm", "hf") for name in ("DeepseekV2", "DeepseekV3")),
    ("Qwen3NextForCausalLM", {**DECODER, **MIXED}, "llm", "hf"),
    ("Qwen3_5ForCausalLM", {**DECODER, **MIXED}, "llm", "hf"),
    *((f"{name}Model", DECODER, "llm", "hf-backbone") for name in ("Llama", "Qwen3", "Gemma3Text", "Phi3")),
    ("LlamaForSequenceClassification", DECODER, "llm", "hf"),
    ("GPT2LMHeadModel", GPT2, "gpt2", "hf"),
    ("GPT2Model", GPT2, "gpt2", "hf-backbone"),
    ("GPT2ForSequenceClassification", GPT2, "gpt2", "hf"),
    ("GPT2DoubleHeadsModel", GPT2, "gpt2", "hf"),
    ("GPTBigCodeForCausalLM", BIGCODE, "gpt_bigcode", "hf"),
    ("GPTBigCodeModel", BIGCODE, "gpt_bigcode", "hf-backbone"),
    ("GPTNeoXForCausalLM", NEOX, "gpt_neox", "hf"),
    ("GPTNeoXModel", NEOX, "gpt_neox", "hf-backbone"),
    ("GPTNeoXForSequenceClassification", NEOX, "gpt_neox", "hf"),
    *((f"Bert{end}", BERT, "bert", "hf") for end in (
        "ForMaskedLM", "ForPreTraining", "ForSequenceClassification", "ForQuestionAnswering",
    )),
    *((f"{name}ForMaskedLM", BERT, "bert", "hf") for name in ("Roberta", "XLMRoberta")),
    *((f"{name}Model", BERT, "bert", "hf-backbone") for name in ("Bert", "Roberta")),
    ("RobertaForSequenceClassification", BERT, "bert", "hf"),
    *((f"DistilBert{end}", DISTILBERT, "distilbert", "hf") for end in (
        "ForMaskedLM", "ForSequenceClassification", "ForQuestionAnswering",
    )),
    ("DistilBertModel", DISTILBERT, "distilbert", "hf-backbone"),
    *((name, T5, "t5", "hf") for name in (
        "T5Model", "T5EncoderModel", "T5ForConditionalGeneration", "UMT5EncoderModel", "MT5ForConditionalGeneration",
    )),
    ("T5ForSequenceClassification", {**T5, "decoder_start_token_id": 0}, "t5", "hf-classifier"),
]  # fmt: skip

# Multimodal models, of which the configuration of each part is made small.
MULTIMODAL = [
    "Gemma3ForConditionalGeneration",
    "Gemma4ForConditionalGeneration",
    "LlavaForConditionalGeneration",
    "Mistral3ForConditionalGeneration",
    "Qwen2VLForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration",
    "Qwen3VLForConditionalGeneration",
    "Qwen3VLMoeForConditionalGeneration",
]


def built(name: str, arguments: dict[str, object]) -> torch.nn.Module:
    kind = getattr(transformers, name, None)
    if kind is None:
        pytest.skip(f"this version of transformers has no {name}")
    with torch.device("meta"):
        return kind(kind.config_class(**arguments))


def layers(model: torch.nn.Module) -> Iterator[tuple[str, None, None]]:
    """What an adapter can sit on: the layers, and the parameters of all experts at once."""
    for path, module in model.named_modules():
        if isinstance(module, LAYERS):
            yield path, None, None
    for path, parameter in model.named_parameters():
        if re.search(r"experts\.\w+_proj$", path) and parameter.dim() == 3:
            yield path, None, None


def families_of(model: torch.nn.Module) -> dict[str, str]:
    return {found.architecture.name: found.layout.name for found in candidates(layers(model), {}, minimum_share=1.0)}


@pytest.mark.parametrize(("name", "arguments", "family", "layout"), MODELS, ids=[model[0] for model in MODELS])
def test_every_layer_of_a_language_model_is_a_path_of_its_family(name, arguments, family, layout):
    found = families_of(built(name, arguments))
    assert found[family] == layout
    # BigCode has the names of GPT-2.
    assert found.keys() <= {family, *({"gpt2", "gpt_bigcode"} if family.startswith("gpt") else ())}


@pytest.mark.parametrize("name", MULTIMODAL)
def test_every_layer_of_a_multimodal_model_is_a_path_of_its_family(name):
    kind = getattr(transformers, name, None)
    if kind is None:
        pytest.skip(f"this version of transformers has no {name}")
    config = kind.config_class()
    for part in filter(None, (getattr(config, which, None) for which in ("text_config", "vision_config"))):
        for field in ("num_hidden_layers", "depth"):
            if getattr(part, field, None):
                setattr(part, field, 2)
        if getattr(part, "layer_types", None):
            part.layer_types = part.layer_types[:1] * 2
        if getattr(part, "num_kv_shared_layers", None):
            part.num_kv_shared_layers = 0
        for field in ("fullatt_block_indexes", "deepstack_visual_indexes"):
            if getattr(part, field, None):
                setattr(part, field, [0])
    with torch.device("meta"):
        model = kind(config)
    assert families_of(model)["llm"] == "hf-multimodal"


@pytest.mark.parametrize("add_cross_attention", [False, True])
def test_conv1d_layers_are_those_whose_weight_is_turned(add_cross_attention):
    from lora_inspect.architectures import by_name
    from lora_inspect.reading.base_names import leaf_of

    layout, _ = by_name("gpt2").layouts
    model = built("GPT2LMHeadModel", {**GPT2, "add_cross_attention": add_cross_attention})
    kinds = {
        (leaf_of(path), isinstance(module, Conv1D))
        for path, module in model.named_modules()
        if isinstance(module, LAYERS)
    }
    assert kinds == {(leaf, leaf in layout.transposed) for leaf, _ in kinds}
    code = built("GPTBigCodeForCausalLM", BIGCODE)
    assert not any(isinstance(module, Conv1D) for module in code.modules())
    assert by_name("gpt_bigcode").layouts[0].transposed == ()
