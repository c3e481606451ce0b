"""Forward, merged forward and a float64 formula agree, in float32 and in half precision."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from networks.kernels import half_precision
from networks.lora import LoRAInfModule, LoRAModule

pytestmark = pytest.mark.numeric

KINDS = ("lora", "rslora", "dora", "rslora+dora")
ALPHA = 4.0


def adapted(
    reference, kind, dtype, features_in=128, features_out=192, rank=8, bias=True, strength=0.03, multiplier=1.0
):
    """(base, its weight before anything, module), trained and applied."""
    base = nn.Linear(features_in, features_out, bias=bias).to(dtype).requires_grad_(False)
    module = LoRAInfModule("lora_unet_x", base, multiplier, rank, ALPHA, **reference.options(kind))
    module.apply_to()
    reference.perturb(module, strength)
    return base, base.weight.clone(), module


def product(x, weight, bias):
    result = torch.einsum("...i,oi->...o", x.double(), weight.double())
    return result if bias is None else result + bias.double()


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    features=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    rank=st.integers(1, 9),
    tokens=st.lists(st.integers(1, 5), min_size=0, max_size=3),
    bias=st.booleans(),
    multiplier=st.sampled_from([1.0, 0.5, -1.0]),
    seed=st.integers(0, 1000),
)
def test_float32_forward_is_the_merged_forward(kind, features, rank, tokens, bias, multiplier, seed):
    torch.manual_seed(seed)
    options = {"use_rslora": "rslora" in kind, "use_dora": "dora" in kind.split("+")}
    base = nn.Linear(*features, bias=bias).requires_grad_(False)
    module = LoRAInfModule("lora_unet_x", base, multiplier, rank, ALPHA, **options)
    module.apply_to()
    with torch.no_grad():
        module.lora_up.weight.normal_(std=0.1)
    x = torch.randn(*tokens, features[0])
    output = base(x)
    module.merge_to(module.state_dict())
    merged = base(x)
    assert output.shape == (*tokens, features[1])
    # A single output may cancel to almost nothing, so what is summed sets the scale and not the sum.
    assert (output - merged).abs().max() <= 1e-5 * F.linear(x.abs(), base.weight.abs()).max()


@pytest.mark.parametrize("multiplier", [1.0, 0.5, -0.7])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_float32_is_the_formula(reference, kind, bias, multiplier):
    base, weight, module = adapted(reference, kind, torch.float32, bias=bias, multiplier=multiplier)
    x = torch.randn(3, 5, 128)
    expected = product(x, reference.weight(weight, module, ALPHA, kind, multiplier), base.bias)
    assert (base(x).double() - expected).abs().max() <= 1e-5 * expected.abs().max()
    change = module.get_weight().double()
    assert (change - (reference.weight(weight, module, ALPHA, kind, multiplier) - weight.double())).abs().max() < 1e-6
    output = base(x)
    module.merge_to(module.state_dict())
    assert (base(x) - output).abs().max() <= 1e-5 * output.abs().max()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_rounds_once(reference, kind, dtype, bias):
    # Strong enough for a second rounding of the change to show.
    base, weight, module = adapted(reference, kind, dtype, bias=bias, strength=0.05)
    merged_weight = reference.weight(weight, module, ALPHA, kind)
    x = torch.randn(16, 32, 128).to(dtype)
    expected, bare = product(x, merged_weight, base.bias), product(x, weight, base.bias)
    bare_error = (F.linear(x, weight, base.bias).double() - bare).abs().mean()
    # A larger output rounds more coarsely, whoever rounds it.
    growth = expected.abs().mean() / bare.abs().mean()

    output = base(x)
    assert output.dtype == dtype
    error = (output.double() - expected).abs()
    assert error.mean() <= 1.03 * growth * bare_error

    delta = module.scale * (module.lora_up.weight.double() @ module.lora_down.weight.double())
    room = 2.0**-7 * product(x.abs(), weight.double().abs() + delta.abs(), None if bias is False else base.bias.abs())
    assert (error <= room).all()
    module.merge_to(module.state_dict())
    assert ((base(x).double() - expected).abs() <= room).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_usual_bfloat16_change_costs_at_most_a_tenth(reference, kind):
    base, weight, module = adapted(reference, kind, torch.bfloat16, 256, 384)
    x = torch.randn(256, 256).bfloat16()
    bare_error = (F.linear(x, weight, base.bias).double() - product(x, weight, base.bias)).abs().mean()
    error = (base(x).double() - product(x, reference.weight(weight, module, ALPHA, kind), base.bias)).abs().mean()
    assert error <= 1.1 * bare_error


@pytest.mark.parametrize("kind", KINDS)
def test_devices_that_round_every_product_stay_within_a_tenth(reference, kind, monkeypatch):
    monkeypatch.setattr(half_precision, "keeps_float32", lambda _: False)
    test_a_usual_bfloat16_change_costs_at_most_a_tenth(reference, kind)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_the_first_step_is_the_base(reference, kind, dtype):
    base = nn.Linear(64, 96).to(dtype).requires_grad_(False)
    x = torch.randn(4, 7, 64).to(dtype)
    before = base(x)
    module = LoRAModule("lora_unet_x", base, 1.0, 4, 1.0, **reference.options(kind))
    module.apply_to()
    after = base(x)
    assert after.dtype == dtype
    if dtype == torch.float32 and not module.use_dora:
        assert torch.equal(after, before)
    # float32 rounding, seen through the rounding of the output: hardly an element is on another side.
    assert (after - before).abs().max() <= 2 * torch.finfo(dtype).eps * before.abs().max()
    if dtype != torch.float32:
        assert (after != before).float().mean() < 0.01
    if module.use_dora:
        assert torch.equal(module._gain(), torch.ones(96))
        assert module.dora_layer.weight.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_switched_off_is_the_base_bit_for_bit_and_draws_nothing(reference, kind, dtype):
    base = nn.Linear(32, 48).to(dtype).requires_grad_(False)
    x = torch.randn(5, 32).to(dtype)
    before = base(x)
    dropouts = {} if "dora" in kind else {"dropout": 0.5, "rank_dropout": 0.5}
    module = LoRAModule("lora_unet_x", base, module_dropout=0.5, **dropouts, **reference.options(kind))
    module.apply_to()
    reference.perturb(module)
    state = torch.get_rng_state()
    module.multiplier = 0
    assert torch.equal(base(x), before)
    module.multiplier, module.enabled = 1.0, False
    assert torch.equal(base(x), before)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", KINDS)
def test_merging_at_multiplier_0_leaves_the_weight_alone(reference, kind):
    base, weight, module = adapted(reference, kind, torch.bfloat16, multiplier=0.0)
    module.merge_to(module.state_dict())
    assert torch.equal(base.weight, weight)
    assert module.get_weight().count_nonzero() == 0
    assert module.get_weight(1.0).count_nonzero() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_keeps_the_base_dtype(reference, kind):
    base, weight, module = adapted(reference, kind, torch.float32)
    x = torch.randn(4, 128)
    expected = product(x, reference.weight(weight, module, ALPHA, kind), base.bias)
    with torch.autocast("cpu", torch.bfloat16):
        output = base(x)
    assert output.dtype == torch.bfloat16
    assert (output.double() - expected).abs().max() <= 2.0**-6 * expected.abs().max()


def test_dora_norms_do_not_lose_digits_to_autocast(reference):
    _, _, module = adapted(reference, "dora", torch.float32)
    gain = module._gain()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module._gain(), gain)


def test_dora_norms_follow_the_base_weight(reference):
    base, weight, module = adapted(reference, "dora", torch.float32)
    module._gain()
    with torch.no_grad():
        base.weight.mul_(2.0)
    expected = reference.weight(2.0 * weight, module, ALPHA, "dora")
    x = torch.randn(4, 128)
    assert (base(x).double() - product(x, expected, base.bias)).abs().max() < 1e-5
    base.weight.data = weight.clone().double().float()
    expected = reference.weight(weight, module, ALPHA, "dora")
    assert (base(x).double() - product(x, expected, base.bias)).abs().max() < 1e-5


CONVOLUTIONS = [
    nn.Conv2d(4, 6, 3, padding=1),
    nn.Conv2d(4, 6, 3, stride=2, padding=2, dilation=2),
    nn.Conv2d(4, 6, (3, 1), padding=(1, 0), padding_mode="circular"),
    nn.Conv2d(4, 6, 3, padding="same", padding_mode="reflect", bias=False),
    nn.Conv2d(4, 6, 1),
    nn.Conv2d(4, 8, 3, padding=1, groups=2),
    nn.Conv2d(6, 6, 3, groups=6),
    nn.Conv3d(4, 6, (2, 3, 3), stride=(1, 2, 2)),
    nn.Conv1d(4, 6, 3, padding=1),
]


@pytest.mark.parametrize("convolution", CONVOLUTIONS, ids=str)
def test_convolutions(reference, convolution):
    base = convolution.requires_grad_(False)
    weight = base.weight.clone()
    module = LoRAInfModule("lora_unet_x", base, 0.5, 3, ALPHA, use_rslora=True, use_dora=True)
    assert module.dora_disabled_reason == "non-Linear"
    module.apply_to()
    reference.perturb(module, 0.3)
    x = torch.randn(2, base.in_channels, *[9] * len(base.kernel_size))
    output = base(x)
    expected = reference.weight(weight, module, ALPHA, "rslora", 0.5)
    module.merge_to(module.state_dict())
    assert (output - base(x)).abs().max() <= 1e-5 * output.abs().max()
    assert (base.weight.double() - expected).abs().max() < 1e-6
    base.weight.copy_(weight)
    del base.forward


@pytest.mark.parametrize("merge", [False, True])
def test_split_dims_are_slices_of_their_own(merge):
    base = nn.Linear(10, 9).requires_grad_(False)
    weight = base.weight.clone()
    module = LoRAInfModule("lora_unet_x", base, 1.0, 2, ALPHA, split_dims=[4, 2, 3], use_dora=True)
    assert module.dora_disabled_reason == "split_dims"
    assert module.state_dict()["lora_up.1.weight"].shape == (2, 2)
    module.apply_to()
    delta = []
    for factor in module.factors:
        nn.init.normal_(factor.up.weight)
        delta.append(ALPHA / 2 * factor.up.weight.double() @ factor.down.weight.double())
    if merge:
        module.merge_to(module.state_dict())
    x = torch.randn(2, 3, 10)
    expected = product(x, weight.double() + torch.cat(delta), base.bias)
    assert (base(x).double() - expected).abs().max() < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_bfloat16_bases_are_those_of_the_formula(reference, kind):
    base, weight, module = adapted(reference, kind, torch.bfloat16, 32, 24)
    x = torch.randn(6, 32).bfloat16().requires_grad_()
    target = torch.randn(6, 24)
    (base(x).float() * target).sum().backward()

    up, down = (p.detach().double().requires_grad_() for p in (module.lora_up.weight, module.lora_down.weight))
    wide = x.detach().double().requires_grad_()
    scale = ALPHA / math.sqrt(8) if "rslora" in kind else ALPHA / 8
    combined = weight.double() + scale * up @ down
    linear = wide @ combined.t()
    if module.use_dora:
        magnitude = module.dora_layer.weight.detach().double().requires_grad_()
        linear = linear * (magnitude / combined.detach().norm(dim=1))
    (linear * target.double()).sum().backward()
    pairs = [(module.lora_up.weight.grad, up.grad), (module.lora_down.weight.grad, down.grad), (x.grad, wide.grad)]
    if module.use_dora:
        pairs.append((module.dora_layer.weight.grad, magnitude.grad))
    for found, expected in pairs:
        assert (found.double() - expected).abs().max() <= 2.0**-6 * expected.abs().max()
    assert base.weight.grad is None


@pytest.mark.parametrize("scale_shape", [(1,), (12, 1), (12, 2, 1)])
def test_dora_and_fp8_bases(scale_shape):
    """fp8 weights with the scale that a trainer puts beside them, and its forward in the place of torch's."""
    base = nn.Linear(8, 12).requires_grad_(False)
    scale = torch.rand(scale_shape) + 0.5
    codes = base.weight.to(torch.float8_e4m3fn)
    wide = codes.float()
    values = (wide.view(12, 2, 4) * scale).view(12, 8) if len(scale_shape) == 3 else wide * scale
    base.weight = nn.Parameter(codes, requires_grad=False)
    base.register_buffer("scale_weight", scale)
    base.forward = lambda x: F.linear(x, values, base.bias)
    x = torch.randn(3, 8)
    before = base(x)
    module = LoRAInfModule("lora_unet_x", base, use_dora=True)
    module.apply_to()
    assert torch.allclose(module.dora_layer.weight, values.norm(dim=1))
    assert torch.allclose(base(x), before, atol=1e-6)
    with pytest.raises(ValueError, match="float8"):
        module.merge_to(module.state_dict())
