"""Text encoders by the names and widths of their layers, against the classes of transformers."""

import pytest
import torch
import transformers

from lora_inspect.architectures.text_encoders import CLIP, LANGUAGE_MODEL, T5, TextEncoder, found_in, has

SMALL = {"num_hidden_layers": 1, "vocab_size": 32, "num_attention_heads": 2, "intermediate_size": 96}
ENCODERS = [
    pytest.param(
        lambda: transformers.CLIPTextModel(transformers.CLIPTextConfig(hidden_size=64, **SMALL)), CLIP, id="clip"
    ),
    pytest.param(
        lambda: transformers.T5EncoderModel(
            transformers.T5Config(d_model=64, d_kv=16, d_ff=96, num_layers=1, num_heads=2, vocab_size=32)
        ),
        T5,
        id="t5",
    ),
    pytest.param(
        lambda: transformers.UMT5EncoderModel(
            transformers.UMT5Config(d_model=64, d_kv=16, d_ff=96, num_layers=1, num_heads=2, vocab_size=32)
        ),
        T5,
        id="umt5",
    ),
    pytest.param(
        lambda: transformers.LlamaModel(transformers.LlamaConfig(hidden_size=64, num_key_value_heads=1, **SMALL)),
        LANGUAGE_MODEL,
        id="llama",
    ),
    pytest.param(
        lambda: transformers.Qwen3ForCausalLM(
            transformers.Qwen3Config(hidden_size=64, num_key_value_heads=1, head_dim=16, **SMALL)
        ),
        LANGUAGE_MODEL,
        id="qwen3",
    ),
]


@pytest.mark.parametrize("separator", "._")
@pytest.mark.parametrize(("build", "kind"), ENCODERS)
def test_the_layers_of_every_class_show_one_encoder(build, kind, separator):
    with torch.device("meta"):
        model = build()
    linear = {path: layer for path, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)}
    modules = [
        (path.replace(".", separator), layer.out_features, layer.in_features)
        for path, layer in linear.items()
        if path != "lm_head"
    ]
    assert modules
    for module in modules:
        assert found_in([module]) == (TextEncoder(kind, 64),), module
    assert found_in(modules) == (TextEncoder(kind, 64),)


def test_a_known_width_stands_for_layers_of_unknown_width():
    modules = [("text_model.encoder.layers.0.mlp.fc1", None, None), ("text_model.encoder.layers.0.mlp.fc2", 768, None)]
    assert found_in(modules) == (TextEncoder(CLIP, 768),)
    assert found_in(modules[:1]) == (TextEncoder(CLIP, None),)


def test_layers_of_a_model_are_no_text_encoder():
    assert found_in([("double_blocks.0.img_attn.qkv", 9216, 3072), ("", None, None)]) == ()


def test_an_encoder_is_had_by_kind_and_width():
    own = (TextEncoder(CLIP, 768), TextEncoder(LANGUAGE_MODEL, None))
    assert has(own, TextEncoder(CLIP, 768))
    assert has(own, TextEncoder(CLIP, None))
    assert not has(own, TextEncoder(CLIP, 1280))
    assert has(own, TextEncoder(LANGUAGE_MODEL, 4096))
    assert not has(own, TextEncoder(T5, 4096))
