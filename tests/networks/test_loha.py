"""What LoHa's modules have of their own; what they compute stands in test_delta_modules.py."""

import re

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from networks.loha import LoHaInfModule, LoHaModule
from networks.network.network import LoRANetwork


def test_the_second_product_starts_at_zero_as_in_lycoris():
    factors = dict(LoHaModule("layer", nn.Linear(10, 14), lora_dim=3).named_parameters())
    assert not factors.pop("hada_w2_a").any()
    assert all(factor.all() for factor in factors.values())


def test_keys_and_shapes_are_those_of_musubi_and_lycoris():
    shapes = {key: tuple(tensor.shape) for key, tensor in LoHaModule("layer", nn.Conv2d(4, 6, 3)).state_dict().items()}
    side, base = (6, 4), (4, 36)
    assert shapes == {"alpha": (), "hada_w1_a": side, "hada_w1_b": base, "hada_w2_a": side, "hada_w2_b": base}


def test_a_network_of_them(make_model, tmp_path):
    model, x = make_model(), torch.randn(3, 8, 12)
    network = LoRANetwork(["Block"], "lora_unet", None, model, 1.0, 4, 0, module_class=LoHaModule)
    network.apply_to(None, model)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    shrunk, _, largest = network.apply_max_norm_regularization(0.5)
    assert shrunk > 0
    assert largest <= 0.5 + 1e-6
    groups, descriptions = network.prepare_optimizer_params(unet_lr=1e-3)
    assert descriptions == ["unet"]
    assert len(groups[0]["params"]) == 4 * len(network.unet_loras)
    file = str(tmp_path / "adapter.safetensors")
    network.save_weights(file, torch.bfloat16, None)
    weights = load_file(file)
    assert weights["lora_unet_blocks_0_conv.alpha"] == 4.0
    assert weights["lora_unet_blocks_0_conv.alpha"].dtype == torch.float32
    again = LoRANetwork(["Block"], "lora_unet", None, make_model(), 1.0, 4, 1, module_class=LoHaModule)
    again.load_weights(file)
    assert {lora.scale for lora in again.unet_loras} == {1.0}
    again.load_state_dict(again.state_dict(), strict=True)
    assert torch.isfinite(model(x)).all()


@pytest.mark.parametrize("key", ["hada_w1_b", "hada_w2_a"])
def test_factors_that_are_missing_or_do_not_fit_are_errors(key):
    module = LoHaInfModule("layer", nn.Linear(10, 14), lora_dim=3)
    tensors = module.state_dict()
    with pytest.raises(ValueError, match=re.escape(f"layer: {key.removeprefix('hada_')} missing")):
        module.merge_to({other: tensor for other, tensor in tensors.items() if other != key})
    with pytest.raises(ValueError, match="layer: w"):
        module.merge_to({**tensors, key: torch.zeros(5, 7)})


@pytest.mark.parametrize("rank", [1, 4, 8])
def test_a_seed_starts_elsewhere_than_musubi_s(rank):
    """musubi-tuner draws the first pair and the second factor of the other one; nothing for the factor that is zero."""
    torch.manual_seed(11)
    w1_a, w1_b, w2_b = 0.1 * torch.randn(14, rank), torch.randn(rank, 10), torch.randn(rank, 10)
    after = torch.rand(1)
    base = nn.Linear(10, 14)
    torch.manual_seed(11)
    factors = dict(LoHaModule("layer", base, lora_dim=rank).named_parameters())
    assert torch.equal(torch.rand(1), after)
    assert torch.allclose(factors["hada_w1_a"], w1_a)
    assert torch.equal(factors["hada_w1_b"], w1_b)
    assert torch.equal(factors["hada_w2_b"], w2_b)
    assert not factors["hada_w2_a"].any()
