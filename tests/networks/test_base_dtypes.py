"""Bases in every dtype that trainers hold them in, cast before or after `apply_to`, with autocast and without."""

import pytest
import torch
from bases import FP8, dequantised, quantise
from torch import nn

from networks.kernels.base_weight import squares_and_products, true_weight
from networks.modules.lora_module import LoRAModule

pytestmark = pytest.mark.numeric

KINDS = ("lora", "rslora", "dora", "rslora+dora")
IN, OUT, ALPHA = 64, 48, 4.0
PLAIN = (torch.float32, torch.bfloat16, torch.float16)
SCALES = {"number": (), "tensor": (1,), "row": (OUT, 1), "block": (OUT, 4, 1)}


def make(reference, kind, base, trained):
    module = LoRAModule("lora_unet_x", base, 1.0, 4, ALPHA, **reference.options(kind))
    module.apply_to()
    if trained:
        reference.perturb(module, 0.05)
    return module


def expected_output(reference, kind, module, weight, bias, x):
    merged = reference.weight(weight, module, ALPHA, kind)
    return x.double() @ merged.t() + bias.double()


def assert_trains(module, output, dtype):
    assert output.dtype == dtype
    output.float().square().mean().backward()
    for parameter in module.parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()
    assert module.org_module.weight.grad is None


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("dtype", PLAIN)
@pytest.mark.parametrize("kind", KINDS)
def test_plain_bases(reference, kind, dtype, trained, autocast):
    base = nn.Linear(IN, OUT).to(dtype).requires_grad_(False)
    x = torch.randn(5, IN).to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        before = base(x)
        module = make(reference, kind, base, trained)
        output = base(x)
    expected = expected_output(reference, kind, module, base.weight, base.bias, x)
    coarsest = torch.bfloat16 if autocast else dtype
    assert (output.double() - expected).abs().max() <= 8 * torch.finfo(coarsest).eps * expected.abs().max()
    if not trained:
        assert (output - before).abs().max() <= 2 * torch.finfo(before.dtype).eps * before.abs().max()
    assert_trains(module, output, before.dtype)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", FP8)
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_scaled_fp8_bases(reference, kind, dtype, scale, autocast):
    base = nn.Linear(IN, OUT).bfloat16().requires_grad_(False)
    quantise(base, dtype, SCALES[scale], torch.bfloat16)
    assert base.scale_weight.shape == SCALES[scale]
    x = torch.randn(5, IN).bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        before = base(x)
        module = make(reference, kind, base, trained=False)
        first = base(x)
    if module.use_dora:
        assert torch.allclose(magnitude(module), true_weight(base, torch.float32).norm(dim=1))
        assert torch.equal(module._gain(), torch.ones(OUT))
    reference.perturb(module, 0.05)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):  # anew, as it keeps casts of what it has seen
        output = base(x)
    assert (first != before).float().mean() < 0.01
    # The norm is of the codes times the scale; the forward of the base rounds that product to bfloat16.
    weight = true_weight(base, torch.float32)
    assert (weight - dequantised(base).float()).abs().max() <= 2.0**-8 * weight.abs().max()
    expected = expected_output(reference, kind, module, weight, base.bias, x)
    assert (output.double() - expected).abs().max() <= 2.0**-5 * expected.abs().max()
    assert_trains(module, output, torch.bfloat16)


def magnitude(module):
    return module.dora_layer.weight


@pytest.mark.parametrize("dtype", FP8)
@pytest.mark.parametrize("kind", KINDS)
def test_bases_that_are_cast_to_fp8_after_apply_to(reference, kind, dtype):
    base = nn.Linear(IN, OUT).bfloat16().requires_grad_(False)
    module = make(reference, kind, base, trained=False)
    base.to(dtype)
    x = torch.randn(5, IN).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        module.enabled = False
        before = base(x)
        module.enabled = True
        assert (base(x) != before).float().mean() < 0.01
    reference.perturb(module, 0.05)
    with torch.autocast("cpu", torch.bfloat16):
        output = base(x)
    expected = expected_output(reference, kind, module, base.weight.float(), base.bias.float(), x)
    assert (output.double() - expected).abs().max() <= 2.0**-5 * expected.abs().max()
    assert_trains(module, output, torch.bfloat16)


