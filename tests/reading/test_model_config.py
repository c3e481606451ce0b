"""What the config of a model says of its kind and its heads, and what of it counts as nothing."""

import json

import pytest

from lora_inspect.architectures.gguf import Heads
from lora_inspect.errors import LoraInspectError
from lora_inspect.reading.base.model_config import read_model_config


@pytest.fixture
def config_of(tmp_path):
    def read(content):
        (tmp_path / "config.json").write_text(json.dumps(content))
        return read_model_config(str(tmp_path))

    return read


@pytest.mark.parametrize(
    ("content", "kinds", "heads"),
    [
        ({}, (), None),
        ({"model_type": "llama", "num_attention_heads": 32}, ("llama",), Heads(32, 32)),
        ({"num_attention_heads": 32, "num_key_value_heads": 8}, (), Heads(32, 8)),
        ({"num_attention_heads": 32, "num_key_value_heads": None}, (), Heads(32, 32)),
        ({"num_attention_heads": True, "model_type": 7}, (), None),
        ({"num_attention_heads": 1.0}, (), None),
        ({"num_attention_heads": 0}, (), None),
        ({"num_attention_heads": 10**40}, (), None),
        ({"num_attention_heads": 4, "num_key_value_heads": "4"}, (), None),
        (
            {"model_type": "llava", "num_attention_heads": 9, "text_config": {"model_type": "llama"}},
            ("llava", "llama"),
            None,
        ),
        (
            {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "num_attention_heads": 2}},
            ("gemma3", "gemma3_text"),
            Heads(2, 2),
        ),
        ({"text_config": "none", "num_attention_heads": 3}, (), Heads(3, 3)),
    ],
    ids=str,
)
def test_kinds_and_heads(config_of, content, kinds, heads):
    found = config_of(content)
    assert (found.kinds, found.heads) == (kinds, heads)


def test_a_folder_and_a_file_are_the_same(config_of, tmp_path):
    assert config_of({"model_type": "bert"}) == read_model_config(str(tmp_path / "config.json"))


@pytest.mark.parametrize("content", [[], 3, None, "llama"])
def test_what_is_no_object_is_refused(config_of, content):
    with pytest.raises(LoraInspectError, match="not an object"):
        config_of(content)


def test_one_that_is_not_there_is_named(tmp_path):
    for missing in (tmp_path, tmp_path / "config.json"):
        with pytest.raises(LoraInspectError, match=r"the config\.json of the model does not exist"):
            read_model_config(str(missing))


@pytest.mark.parametrize(
    ("content", "ties"),
    [
        ({"tie_word_embeddings": True}, True),
        ({"tie_word_embeddings": False, "text_config": {"tie_word_embeddings": True}}, False),
        ({"text_config": {"tie_word_embeddings": True}}, True),
        ({"tie_word_embeddings": "yes"}, None),
        ({}, None),
    ],
    ids=str,
)
def test_ties_of_config(config_of, content, ties):
    assert config_of(content).ties is ties


@pytest.mark.parametrize(("architectures", "classes"), [(["LlamaModel", 3], ("LlamaModel",)), ("LlamaModel", ())])
def test_classes_of_config(config_of, architectures, classes):
    assert config_of({"architectures": architectures}).classes == classes
