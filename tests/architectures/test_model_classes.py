"""The table of model classes equals the installed transformers and PEFT, and its reader answers by class and config."""

import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from peft import LoraConfig
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.pytorch_utils import Conv1D

from lora_inspect.architectures import model_classes
from lora_inspect.architectures.model_classes import ModelClass, as_pattern, class_named, class_of

SAMPLE = (
    "BartForConditionalGeneration",
    "BertLMHeadModel",
    "BloomForCausalLM",
    "DeepseekV3ForCausalLM",
    "FalconForCausalLM",
    "GPT2LMHeadModel",
    "GPTNeoXForCausalLM",
    "Gemma3ForConditionalGeneration",
    "GptOssForCausalLM",
    "GraniteMoeForCausalLM",
    "JambaForCausalLM",
    "LlamaForCausalLM",
    "MambaForCausalLM",
    "MixtralForCausalLM",
    "OPTForCausalLM",
    "ProphetNetForCausalLM",
    "Qwen2MoeForCausalLM",
    "Qwen3_5ForCausalLM",
    "T5ForConditionalGeneration",
    "XLNetLMHeadModel",
)
# The classes that do not build on the meta device.
UNBUILT = {"Gemma3nForConditionalGeneration": "TimmWrapperModel requires the timm library"}


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    sys.path.insert(0, str(Path(__file__).parents[2] / "docs"))
    import write_model_classes

    yield write_model_classes
    sys.path.pop(0)


def every_class() -> list[Any]:
    names = [*model_classes._table()["classes"]]
    return [pytest.param(name, marks=() if name in SAMPLE else pytest.mark.slow) for name in names]


@pytest.fixture(params=every_class())
def entry(request: pytest.FixtureRequest) -> ModelClass:
    drawn = class_named(request.param)
    assert drawn is not None
    return drawn


def build(script: ModuleType, entry: ModelClass, **changes: Any) -> PreTrainedModel:
    model_class, config_class = script.classes()[entry.name]
    model: PreTrainedModel = script.build(model_class, config_class(**script.NEEDED.get(entry.name, {}), **changes))
    return model


def test_table_names_installed_versions() -> None:
    assert model_classes.versions() == {package: version(package) for package in ("transformers", "peft")}, (
        "run python docs/write_model_classes.py"
    )


def test_table_has_every_installed_class(script: ModuleType) -> None:
    table = model_classes._table()
    assert sorted({*table["classes"], *table["unbuilt"]}) == sorted(script.classes())
    assert len(table["classes"]) + len(UNBUILT) == 225


def test_unbuilt_classes_are_named_with_reason() -> None:
    unbuilt = model_classes._table()["unbuilt"]
    assert unbuilt.keys() == UNBUILT.keys()
    assert all(reason in unbuilt[name] for name, reason in UNBUILT.items())


def test_facts_equal_installed_class(script: ModuleType, entry: ModelClass) -> None:
    model_class, config_class = script.classes()[entry.name]
    assert script.facts(model_class, config_class) == model_classes._table()["classes"][entry.name]


def test_embedding_and_head_are_modules_of_class(script: ModuleType, entry: ModelClass) -> None:
    model = build(script, entry)
    assert entry.embedding
    assert model.get_submodule(entry.embedding) is model.get_input_embeddings()
    assert entry.head
    assert model.get_submodule(entry.head) is model.get_output_embeddings()


@pytest.mark.parametrize("ties", [True, False])
def test_tied_weights_are_same_parameter(script: ModuleType, entry: ModelClass, ties: bool) -> None:
    # DBRX allows no tied weights: its config raises for the value True.
    model = build(script, entry, **({"tie_word_embeddings": ties} if entry.tied else {}))
    model.tie_weights()
    parameters = {as_pattern(name): tensor for name, tensor in model.named_parameters(remove_duplicate=False)}
    config = model.config.to_dict()
    for pair in entry.tied:
        if pair.weight == pair.source:  # layers that share weights, of different numbers
            continue
        source = entry.tied_to(pair.weight, config)
        assert (parameters[pair.weight] is parameters[pair.source]) == (source == pair.source)


def test_kind_of_modules_is_that_of_their_class(script: ModuleType, entry: ModelClass) -> None:
    classes = {"linear": nn.Linear, "embedding": nn.Embedding, "conv1d": Conv1D}
    for name, module in build(script, entry).named_modules():
        if not any(tensor.ndim > 1 for tensor in module.parameters(recurse=False)):
            continue
        kind = entry.kind_of(name)
        for word, module_class in classes.items():
            is_kind = kind is not None and kind.removesuffix("_with_arguments") == word
            assert is_kind == isinstance(module, module_class), name


def test_names_in_file_are_those_that_transformers_writes(script: ModuleType, entry: ModelClass) -> None:
    model = build(script, entry)
    state = model.state_dict()
    with torch.device("meta"):
        saved = {as_pattern(name) for name in revert_weight_conversion(model, state)}
    assert {name for parameter in state for name in entry.names_in_file(parameter)} == saved


def test_reroute_is_that_of_peft(script: ModuleType, entry: ModelClass) -> None:
    targets = ["gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"]
    config = LoraConfig(target_modules=targets)
    convert_peft_config_for_transformers(config, build(script, entry), None)
    assert set(config.target_parameters or ()) == {
        parameter for name, parameter in entry.reroute.items() if name in targets
    }


def test_class_of_one_architecture_is_that_class() -> None:
    drawn = class_of(["LlamaForCausalLM"], "t5")
    assert drawn is not None
    assert drawn.name == "LlamaForCausalLM"


@pytest.mark.parametrize("names", [["LlamaForCausalLM", "T5ForConditionalGeneration"], ["NoModel"], ["x" * 10_000_000]])
def test_class_of_unknown_architectures_is_none(names: list[str]) -> None:
    assert class_of(names, "llama") is None


def test_class_of_type_with_single_class_is_that_class() -> None:
    drawn = class_of([], "llama")
    assert drawn is not None
    assert drawn.name == "LlamaForCausalLM"


@pytest.mark.parametrize("model_type", ["bart", "no_model", None])
def test_class_of_type_with_several_classes_is_none(model_type: str | None) -> None:
    assert class_of([], model_type) is None


@pytest.mark.parametrize(
    ("name", "config", "source"),
    [
        ("LlamaForCausalLM", {}, None),
        ("LlamaForCausalLM", {"tie_word_embeddings": True}, "model.embed_tokens.weight"),
        ("FalconForCausalLM", {}, "transformer.word_embeddings.weight"),
        ("FalconForCausalLM", {"tie_word_embeddings": False}, None),
    ],
)
def test_head_is_tied_by_config_or_default(name: str, config: dict[str, Any], source: str | None) -> None:
    drawn = class_named(name)
    assert drawn is not None
    assert drawn.tied_to("lm_head.weight", config) == source
