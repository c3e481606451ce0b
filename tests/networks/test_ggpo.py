"""GGPO's noise and norms against formulas in float64, with the random draws in the order of sd-scripts.

`network_of` may make a network of networks/lora_flux.py in sd-scripts, which fits all formulas of `FORMULAS`.
"""

import copy

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from networks import adapt, loha, lora_flux
from networks.modules.lora_module import LoRAModule
from networks.network_args import parse

pytestmark = pytest.mark.numeric

SIGMA, BETA = 0.3, 2.0
GGPO = {"ggpo_sigma": str(SIGMA), "ggpo_beta": str(BETA)}
WIDTH = 16


class SingleStreamBlock(nn.Module):
    def __init__(self, width=WIDTH):
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(width, 7 * width), nn.Linear(7 * width, width)

    def forward(self, x):
        return x + self.linear2(torch.tanh(self.linear1(x)))


class Flux(nn.Module):
    def __init__(self, width=WIDTH):
        super().__init__()
        self.single_blocks = nn.ModuleList([SingleStreamBlock(width)])
        self.requires_grad_(False)

    def forward(self, x):
        return self.single_blocks[0](x)


def network_of(model, **options):
    return lora_flux.create_network(1.0, 4, 2.0, None, [None, None], model, **options)


def trained(options=GGPO, width=WIDTH, seed=1):
    """A model, and its network with factors as after some training."""
    torch.manual_seed(seed)
    model = Flux(width)
    network = network_of(model, **options)
    network.apply_to([None, None], model, False, True)
    network.train()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model, network


def stepped(options=GGPO, width=WIDTH):
    """The same with a gradient, and with the calls of the trainer after it."""
    model, network = trained(options, width)
    model(torch.randn(3, 5, width)).square().mean().mul(20).backward()
    network.update_grad_norms()
    network.update_norms()
    return model, network


def factors(module):
    return module.lora_up.weight.double(), module.lora_down.weight.double()


def row_norms(matrix):
    return torch.linalg.vector_norm(matrix.double(), dim=1, keepdim=True)


def base_norm(base):
    """The mean norm of all rows, which are fewer than 1000 here."""
    return row_norms(base.weight).mean()


def layers(model, network):
    """(module, its base layer) in the order of the network."""
    block = model.single_blocks[0]
    bases = {"linear1": block.linear1, "linear2": block.linear2}
    return [(module, bases[module.lora_name.rpartition("_")[2]]) for module in network.unet_loras]


def weight_norm_rows(module):
    up, down = factors(module)
    return row_norms(up @ down)


def combined_norm_rows(module, base):
    return (base_norm(base) ** 2 + weight_norm_rows(module) ** 2).sqrt()


def gradient_norm_rows(module):
    up, down = factors(module)
    change = up @ module.lora_down.weight.grad.double() + module.lora_up.weight.grad.double() @ down
    return row_norms(module.scale * change)


def check_norms():
    """Means over rows, of which those of gradients are rounded to the bfloat16 of autocast on a CPU."""
    model, network = stepped()
    pairs = layers(model, network)
    expected = torch.stack([weight_norm_rows(module).mean(0) for module, _ in pairs])
    torch.testing.assert_close(network.weight_norms().double(), expected, rtol=1e-5, atol=1e-7)
    expected = torch.stack([combined_norm_rows(*pair).mean(0) for pair in pairs])
    torch.testing.assert_close(network.combined_weight_norms().double(), expected, rtol=1e-5, atol=1e-7)
    expected = torch.stack([gradient_norm_rows(module).mean(0) for module, _ in pairs])
    torch.testing.assert_close(network.grad_norms().double(), expected, rtol=0.02, atol=0)


