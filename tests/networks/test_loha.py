"""LoHa against its formula and against lycoris-lora, whose forward applies the scale once (its merge does it twice)."""

import importlib
import math
import re

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from networks.build.network import LoRANetwork
from networks.loha import LoHaInfModule, LoHaModule, merge_weights_to_tensor

pytestmark = pytest.mark.numeric

LAYERS = {
    "linear": lambda: nn.Linear(10, 14),
    "linear without bias": lambda: nn.Linear(10, 14, bias=False),
    "conv": lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=1),
    "1x1": lambda: nn.Conv2d(4, 6, 1),
    "grouped": lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1),
    "circular": lambda: nn.Conv2d(4, 6, (3, 1), padding=(1, 0), padding_mode="circular"),
    "conv3d": lambda: nn.Conv3d(4, 6, (1, 2, 2), stride=(1, 2, 2)),
}


def input_of(base):
    if isinstance(base, nn.Linear):
        return torch.randn(2, 5, base.in_features)
    return torch.randn(2, base.in_channels, *[8] * len(base.kernel_size))


def built(base, module_class=LoHaModule, rank=3, alpha=2.0, **options):
    """A module that has learned something, on a frozen base."""
    module = module_class("layer", base.requires_grad_(False), 1.0, rank, alpha, **options)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    module.apply_to()
    return module


def oracle(module):
    a, b, c, d = (getattr(module, f"hada_{role}").double() for role in ("w1_a", "w1_b", "w2_a", "w2_b"))
    return torch.einsum("or,ri,os,si->oi", a, b, c, d).detach() * (float(module.alpha) / module.lora_dim)


@pytest.mark.parametrize("kind", LAYERS)
def test_the_first_step_is_the_base(kind):
    base = LAYERS[kind]()
    x = input_of(base)
    before = base(x)
    module = LoHaModule("layer", base, lora_dim=3)
    module.apply_to()
    assert torch.equal(base(x), before)
    assert module.hada_w2_a.abs().max() == 0
    assert all(parameter.abs().min() > 0 for name, parameter in module.named_parameters() if name != "hada_w2_a")


@pytest.mark.parametrize("multiplier", [1.0, 0.3, -2.0])
@pytest.mark.parametrize("kind", LAYERS)
def test_forward_delta_and_merge_are_the_formula(kind, multiplier):
    base = LAYERS[kind]().double()
    module = built(base, LoHaInfModule).double()
    module.multiplier = multiplier
    x = input_of(base).double()
    runtime = base(x)
    expected = multiplier * oracle(module).view(base.weight.shape)
    assert torch.allclose(module.get_weight(), expected, rtol=1e-12)
    assert torch.allclose(module.get_weight(1.0), oracle(module).view(base.weight.shape), rtol=1e-12)
    before = base.weight.clone()
    module.merge_to(module.state_dict())
    assert torch.allclose(base.weight, before + expected, rtol=1e-12)
    assert torch.allclose(base(x), runtime, rtol=1e-12)


@pytest.mark.parametrize("kind", ["linear", "linear without bias", "conv", "1x1", "grouped", "conv3d"])
def test_lycoris_makes_the_same_of_the_same_factors(kind):
    lycoris = importlib.import_module("lycoris.modules.loha")
    base, other = LAYERS[kind](), LAYERS[kind]()
    other.load_state_dict(base.state_dict())
    module = built(base)
    theirs = lycoris.LohaModule("layer", other.requires_grad_(False), 1.0, 3, 2.0)
    theirs.load_state_dict(module.state_dict(), strict=True)
    theirs.apply_to()
    x = input_of(base)
    ours, reference = base(x), other(x)
    assert torch.allclose(ours, reference, rtol=1e-5, atol=1e-5 * reference.abs().max().item())
    ours.square().sum().backward()
    reference.square().sum().backward()
    for name, parameter in module.named_parameters():
        expected = getattr(theirs, name).grad
        assert torch.allclose(parameter.grad, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item()), name