def test_a_trained_or_loaded_magnitude_is_not_started_again(reference):
    for change in ("magnitude", "factors", "load"):
        base = nn.Linear(IN, OUT).requires_grad_(False)
        module = make(reference, "dora", base, trained=False)
        if change == "magnitude":
            magnitude(module).data.mul_(1.5)
        elif change == "factors":
            nn.init.normal_(module.lora_up.weight)
        else:
            module.load_state_dict(module.state_dict())
        before = magnitude(module).clone()
        base.to(torch.bfloat16)
        base(torch.randn(2, IN).bfloat16())
        assert torch.equal(magnitude(module), before)


def cast(base):
    base.to(torch.bfloat16)


def write(base):
    with torch.no_grad():
        base.weight.mul_(2.0)


def load(base):
    base.load_state_dict({name: 2 * tensor for name, tensor in base.state_dict().items()})


def replace_data(base):
    base.weight.data = base.weight.data * 2


def replace_parameter(base):
    base.weight = nn.Parameter(base.weight.detach() * 2, requires_grad=False)


def rescale(base):
    base.scale_weight.mul_(2.0)


@pytest.mark.parametrize("change", [cast, write, load, replace_data, replace_parameter, rescale])
def test_the_norms_follow_every_change_of_the_base(reference, change):
    base = nn.Linear(IN, OUT).requires_grad_(False)
    if change is rescale:
        quantise(base, torch.float8_e4m3fn, (OUT, 1), torch.float32)
    module = make(reference, "dora", base, trained=True)
    module._gain()
    change(base)
    weight = true_weight(base, torch.float64) + module.scale * (
        module.lora_up.weight.double() @ module.lora_down.weight.double()
    )
    assert torch.allclose(module._gain().double(), magnitude(module).double() / weight.norm(dim=1), rtol=1e-5)


def test_weights_that_come_and_go_are_measured_where_they_are(reference):
    base = nn.Linear(IN, OUT).requires_grad_(False)
    make(reference, "dora", base, trained=True)
    x, home = torch.randn(3, IN), base.weight.data
    before = base(x)
    for _ in range(3):
        base.weight.data = torch.empty(0)
        base.weight.data = home.clone()
        assert torch.equal(base(x), before)


@pytest.mark.parametrize("dtype", [*PLAIN, *FP8, torch.float64])
@pytest.mark.parametrize("scale", [None, (), (1,), (OUT, 1), (OUT, 4, 1)])
@pytest.mark.parametrize("piece", [8, 24, 256])
def test_blocks_of_rows_sum_to_the_whole(dtype, scale, piece, monkeypatch):
    monkeypatch.setattr("networks.kernels.half_precision._CACHED", 7 * IN)
    monkeypatch.setattr("networks.kernels.base_weight._PIECE", piece)
    base = nn.Linear(IN, OUT).to(dtype)
    if scale is not None:
        base.scale_weight = torch.rand(scale)
    whole = true_weight(base, torch.float64)
    matrix = torch.randn(3, IN, dtype=torch.float64)
    squares, products = squares_and_products(base, matrix)
    assert torch.allclose(squares, whole.square().sum(1))
    assert torch.allclose(products, whole @ matrix.t())


@pytest.mark.parametrize("shape", [(3,), (OUT, 2), (OUT, 5, 1), (2 * OUT, 1)])
def test_a_scale_that_fits_no_weight_is_an_error(shape):
    base = nn.Linear(IN, OUT).to(torch.float8_e4m3fn)
    base.scale_weight = torch.ones(shape)
    with pytest.raises(ValueError, match="does not match a weight"):
        true_weight(base, torch.float32)
    with pytest.raises(ValueError, match="does not match a weight"):
        squares_and_products(base, torch.zeros(1, IN))


def test_codes_without_known_values_are_an_error():
    base = nn.Linear(IN, OUT)
    base.weight = nn.Parameter(torch.zeros(OUT, IN, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match="int8"):
        LoRAModule("x", base, use_dora=True).apply_to()