def check_noise():
    """x @ Pᵀ of a P that the seed draws, with no part of the multiplier or the scale, is added in one layer."""
    model, network = stepped()
    network.set_multiplier(0.5)
    for module, base in layers(model, network):
        x = torch.randn(2, 3, base.in_features)
        torch.manual_seed(5)
        noisy = base(x).double()
        torch.manual_seed(5)
        drawn = torch.randn(base.weight.shape).double()
        deviations = SIGMA * combined_norm_rows(module, base) + BETA * gradient_norm_rows(module) ** 2
        noise = drawn * deviations / base.out_features**0.5
        up, down = factors(module)
        plain = x.double() @ (base.weight.double() + 0.5 * module.scale * up @ down).T + base.bias.double()
        error = torch.linalg.vector_norm(noisy - plain - x.double() @ noise.T)
        assert error < 0.02 * torch.linalg.vector_norm(noisy - plain)
        assert not torch.equal(base(x), base(x))


def check_gradient():
    """The noise is a constant of the step, also for the input of its layer."""
    model, network = stepped()
    base = layers(model, network)[0][1]
    x = torch.randn(2, 3, base.in_features, requires_grad=True)
    gradients = []
    for seed in (5, 6):
        network.zero_grad()
        torch.manual_seed(seed)
        # Linear in the output, so that its gradient does not depend on the noise.
        [of_input] = torch.autograd.grad(base(x).sum(), [x])
        gradients.append(of_input)
    torch.testing.assert_close(*gradients)


def check_modes():
    """Only training mode updates and adds noise, and only once both norms exist."""
    model, network = trained()
    x = torch.randn(2, 3, WIDTH)
    before = model(x)
    assert torch.equal(model(x), before)
    assert (network.weight_norms(), network.grad_norms(), network.combined_weight_norms()) == (None, None, None)
    model(x).square().mean().backward()
    network.update_norms()
    assert torch.equal(model(x), before)
    network.eval()
    network.update_grad_norms()
    assert network.grad_norms() is None
    network.train()
    network.update_grad_norms()
    assert not torch.equal(model(x), before)
    network.eval()
    assert torch.equal(model(x), before)


def check_draws():
    """Each module draws its two factors, then down again, then an order of the rows of its base."""
    torch.manual_seed(3)
    model = Flux(200)
    torch.manual_seed(4)
    network = network_of(model, **GGPO)
    after = torch.randn(3)
    torch.manual_seed(4)
    means = []
    for module, base in layers(model, network):
        down = nn.Linear(base.in_features, 4, bias=False)
        nn.Linear(4, base.out_features, bias=False)
        nn.init.kaiming_uniform_(down.weight, a=5**0.5)
        torch.testing.assert_close(module.lora_down.weight, down.weight, rtol=0, atol=0)
        rows = torch.randperm(base.out_features)[:1000]
        means.append(row_norms(base.weight[rows]).mean())
    assert torch.equal(torch.randn(3), after)
    network.apply_to([None, None], model, False, True)
    network.train()
    network.update_norms()  # The change is zero.
    found = network.combined_weight_norms().flatten().double()
    torch.testing.assert_close(found, torch.stack(means), rtol=1e-6, atol=0)


FORMULAS = (check_norms, check_noise, check_gradient, check_modes, check_draws)


