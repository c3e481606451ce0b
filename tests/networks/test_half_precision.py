"""What half precision costs on every kind of processor: one rounding, whichever way its products are computed.

Errors are root mean squares against float64, next to those of the plain rule: sum in float32, round once.
"""

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from networks.kernels import fused_lora, half_precision
from networks.kernels.fused_lora import FusedProduct, fused_linear
from networks.modules.lora_module import LoRAModule

pytestmark = pytest.mark.numeric

TOKENS, IN, OUT, RANK = 96, 130, 80, 6
SHAPES = [(96, 130, 80, 6), (64, 256, 128, 16), (200, 33, 47, 3)]
# Of the change, next to the product. Beyond 1 no training goes, but somebody's alpha may.
STRENGTHS = [0.01, 0.1, 1.0, 30.0]
PROCESSORS = {"with bfloat16": (True, True), "with a kernel": (True, False), "without": (False, False)}


@pytest.fixture(params=PROCESSORS)
def kind_of_processor(request, monkeypatch):
    serves, multiplies = PROCESSORS[request.param]
    use_processor(monkeypatch, serves, multiplies)
    return request.param


@pytest.fixture
def with_bfloat16(monkeypatch):
    use_processor(monkeypatch, True, True)


def use_processor(monkeypatch, serves, multiplies):
    monkeypatch.setattr(half_precision, "SERVES", dict.fromkeys(half_precision.HALF, serves))
    monkeypatch.setattr(half_precision, "MULTIPLIES_BFLOAT16", multiplies)


def rms(values):
    return values.double().square().mean().sqrt()


def operands(shape, strength=0.1, dtype=torch.bfloat16, bias=True):
    """The base in half precision with outputs of about 1, and a change of `strength`."""
    tokens, features_in, features_out, rank = shape
    return {
        "input": torch.randn(tokens, features_in).to(dtype),
        "weight": (torch.randn(features_out, features_in) / features_in**0.5).to(dtype),
        "bias": torch.randn(features_out).to(dtype) if bias else None,
        "hidden": torch.randn(tokens, rank),
        "up": strength * torch.randn(features_out, rank) / rank**0.5,
    }


def exact_sum(input, weight, bias, hidden, up, gain=None):
    total = input.double() @ weight.double().t() + hidden.double() @ up.double().t()
    total = total if gain is None else total * gain.double()
    return total if bias is None else total + bias.double()


def plain_sum(input, weight, bias, hidden, up, gain=None):
    """Everything in float32, then rounded."""
    total = input.float() @ weight.float().t() + hidden @ up.t()
    total = total if gain is None else total * gain
    return (total if bias is None else total + bias).to(input.dtype)


def assert_error_is_that_of_the_plain_rule(compute, shape, strength, gain=None, **options):
    for _ in range(4):
        tensors = operands(shape, strength, **options)
        exact = exact_sum(**tensors, gain=gain)
        error = rms(compute(**tensors) - exact)
        assert error <= 1.0001 * rms(plain_sum(**tensors, gain=gain) - exact)
        assert error <= 1.0001 * rms(exact.to(tensors["input"].dtype) - exact)


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_a_prolonged_product_rounds_like_one_sum(shape, strength, bias):
    def compute(input, weight, bias, hidden, up):
        return fused_lora.prolonged_linear(input, weight, bias, [(hidden, up)])

    assert_error_is_that_of_the_plain_rule(compute, shape, strength, bias=bias)


@pytest.mark.parametrize("dtype", half_precision.HALF)
@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("tokens", [1, 63, 64])
def test_every_processor_rounds_a_change_once(kind_of_processor, tokens, strength, dtype):
    def compute(input, weight, bias, hidden, up):
        return fused_lora.lora_linear(input, weight, bias, [FusedProduct(hidden, up)])

    shape = (tokens, IN, OUT if tokens > 1 else 4096, RANK)
    assert_error_is_that_of_the_plain_rule(compute, shape, strength, dtype=dtype)


