"""The scale of LoKr whose factors are both whole: 1, unless a config or blissful-tuner's flag divides alpha."""

import json

import pytest

from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.reading.adapter import read_adapter

WHOLE = {"lokr_w1": ("F32", (2, 3), 1), "lokr_w2": ("F32", (4, 5, 3, 3), 1)}
PRODUCT = {"lokr_w1": ("F32", (2, 3), 1), "lokr_w2_a": ("F32", (4, 2), 1), "lokr_w2_b": ("F32", (2, 45), 1)}
CONFIG = {"peft_type": "LOKR", "r": 8, "alpha": 6, "target_modules": ["layer"]}


def under(name, tensors, **others):
    return {f"{name}.{suffix}": tensor for suffix, tensor in tensors.items()} | others


def read(file):
    adapter = read_adapter(open_checkpoint(str(file)))
    (contribution,) = adapter.contributions
    return adapter, contribution


ALPHA = {"lora_unet_layer.alpha": ("F32", (), 10.0)}
FLAG = {"lokr_factor": ("I64", (), 4)}


@pytest.mark.parametrize(
    ("tensors", "rank", "scale"),
    [
        (under("lora_unet_layer", WHOLE, **ALPHA), None, 1.0),
        (under("lora_unet_layer", WHOLE, **ALPHA, **FLAG), 5, 2.0),
        (under("lora_unet_layer", WHOLE, **FLAG), 5, 1.0),
        (under("lora_unet_layer", PRODUCT, **ALPHA), 2, 5.0),
        (under("lora_unet_layer", PRODUCT, **ALPHA, **FLAG), 2, 5.0),
    ],
)
def test_the_flag_divides_the_alpha_of_whole_factors_alone(tensors, rank, scale, write_safetensors):
    adapter, found = read(write_safetensors(tensors))
    assert (found.rank, found.scale) == (rank, scale)
    assert [item.where for item in adapter.evidence if item.about == "scale"] == (["lokr_factor"] if rank == 5 else [])
    assert not [problem for problem in adapter.problems if problem.severity == "error"]


@pytest.mark.parametrize(
    ("config", "rank", "scale"),
    [
        ({}, 8, 0.75),
        ({"rank_pattern": {"layer": 3}, "alpha_pattern": {"layer": 12}}, 3, 4.0),
    ],
)
def test_the_rank_of_the_config_divides_its_alpha(config, rank, scale, write_safetensors):
    file = write_safetensors(under("base_model.model.layer", WHOLE), name="peft/adapter_model.safetensors")
    (file.parent / "adapter_config.json").write_text(json.dumps({**CONFIG, **config}))
    adapter, found = read(file)
    assert (found.rank, found.scale) == (rank, scale)
    assert not [problem for problem in adapter.problems if problem.severity == "error"]


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (None, "adapter_config.json, which is missing; put that file next to the adapter"),
        ({"r": "many"}, "the config's rank is impossible; correct the config"),
    ],
)
def test_a_rank_that_nobody_says_leaves_the_scale_open(config, says, write_safetensors):
    file = write_safetensors(under("base_model.model.layer", WHOLE), name="peft/adapter_model.safetensors")
    if config:
        (file.parent / "adapter_config.json").write_text(json.dumps({**CONFIG, **config}))
    adapter, found = read(file)
    assert found.scale is None
    (message,) = [problem.message for problem in adapter.problems if problem.code == "scale-unknown"]
    assert message.endswith(says)


def test_a_whole_factor_of_a_conv1d_is_another_product_in_peft(write_safetensors):
    whole = {**WHOLE, "lokr_w2": ("F32", (4, 5, 3), 1)}
    file = write_safetensors(under("base_model.model.layer", whole), name="peft/adapter_model.safetensors")
    (file.parent / "adapter_config.json").write_text(json.dumps(CONFIG))
    (problem,) = [problem for problem in read(file)[0].problems if problem.severity == "error"]
    assert (problem.code, problem.keys) == ("peft-setting-unsupported", ("base_model.model.layer.lokr_w2",))
