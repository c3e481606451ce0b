"""The parts of a pipeline that files have something of, and what they are called."""

import pytest
from adapters import lora
from real_headers import write_shapes

from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.reading.file_info import inspect
from lora_inspect.reading.pipeline import adapter_parts, base_parts, computing_tensors


def parts_of(path):
    info = inspect(str(path))
    return adapter_parts(info.adapter, info.candidates)


def test_text_encoders_have_their_own_names_and_the_model_comes_first(tmp_path):
    path = write_shapes("flux-dora-onetrainer", tmp_path / "x.safetensors", "F16", 1.0)
    parts = parts_of(path)
    assert [(part.component, part.title) for part in parts] == [
        ("model", "transformer"),
        ("text_encoder", "text encoder (CLIP-L)"),
        ("text_encoder_2", "text encoder 2 (T5-XXL)"),
    ]
    prefixes = ("lora_transformer_", "lora_te1_", "lora_te2_")
    for part, prefix in zip(parts, prefixes, strict=True):
        assert all(module.name.key.startswith(prefix) for module in part.modules)
        assert part.tensors
        assert all(not tensor.name.endswith(".alpha") for tensor in part.tensors)


@pytest.mark.parametrize(
    ("module", "title"),
    {
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_k": "unet",
        "lora_unet_blocks_0_self_attn_q": "transformer",
        "lora_unet_whatever": "model",
        "transformer_2.blocks.0.attn1.to_q": "transformer 2",
    }.items(),
)
def test_a_model_is_called_as_its_pipeline_does(module, title, write_safetensors):
    (part,) = parts_of(write_safetensors(lora(module, rank=4)))
    assert part.title == title


def test_language_models_have_no_pipeline(write_safetensors):
    tensors = lora("base_model.model.model.layers.0.self_attn.q_proj", spelling="peft", alpha=None)
    (part,) = parts_of(write_safetensors(tensors))
    assert part.title == "model"


def test_the_parts_of_a_checkpoint_of_a_whole_pipeline(write_safetensors):
    names = {
        "model.diffusion_model.input_blocks.0.0.weight": "model",
        "first_stage_model.encoder.conv_in.weight": "vae",
        "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight": "text_encoder",
        "alphas_cumprod": "others",
    }
    checkpoint = open_checkpoint(str(write_safetensors(dict.fromkeys(names, ("F32", (2, 3), 0)))))
    found = {part.component: [tensor.name for tensor in part.tensors] for part in base_parts(checkpoint, ())}
    assert found == {component: [name] for name, component in names.items()}
    assert next(iter(found)) == "model"


def test_the_names_of_a_bare_model_are_the_models(write_safetensors):
    checkpoint = open_checkpoint(str(write_safetensors({"blocks.0.weight": ("F32", (2, 3), 0)})))
    (part,) = base_parts(checkpoint, ())
    assert (part.component, len(part.tensors)) == ("model", 1)


def test_tensors_that_modules_share_count_once(fixtures):
    adapter = inspect(str(fixtures / "synthetic" / "rslora_flag.safetensors")).adapter
    modules = list(adapter.modules.values())
    assert computing_tensors([*modules, *modules]) == computing_tensors(modules)
    assert sum(tensor.numel for tensor in computing_tensors(modules)) == 2 * (8 * 4 * (24 + 24) + 2 * 4 * (24 + 40))