@pytest.mark.parametrize("dtype", half_precision.HALF)
@pytest.mark.parametrize("strength", STRENGTHS)
def test_every_processor_rounds_what_a_gain_multiplies_once(kind_of_processor, strength, dtype):
    gain = 0.5 + torch.rand(OUT)

    def compute(input, weight, bias, hidden, up):
        return fused_lora.dora_linear(input, weight, bias, [FusedProduct(hidden, up)], gain)

    assert_error_is_that_of_the_plain_rule(compute, (TOKENS, IN, OUT, RANK), strength, gain, dtype=dtype)


def test_two_bfloat16_products_are_one_unrounded(with_bfloat16):
    tensors = operands(SHAPES[1])
    exact = tensors["input"].double() @ tensors["weight"].double().t()
    error = (half_precision.unrounded(tensors["input"], tensors["weight"]) - exact).abs()
    assert (error <= 2.0**-16 * exact.abs() + 1e-6).all()


def test_several_changes_fill_the_output_side_by_side(with_bfloat16):
    tensors = operands((TOKENS, IN, OUT, RANK), 1.0)
    hidden, up, rows = tensors.pop("hidden"), tensors.pop("up"), (20, 0, OUT - 20)
    scales = (1.0, 1.0, -3.0)
    products = [FusedProduct(scale * hidden, part) for scale, part in zip(scales, up.split(rows), strict=True)]
    wide_up = torch.cat([scale * part for scale, part in zip(scales, up.split(rows), strict=True)])
    exact = exact_sum(**tensors, hidden=hidden, up=wide_up)
    error = rms(fused_lora.lora_linear(**tensors, products=products) - exact)
    assert error <= 1.0001 * rms(exact.bfloat16() - exact)


def test_a_bias_wider_than_the_weight(with_bfloat16):
    tensors = {**operands((TOKENS, IN, OUT, RANK)), "bias": torch.randn(OUT)}
    exact = exact_sum(**tensors)
    products = [(tensors.pop("hidden"), tensors.pop("up"))]
    error = rms(fused_lora.prolonged_linear(**tensors, products=products) - exact)
    assert error <= 1.0001 * rms(exact.bfloat16() - exact)


def assert_gradients(found, expected, dtype):
    """Factors as exact as float32, and half-precision gradients rounded once."""
    for name, wanted in expected.items():
        if found[name].dtype == torch.float32:
            assert rms(found[name] - wanted) <= 2e-6 * rms(wanted), name
        else:
            assert rms(found[name] - wanted) <= 1.01 * rms(wanted.to(dtype) - wanted), name


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("gain", [True, False])
def test_gradients_of_several_changes(kind_of_processor, gain, bias):
    given = {name: value for name, value in operands((TOKENS, IN, OUT, RANK), bias=bias).items() if value is not None}
    narrow = {name: value.clone().requires_grad_() for name, value in given.items()}
    wide = {name: value.double().requires_grad_() for name, value in given.items()}
    ups = narrow["up"][:30], narrow["up"][30:]
    products = [FusedProduct(narrow["hidden"], ups[0]), FusedProduct(2.0 * narrow["hidden"], ups[1])]
    gains = 0.5 + torch.rand(OUT) if gain else None
    arguments = (narrow["input"], narrow["weight"], narrow.get("bias"), products)
    output = fused_lora.lora_linear(*arguments) if gains is None else fused_lora.dora_linear(*arguments, gains)
    up = torch.cat([wide["up"][:30], 2.0 * wide["up"][30:]])
    expected = exact_sum(wide["input"], wide["weight"], wide.get("bias"), wide["hidden"], up, gains)
    upstream = torch.randn(TOKENS, OUT).bfloat16()
    found = dict(zip(narrow, torch.autograd.grad(output, list(narrow.values()), upstream), strict=True))
    wanted = dict(zip(wide, torch.autograd.grad(expected, list(wide.values()), upstream.double()), strict=True))
    if gain and kind_of_processor != "without":
        # The gradient of the product is rounded for the product that it goes into.
        for name in ("input", "weight"):
            assert rms(found.pop(name) - wanted[name]) <= 2.0**-8 * rms(wanted.pop(name)), name
    assert_gradients(found, wanted, torch.bfloat16)