@pytest.mark.parametrize("formula", FORMULAS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_ggpo_fits_formula(formula):
    formula()


def test_gradient_norms_stay_without_gradients():
    _, network = stepped()
    before = network.grad_norms()
    network.zero_grad(set_to_none=True)
    network.update_grad_norms()
    assert torch.equal(network.grad_norms(), before)


@pytest.mark.parametrize(
    "is_off", [lambda network: network.set_multiplier(0), lambda network: network.set_enabled(False)]
)
def test_noise_is_off_with_change(is_off):
    model, network = stepped()
    x = torch.randn(2, 3, WIDTH)
    is_off(network)
    torch.testing.assert_close(model(x), Flux.forward(plain_copy(model, network), x), rtol=0, atol=0)


def plain_copy(model, network):
    network.remove()
    copied = copy.deepcopy(model)
    network.apply_to(None, model)
    return copied


KINDS = {
    "rslora": {"rslora": True},
    "dora": {"dora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_noise_of_other_kinds_follows_their_change(kind):
    """The norms are those of the weight as the kind changes it, without the scale and the magnitude."""
    torch.manual_seed(2)
    layer = nn.Linear(12, 20)
    before, x = layer.weight.clone().double(), torch.randn(7, 12)
    network = adapt(nn.Sequential(layer), rank=4, alpha=2.0, ggpo_sigma=SIGMA, ggpo_beta=0.0, **KINDS[kind])
    network.train()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1 + 0.1 * torch.randn_like(parameter))
            parameter.add_(0.1 * torch.randn_like(parameter))
    network.eval()
    plain = layer(x).double()
    network.train()
    layer(x).square().mean().backward()
    network.update_grad_norms()
    network.update_norms()
    [module] = network.loras
    tensors = module.file_tensors()
    change = tensors["lora_up.weight"].double() @ tensors["lora_down.weight"].double()
    norms = (row_norms(before).mean() ** 2 + row_norms(change) ** 2).sqrt()
    torch.testing.assert_close(network.combined_weight_norms()[0, 0].double(), norms.mean(), rtol=1e-5, atol=0)
    torch.manual_seed(5)
    noisy = layer(x).double()
    torch.manual_seed(5)
    noise = torch.randn(20, 12).double() * SIGMA * norms / 20**0.5
    torch.testing.assert_close(noisy - plain, x.double() @ noise.T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(6, 8, 3, padding=1, stride=2),
        nn.Conv2d(6, 8, 1),
        nn.Conv2d(6, 8, 3, groups=2, padding=1, padding_mode="circular"),
        nn.Conv1d(6, 8, 3),
    ],
    ids=["kernel", "1x1", "grouped", "conv1d"],
)
def test_noise_of_convolution_has_shape_of_weight(layer):
    torch.manual_seed(2)
    layer = copy.deepcopy(layer)
    x = torch.randn(2, 6, *[5] * len(layer.kernel_size))
    network = adapt(nn.Sequential(layer), rank=2, ggpo_sigma=SIGMA, ggpo_beta=0.0)
    network.train()
    layer(x).square().mean().backward()
    network.update_grad_norms()
    network.update_norms()
    torch.manual_seed(5)
    found = layer(x)
    network.remove()
    torch.manual_seed(5)
    norm = torch.linalg.vector_norm(layer.weight.flatten(1), dim=1).mean()
    with torch.no_grad():
        layer.weight.add_(torch.randn(layer.weight.shape) * SIGMA * norm / 8**0.5)
    torch.testing.assert_close(found, layer(x), rtol=1e-4, atol=1e-5)


def test_noise_of_transposed_weight_follows_its_outputs():
    torch.manual_seed(2)
    layer, x = Conv1D(20, 12), torch.randn(7, 12)
    network = adapt(nn.Sequential(layer), rank=2, ggpo_sigma=SIGMA, ggpo_beta=0.0)
    network.train()
    plain = layer(x).double()
    layer(x).square().mean().backward()
    network.update_grad_norms()
    network.update_norms()
    torch.manual_seed(5)
    noisy = layer(x).double()
    torch.manual_seed(5)
    noise = torch.randn(20, 12).double() * SIGMA * row_norms(layer.weight.T).mean() / 20**0.5
    torch.testing.assert_close(noisy - plain, x.double() @ noise.T, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_output_stays_in_dtype_of_base(dtype, autocast):
    torch.manual_seed(2)
    layer = nn.Linear(16, 16).to(torch.float32 if autocast else dtype)
    x = torch.randn(4, 16).to(layer.weight.dtype)
    network = adapt(nn.Sequential(layer), rank=2, **GGPO)
    network.train()
    with torch.autocast("cpu", dtype=dtype, enabled=autocast):
        plain = layer(x)
        plain.float().square().mean().backward()
        network.update_grad_norms()
        network.update_norms()
        noisy = layer(x)
    assert (noisy.dtype, noisy.isfinite().all().item()) == (dtype, True)
    assert not torch.equal(noisy, plain)


@pytest.mark.parametrize("name", GGPO)
def test_one_option_alone_has_no_effect(name, caplog):
    draws = []
    for options in ({}, {name: GGPO[name]}):
        model, network = stepped(options)
        x = torch.randn(2, 3, WIDTH)
        assert torch.equal(model(x), model(x))
        assert (network.weight_norms(), network.grad_norms(), network.combined_weight_norms()) == (None, None, None)
        draws.append(x)
    assert torch.equal(*draws)
    other = "ggpo_beta" if name == "ggpo_sigma" else "ggpo_sigma"
    assert f"{name}: no effect without {other}" in caplog.text


@pytest.mark.parametrize("option", [{"split_qkv": "True"}, {"split_dims": "{'.*linear1': [16, 96]}"}])
def test_ggpo_with_slices_is_refused(option):
    with pytest.raises(ValueError, match=r"ggpo_sigma and ggpo_beta cannot be combined with split_qkv and split_dims"):
        network_of(Flux(), **GGPO, **option)
    network_of(Flux(), ggpo_sigma="1", **option)


def test_ggpo_with_weights_in_slices_is_refused():
    model = Flux()
    weights = network_of(model, split_dims="{'.*linear1': [16, 96]}").state_dict()
    with pytest.raises(ValueError, match=r"linear1: ggpo_sigma and ggpo_beta cannot be combined with split_qkv"):
        lora_flux.create_arch_network_from_weights(1.0, weights, unet=model, **GGPO)


def test_network_of_weights_has_noise():
    model = Flux()
    weights = network_of(model).state_dict()
    network = lora_flux.create_arch_network_from_weights(1.0, weights, unet=model, **GGPO)
    assert all(module.perturbation for module in network.unet_loras)


@pytest.mark.parametrize("option", [{"ggpo_sigma": "-1"}, {"ggpo_beta": "nan"}, {"ggpo_sigma": "much"}])
def test_option_without_number_is_refused(option):
    [name] = option
    with pytest.raises(ValueError, match=f"^{name}='"):
        parse(option)


def test_base_on_meta_device_is_refused():
    with torch.device("meta"):
        model = Flux()
    with pytest.raises(ValueError, match="linear1: ggpo_sigma and ggpo_beta need the base's weights"):
        network_of(model, **GGPO)


def test_scaled_fp8_base_counts_with_its_scale():
    layer = nn.Linear(8, 8, bias=False)
    values = layer.weight.detach().clone()
    layer.weight = nn.Parameter((values * 64).to(torch.float8_e4m3fn), requires_grad=False)
    layer.register_buffer("scale_weight", torch.tensor([1 / 64]))
    module = LoRAModule("layer", layer, 1.0, 2, ggpo_sigma=1.0, ggpo_beta=1.0)
    decoded = layer.weight.double() / 64
    module.update_norms()
    torch.testing.assert_close(module.perturbation.combined_norms.double(), row_norms(decoded).mean().expand(8, 1))


def test_state_dict_has_no_norms():
    _, network = stepped()
    plain = trained({})[1]
    assert network.state_dict().keys() == plain.state_dict().keys()


def test_log_counts_modules(caplog):
    caplog.set_level("INFO")
    network_of(Flux(), **GGPO)
    assert "GGPO enabled on 2 modules" in caplog.text


def test_other_algorithm_refuses_ggpo():
    with pytest.raises(ValueError, match="ggpo_beta is not for LoHa"):
        loha.create_network(1.0, 4, 2.0, None, None, Flux(), architecture="flux", **GGPO)
