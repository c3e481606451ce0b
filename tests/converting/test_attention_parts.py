"""The factors of a MultiheadAttention in other names than PEFT's: as often in the output as PEFT counts them."""

import pytest
import torch
from safetensors.torch import save_file

from lora_inspect.converting.steps.part import read_parts
from lora_inspect.converting.steps.respell import counted_once
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.maths.tensors import load
from lora_inspect.reading.adapter import read_adapter
from lora_inspect.reading.model.settings import Settings

pytestmark = pytest.mark.numeric

WIDTH, RANK, ALPHA = 4, 2, 3.0
NAMES = {"mha": 3 * WIDTH, "mha.base_layer.out_proj": WIDTH}


@pytest.fixture
def modules(tmp_path):
    """The modules of an adapter of a MultiheadAttention, and its tensors."""
    generator, tensors = torch.Generator().manual_seed(1), {}
    for name, rows in NAMES.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(RANK, WIDTH, generator=generator)
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(rows, RANK, generator=generator)
        tensors[f"base_model.model.{name}.lora_B.bias"] = torch.randn(rows, generator=generator)
    save_file(tensors, tmp_path / "adapter.safetensors")
    settings = Settings(alpha=ALPHA, rslora=False)
    adapter = read_adapter(open_checkpoint(str(tmp_path / "adapter.safetensors")), settings)
    return {module.name.body: module for module in adapter.modules.values()}, tensors


def renamed(module):
    return module._replace(name=module.name._replace(body="other"))


@pytest.mark.parametrize(("name", "times"), [("mha.in_proj", 1), ("mha.out_proj", 2)])
def test_under_another_name_it_is_plain_lora_of_the_whole_change(name, times, modules):
    """s · up @ down is added once or twice, as PEFT adds it, whatever the readers of other names know of that."""
    module = modules[0][name]
    part = counted_once(read_parts(module), module, renamed(module))[0]
    assert (part.algorithm.title, part.algorithm.idle == part.origin.algorithm.idle) == ("LoRA", times == 2)
    assert part.scale == times * ALPHA / RANK
    up, down = load(part.factors["up"]).double(), load(part.factors["down"]).double()
    source = "mha" if times == 1 else "mha.base_layer.out_proj"
    tensors = {key.removeprefix(f"base_model.model.{source}."): value.double() for key, value in modules[1].items()}
    meant = times * ALPHA / RANK * tensors["lora_B.weight"] @ tensors["lora_A.weight"]
    assert torch.allclose(part.scale * up @ down, meant, rtol=1e-12, atol=0)


def test_the_bias_that_peft_never_adds_is_left_out_and_named(modules):
    module = modules[0]["mha.in_proj"]
    (part,) = counted_once(read_parts(module), module, renamed(module))
    assert part.factors.keys() == {"up", "down"}
    assert part.dropped == ("base_model.model.mha.lora_B.bias",)


def test_the_bias_of_the_output_counts_once(modules):
    module = modules[0]["mha.out_proj"]
    (bias,) = (part for part in counted_once(read_parts(module), module, renamed(module)) if "bias" in part.factors)
    assert bias.scale == ALPHA / RANK


@pytest.mark.parametrize("name", ["mha.in_proj", "mha.out_proj"])
def test_under_the_same_name_all_stays_for_peft(name, modules):
    module = modules[0][name]
    parts = read_parts(module)
    assert counted_once(parts, module, module) is parts