@pytest.mark.parametrize("dtype", half_precision.HALF)
@pytest.mark.parametrize("gain", [True, False])
def test_gradients_of_a_fused_linear(kind_of_processor, gain, dtype):
    given = operands((TOKENS, IN, OUT, RANK), dtype=dtype)
    del given["hidden"]
    given["down"] = torch.randn(RANK, IN) / IN**0.5
    given["gain"] = 0.5 + torch.rand(OUT)
    narrow = {name: value.clone().requires_grad_() for name, value in given.items()}
    wide = {name: value.double().requires_grad_() for name, value in given.items()}
    if not gain:
        del narrow["gain"], wide["gain"]
    output = fused_linear(**narrow, scale=0.7)
    factors = {name: wide[name] for name in ("input", "weight", "bias", "up")}
    expected = exact_sum(**factors, hidden=0.7 * wide["input"] @ wide["down"].t(), gain=wide.get("gain"))
    upstream = torch.randn(TOKENS, OUT).to(dtype)
    found = dict(zip(narrow, torch.autograd.grad(output, list(narrow.values()), upstream), strict=True))
    wanted = dict(zip(wide, torch.autograd.grad(expected, list(wide.values()), upstream.double()), strict=True))
    if gain:
        # The gain's gradient is read back from the rounded output, and the others multiply by a rounded one.
        limit = torch.finfo(dtype).eps
        for name in ("gain", "input", "weight"):
            assert rms(found.pop(name) - wanted[name]) <= limit * rms(wanted.pop(name)), name
    assert_gradients(found, wanted, dtype)


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"use_dora": True}], ids=["lora", "rslora", "dora"])
def test_no_processor_keeps_more_for_the_backward_pass(kind_of_processor, options):
    base = nn.Linear(256, 512).bfloat16().requires_grad_(False)
    module = LoRAModule("x", base, 1.0, 8, **options)
    module.apply_to()
    input = torch.randn(128, 256).bfloat16().requires_grad_()
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = base(input)
    for tensor in (input, output, *base.parameters(), *module.parameters()):
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    assert sum(kept.values()) <= 4 * 128 * 8 + (3 * 4 * 512 if options.get("use_dora") else 0)


def test_the_parts_of_a_factor():
    values = torch.cat([torch.randn(1000), torch.tensor([0.0, -0.0, 1e-30, -1e30, 1.00390625])])
    high, low = half_precision.split(values)
    assert ((values - high).abs() <= 2.0**-8 * values.abs()).all()
    assert ((values.double() - high.double() - low.double()).abs() <= 2.0**-16 * values.abs()).all()


def test_a_compiler_finds_no_conversion_there_and_back_to_leave_out():
    graph = make_fx(half_precision.split)(torch.randn(4)).graph
    halves = [node for node in graph.nodes if node.op == "call_function" and node.meta["val"].dtype == torch.bfloat16]
    assert len(halves) == 2
    assert all(user.op == "output" for node in halves for user in node.users)


@pytest.mark.parametrize(
    ("environment", "held_back"),
    [
        ({}, False),
        ({"ONEDNN_MAX_CPU_ISA": "avx2"}, True),
        ({"DNNL_MAX_CPU_ISA": "AVX512_CORE"}, True),
        ({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}, False),
        ({"ONEDNN_MAX_CPU_ISA": "ALL"}, False),
    ],
)
def test_processors_that_are_held_back(environment, held_back):
    assert half_precision.is_held_back(environment) == held_back