def test_keys_and_shapes_are_those_of_musubi_and_lycoris():
    shapes = {key: tuple(tensor.shape) for key, tensor in LoHaModule("layer", nn.Conv2d(4, 6, 3)).state_dict().items()}
    side, base = (6, 4), (4, 36)
    assert shapes == {"alpha": (), "hada_w1_a": side, "hada_w1_b": base, "hada_w2_a": side, "hada_w2_b": base}


# U-27: a half-precision base beside float32 factors, without autocast.
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_half_precision_bases(kind, dtype, autocast):
    base = LAYERS[kind]().to(dtype)
    module = built(base)
    x = input_of(base).to(dtype)
    with torch.autocast("cpu", dtype, enabled=autocast):
        output = base(x)
    assert output.dtype == dtype
    weight = base.weight.double() + oracle(module).view(base.weight.shape)
    reference = LAYERS[kind]().double()
    reference.load_state_dict({"weight": weight, "bias": base.bias.double()})
    error = (output.double() - reference(x.double())).abs().max() / output.double().abs().max()
    # Autocast computes the delta itself in half precision.
    assert error < (4 if autocast else 1) * 2 ** (-7 if dtype == torch.bfloat16 else -10)
    output.float().sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in module.parameters())


def test_switches():
    base = LAYERS["linear"]()
    x = input_of(base)
    before = base(x)
    module = built(base)
    module.multiplier = 0
    assert torch.equal(base(x), before)
    module.multiplier, module.enabled = 1.0, False
    assert torch.equal(base(x), before)


def test_dropouts_act_in_training_alone_and_keep_the_mean():
    base = LAYERS["linear"]()
    x = input_of(base)
    module = built(base, dropout=0.25, rank_dropout=0.25)
    module.eval()
    change = base(x) - module.org_forward(x)
    module.train()
    draws = torch.stack([base(x) - module.org_forward(x) for _ in range(4000)])
    assert torch.allclose(draws.mean(0), change, atol=0.05 * change.abs().max().item())
    # Whole outputs are dropped, of all samples alike.
    assert any((draw.abs().amax((0, 1)) < 1e-6).any() for draw in draws[:50])


def test_module_dropout():
    base = LAYERS["linear"]()
    x = input_of(base)
    before = base(x)
    built(base, module_dropout=0.5)
    same = sum(torch.equal(base(x), before) for _ in range(200))
    assert 60 < same < 140


def test_max_norm_shrinks_the_delta_to_the_limit():
    module = built(LAYERS["conv"]())
    norm = oracle(module).norm()
    assert math.isclose(module.change_norm(), norm, rel_tol=1e-5)
    module.shrink(torch.tensor(0.25))
    assert math.isclose(oracle(module).norm(), norm / 4, rel_tol=1e-5)


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
    module = built(LAYERS["linear"](), LoHaInfModule)
    tensors = module.state_dict()
    with pytest.raises(ValueError, match=re.escape(f"layer: {key.removeprefix('hada_')} missing")):
        module.merge_to({other: tensor for other, tensor in tensors.items() if other != key})
    with pytest.raises(ValueError, match="layer: w"):
        module.merge_to({**tensors, key: torch.zeros(5, 7)})


def test_one_weight_at_a_time():
    """The call of musubi-tuner's loader: keys that were used leave the set, other weights come back as they are."""
    module = built(LAYERS["conv"](), LoHaInfModule, alpha=0.75)
    weight, before = module.org_module.weight, module.org_module.weight.clone()
    weights = {f"layer.{key}": tensor for key, tensor in module.state_dict().items()}
    weights["layer_1.alpha"] = torch.tensor(1.0)
    left = set(weights)
    assert merge_weights_to_tensor(weight, "other", weights, left, 1.0, "cpu") is weight
    assert left == set(weights)
    merged = merge_weights_to_tensor(weight, "layer", weights, left, 0.5, "cpu")
    assert left == {"layer_1.alpha"}
    module.multiplier = 0.5
    module.merge_to(module.state_dict())
    assert torch.equal(merged, module.org_module.weight)
    assert torch.allclose(merged - before, 0.5 * oracle(module).view(before.shape).float(), atol=1e-6)
    half = merge_weights_to_tensor(before.bfloat16(), "layer", weights, set(weights), 0.5, "cpu")
    assert half.dtype == torch.bfloat16
