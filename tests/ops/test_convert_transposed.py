"""convert --base where the base stores weights as (in, out): the change is that of the layer, the other way round."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lora_inspect.errors import LoraInspectError
from lora_inspect.ops.convert import ConvertOptions, convert_to_standard

NAME, WEIGHT = "lora_unet_blocks_0_some_proj", "blocks.0.some.proj.weight"


def dora(folder, out=6, inputs=6):
    """A DoRA in kohya's names, its base as (out, in), and W' - W by the paper's formula in float64."""
    generator = torch.Generator().manual_seed(0)
    down, up = torch.randn(2, inputs, generator=generator), torch.randn(out, 2, generator=generator)
    weight, magnitude = torch.randn(out, inputs, generator=generator), 1 + torch.rand(out, generator=generator)
    tensors = {
        f"{NAME}.lora_down.weight": down,
        f"{NAME}.lora_up.weight": up,
        f"{NAME}.alpha": torch.tensor(1.0),
        f"{NAME}.dora_layer.weight": magnitude,
    }
    save_file(tensors, folder / "in.safetensors")
    combined = weight.double() + 0.5 * up.double() @ down.double()
    changed = magnitude.double()[:, None] * combined / combined.norm(dim=1, keepdim=True)
    return weight, changed - weight.double()


def converted(folder, weight, **options):
    # A Conv1D beside it, so that the names alone do not decide.
    other = {"blocks.0.other.weight": torch.ones(4, 12), "blocks.0.other.bias": torch.ones(12)}
    save_file({WEIGHT: weight.contiguous(), **other}, folder / "base.safetensors")
    base = str(folder / "base.safetensors")
    convert_to_standard(
        str(folder / "in.safetensors"), str(folder / "out.safetensors"), ConvertOptions(base=base, rank=6, **options)
    )
    found = load_file(folder / "out.safetensors")
    return found[f"{NAME}.lora_up.weight"].double() @ found[f"{NAME}.lora_down.weight"].double()


@pytest.mark.numeric
@pytest.mark.parametrize("transposed", [True, False])
def test_a_square_weight_is_taken_as_it_is_said_to_be_stored(transposed, tmp_path):
    weight, change = dora(tmp_path)
    found = converted(tmp_path, weight.T if transposed else weight, transposed={"*": transposed})
    torch.testing.assert_close(found, change, rtol=1e-5, atol=1e-5)


@pytest.mark.numeric
@pytest.mark.parametrize("transposed", [True, False])
def test_another_shape_says_it_itself(transposed, tmp_path):
    weight, change = dora(tmp_path, out=18)
    found = converted(tmp_path, weight.T if transposed else weight)
    torch.testing.assert_close(found, change, rtol=1e-5, atol=1e-5)


def test_what_nothing_decides_is_refused(tmp_path):
    weight, _ = dora(tmp_path)
    with pytest.raises(LoraInspectError, match=r"settle it with --transposed"):
        converted(tmp_path, weight)


def test_an_option_that_contradicts_the_shape_is_refused(tmp_path):
    weight, _ = dora(tmp_path, out=18)
    with pytest.raises(LoraInspectError, match="--transposed yes contradicts"):
        converted(tmp_path, weight, transposed={"*": True})


def test_the_option_is_for_a_base(tmp_path, run):
    dora(tmp_path)
    shown = run("convert", tmp_path / "in.safetensors", "--keep-dora", "--transposed", "yes", "-o", tmp_path / "out")
    assert shown.status == 2
    assert "--transposed describes the weights of --base" in shown.stderr


def test_the_summary_says_what_decided(tmp_path, run):
    weight, _ = dora(tmp_path)
    save_file({WEIGHT: weight}, tmp_path / "base.safetensors")
    words = ("convert", tmp_path / "in.safetensors", "--base", tmp_path / "base.safetensors", "--rank", "6")
    found = run(*words, "--transposed", "no", "-o", tmp_path / "out.safetensors", "--json").json
    assert found["orientation"][WEIGHT]["transposed"] is False


def test_an_orientation_that_the_embedded_config_says_needs_no_remark(tmp_path):
    name = "transformer.attn"
    tensors = {f"{name}.lora_A.weight": torch.ones(4, 6), f"{name}.lora_B.weight": torch.ones(6, 4)}
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["attn"], "fan_in_fan_out": True}
    embedded = {f"transformer.{key}": value for key, value in config.items()}
    save_file(tensors, tmp_path / "in.safetensors", metadata={"lora_adapter_metadata": json.dumps(embedded)})
    result = convert_to_standard(str(tmp_path / "in.safetensors"), str(tmp_path / "out.safetensors"), ConvertOptions())
    assert not result.remarks
    with safe_open(tmp_path / "out.safetensors", "pt") as found:
        assert json.loads(found.metadata()["lora_adapter_metadata"])["transformer.fan_in_fan_out"] is True
