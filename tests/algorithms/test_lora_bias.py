"""Whose scale the bias of an up layer has, where it lands, and what becomes of one that stands alone."""

import pytest
import torch
from adapters import IN, OUT, base, lora, split
from safetensors.torch import load_file, save_file

from lora_inspect.errors import LoraInspectError
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.ops.convert import ConvertOptions, convert_to_standard
from lora_inspect.ops.merge import MergeOptions, merge, plan_merge
from lora_inspect.reading.adapter import read_adapter
from lora_inspect.reading.model.settings import Settings

NAME = "lora_unet_blocks_0_attn_q"
BIAS = ("F32", (OUT,), 2.0)


@pytest.fixture
def read(write_safetensors):
    def read_tensors(tensors, **settings):
        return read_adapter(open_checkpoint(str(write_safetensors(tensors))), Settings(**settings))

    return read_tensors


def wrong(adapter):
    return [problem.message for problem in adapter.problems if problem.severity == "error"]


def scales(adapter):
    return {contribution.algorithm.name: contribution.scale for contribution in adapter.contributions}


@pytest.mark.parametrize("first", [True, False], ids=["bias first", "bias last"])
def test_its_scale_is_that_of_the_lora_wherever_it_stands_in_the_file(first, read):
    tensors = lora(NAME, rank=16, alpha=8.0)
    bias = {f"{NAME}.lora_up.bias": BIAS}
    adapter = read({**bias, **tensors} if first else {**tensors, **bias})
    assert scales(adapter) == {"lora": 0.5, "lora_bias": 0.5}
    assert wrong(adapter) == []


def test_its_scale_is_rank_stabilised_with_the_lora(read):
    tensors = lora(NAME, rank=16, alpha=8.0, **{"lora_up.bias": BIAS})
    assert scales(read(tensors, rslora=True)) == {"lora": 2.0, "lora_bias": 2.0}


def test_its_scale_is_unknown_with_the_lora_and_named_once(read):
    name = "base_model.model.blocks.0.attn.q"
    tensors = lora(name, rank=1, alpha=None, spelling="peft", **{"lora_B.bias": BIAS})
    adapter = read(tensors)
    assert scales(adapter) == {"lora": None, "lora_bias": None}
    assert adapter.open == ("alpha",)
    (message,) = wrong(adapter)
    assert message.startswith(f"the scale of {name} is unknown: PEFT keeps alpha")
    assert scales(read(tensors, alpha=3.0)) == {"lora": 3.0, "lora_bias": 3.0}


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({}, "its module has no LoRA to give it a scale"),
        (split(NAME), "next to a LoRA of several slices"),
        (lora(NAME, **{"dora_layer.weight": ("F32", (OUT,), 1.0)}), "or with a magnitude"),
    ],
    ids=["alone", "slices", "DoRA"],
)
def test_one_that_no_lora_bears_is_an_error_by_key(tensors, says, read):
    adapter = read({**tensors, f"{NAME}.lora_up.bias": BIAS})
    (message,) = wrong(adapter)
    assert message.startswith(f"{NAME}.lora_up.bias ")
    assert says in message
    assert adapter.unclaimed == (f"{NAME}.lora_up.bias",)


@pytest.mark.parametrize("shape", [(), (OUT, 1), (0,)])
def test_one_that_is_no_vector_is_an_error(shape, read):
    (message,) = wrong(read(lora(NAME, **{"lora_up.bias": ("F32", shape, 2.0)})))
    assert "is not a vector" in message


def planned(write_safetensors, tensors, weights):
    adapter = write_safetensors(tensors, name="adapter.safetensors")
    return plan_merge(str(write_safetensors(weights, name="base.safetensors")), [(str(adapter), 1.0)], MergeOptions())


def test_a_layer_without_a_bias_is_refused_as_peft_refuses_to_merge(write_safetensors):
    tensors = lora(NAME, **{"lora_up.bias": BIAS})
    with pytest.raises(LoraInspectError, match=f"{NAME} changes a bias, but its layer in"):
        planned(write_safetensors, tensors, base(1))


def test_a_bias_of_another_size_is_refused_by_name(write_safetensors):
    tensors = lora(NAME, **{"lora_up.bias": BIAS})
    weights = base(1) | {"blocks.0.attn.q.bias": ("F32", (OUT + 1,), 1.0)}
    with pytest.raises(LoraInspectError, match=r"attn_q changes a bias of 6 numbers, but .*bias of .* has \[7\]"):
        planned(write_safetensors, tensors, weights)


@pytest.mark.numeric
@pytest.mark.parametrize("module", ["transformer.blocks.0.attn.q", NAME], ids=["factors", "alpha"])
@pytest.mark.parametrize("alpha", [2.0, -3.0])
def test_its_standard_form_has_the_scale_where_readers_look_for_it(module, alpha, tmp_path):
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    spelling = ("lora_A", "lora_B") if module != NAME else ("lora_down", "lora_up")
    weights = {"blocks.0.attn.q.weight": random(OUT, IN), "blocks.0.attn.q.bias": random(OUT)}
    tensors = {
        f"{module}.{spelling[0]}.weight": random(4, IN),
        f"{module}.{spelling[1]}.weight": random(OUT, 4),
        f"{module}.{spelling[1]}.bias": random(OUT),
        f"{module}.alpha": torch.tensor(alpha, dtype=torch.float64),
    }
    save_file(weights, tmp_path / "base.safetensors")
    save_file(tensors, tmp_path / "adapter.safetensors")
    convert_to_standard(str(tmp_path / "adapter.safetensors"), str(tmp_path / "out.safetensors"), ConvertOptions())
    bias = tensors[f"{module}.{spelling[1]}.bias"]
    expected = weights["blocks.0.attn.q.bias"] + alpha / 4 * bias
    for adapter in ("adapter", "out"):
        plan = plan_merge(
            str(tmp_path / "base.safetensors"), [(str(tmp_path / f"{adapter}.safetensors"), 1.0)], MergeOptions()
        )
        merge(plan, str(tmp_path / "merged.safetensors"), force=True)
        found = load_file(tmp_path / "merged.safetensors")["blocks.0.attn.q.bias"]
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
