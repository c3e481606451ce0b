"""HiRA across layouts, and what it is refused for."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_inspect.algorithms import by_name, every

every()


def test_its_rows_are_arranged_as_any_others(run, tmp_path):
    """Query and key of FLUX become rows of one fused layer, and come back as they were."""
    parts = [f"lora_transformer_transformer_blocks_0_attn_to_{leaf}" for leaf in "qk"]
    tensors = {f"{part}.hira_A": torch.randn(2, 8) for part in parts}
    tensors |= {f"{part}.hira_B": torch.randn(8, 2) for part in parts}
    fused, back = tmp_path / "fused.safetensors", tmp_path / "back.safetensors"
    save_file(tensors, tmp_path / "in.safetensors", {"ss_base_model_version": "flux1"})
    assert run("convert", tmp_path / "in.safetensors", "--layout", "original", "-o", fused).status == 0
    assert run("convert", fused, "--layout", "diffusers", "-o", back).status == 0
    joined, found = load_file(fused), load_file(back)
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    product = joined[f"{name}.hira_B"] @ joined[f"{name}.hira_A"]
    expected = [tensors[f"{part}.hira_B"] @ tensors[f"{part}.hira_A"] for part in parts]
    torch.testing.assert_close(product, torch.cat([*expected, torch.zeros(8, 8)]))
    assert all(torch.equal(found[key], tensor) for key, tensor in tensors.items())


@pytest.mark.parametrize("name", ["hira", "hira_embedding"])
@pytest.mark.parametrize(("down", "up"), [((4, 12), (20, 3)), ((4,), (20, 4)), ((0, 12), (20, 0))])
def test_factors_without_a_product(name, down, up):
    assert by_name(name).formula.check({"down": down, "up": up})


def test_weights_that_it_does_not_fit():
    shapes = {"down": (4, 12), "up": (20, 4)}
    assert by_name("hira").formula.misfit(shapes, (12, 20)) == "changes a weight of [20, 12]"
    assert "12 rows of 20 numbers" in by_name("hira_embedding").formula.misfit(shapes, (12, 20))
