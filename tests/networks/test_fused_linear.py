"""The backward pass of our own: its gradients, what it keeps, and what may be done to its output."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from networks.kernels import fused_lora
from networks.kernels.fused_lora import FusedProduct, fused_gain, fused_linear
from networks.modules.lora_module import LoRAModule

pytestmark = pytest.mark.numeric

TOKENS, IN, OUT, RANK = 96, 40, 56, 4


def operands(dtype=torch.float64, bias=True, tokens=TOKENS):
    """Everything that fused_linear takes but the scale, each with a gradient."""
    shapes = {"input": (tokens, IN), "weight": (OUT, IN), "bias": (OUT,), "down": (RANK, IN), "up": (OUT, RANK)}
    tensors = {name: torch.randn(shape, dtype=dtype).requires_grad_() for name, shape in shapes.items()}
    tensors["gain"] = (0.5 + torch.rand(OUT, dtype=dtype)).requires_grad_()
    if not bias:
        tensors["bias"] = None
    return tensors


def expected_output(tensors, scale, gain=True):
    """The formula, for autograd to differentiate."""
    change = scale * (tensors["input"] @ tensors["down"].t()) @ tensors["up"].t()
    total = tensors["input"] @ tensors["weight"].t() + change
    total = total * tensors["gain"] if gain else total
    return total if tensors["bias"] is None else total + tensors["bias"]


def gradients_of(output, tensors, upstream):
    given = [tensor for tensor in tensors.values() if tensor is not None]
    return torch.autograd.grad(output, given, upstream, allow_unused=True)


def assert_same_gradients(found, expected, tolerance=1e-12):
    for ours, theirs in zip(found, expected, strict=True):
        if theirs is None:
            assert ours is None
        else:
            assert torch.allclose(
                ours, theirs, rtol=tolerance, atol=tolerance * theirs.abs().amax().item() if theirs.numel() else 0
            )


@pytest.mark.parametrize("tokens", [TOKENS, 8, 0])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("gain", [True, False])
def test_every_gradient_is_that_of_the_formula(gain, bias, tokens):
    tensors = operands(bias=bias, tokens=tokens)
    arguments = {**tensors, "gain": tensors["gain"] if gain else None}
    output = fused_linear(**arguments, scale=0.7)
    expected = expected_output(tensors, 0.7, gain)
    assert torch.allclose(output, expected, rtol=1e-12, atol=1e-12)
    upstream = torch.randn_like(expected)
    assert_same_gradients(gradients_of(output, tensors, upstream), gradients_of(expected, tensors, upstream))


@pytest.mark.parametrize("values", [0.0, 1e-9, -1e-3, -0.7], ids=str)
def test_no_gain_is_too_small_for_its_gradient(values):
    tensors = operands(torch.float32)
    with torch.no_grad():
        tensors["gain"][::3] = values
        tensors["bias"].mul_(100)
    output, expected = fused_linear(**tensors, scale=0.7), expected_output(tensors, 0.7)
    upstream = torch.randn_like(expected)
    found, wanted = (torch.autograd.grad(y, tensors["gain"], upstream)[0] for y in (output, expected))
    assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def write_over(output):
    return output.view(2, -1, OUT).transpose(1, 2).mul_(3.0).relu_()


@pytest.mark.parametrize("checkpointed", [False, True])
def test_what_follows_may_work_in_place(checkpointed):
    tensors = operands()
    upstream = torch.randn(2, OUT, TOKENS // 2, dtype=torch.float64)

    def run(layer):
        def block(input):
            return write_over(layer({**tensors, "input": input}))

        return checkpoint(block, tensors["input"], use_reentrant=False) if checkpointed else block(tensors["input"])

    found = gradients_of(run(lambda given: fused_linear(**given, scale=0.7)), tensors, upstream)
    assert_same_gradients(found, gradients_of(run(lambda given: expected_output(given, 0.7)), tensors, upstream))


def test_outputs_that_are_offloaded():
    tensors = operands()
    with torch.autograd.graph.save_on_cpu():
        output = fused_linear(**tensors, scale=0.7)
    expected = expected_output(tensors, 0.7)
    upstream = torch.randn_like(expected)
    assert_same_gradients(gradients_of(output, tensors, upstream), gradients_of(expected, tensors, upstream))


def test_the_graph_can_be_kept_and_used_again_but_not_after_it_was_freed():
    tensors = operands()
    output = fused_linear(**tensors, scale=0.7)
    first = torch.autograd.grad(output.sum(), list(tensors.values()), retain_graph=True)
    assert_same_gradients(torch.autograd.grad(output.sum(), list(tensors.values())), first)
    with pytest.raises(RuntimeError, match="second time"):
        output.sum().backward()


def test_backward_inside_autocast():
    tensors = operands(torch.float32)
    output, expected = fused_linear(**tensors, scale=0.7), expected_output(tensors, 0.7)
    upstream = torch.randn_like(expected)
    wanted = gradients_of(expected, tensors, upstream)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same_gradients(gradients_of(output, tensors, upstream), wanted, 1e-5)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_functional_transforms_see_single_operations():
    base = nn.Linear(IN, OUT).requires_grad_(False)
    module = LoRAModule("x", base, use_dora=True)
    module.apply_to()
    nn.init.normal_(module.lora_up.weight)
    x, direction = torch.randn(2, 3, IN), torch.randn(2, 3, IN)
    output, derivative = torch.func.jvp(base, (x,), (direction,))
    assert torch.allclose(output, base(x), atol=1e-5)
    assert torch.allclose(derivative, base(x + direction) - base(x), atol=1e-4)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("shape", "gain"), [((3, 7, 5), (5,)), ((5,), (5,)), ((2, 5, 3, 4), (5, 1, 1))])
def test_a_gain_on_the_output_of_a_base_that_is_only_called(shape, gain, bias):
    tensors = {
        "output": torch.randn(shape, dtype=torch.float64).requires_grad_(),
        "change": torch.randn(shape, dtype=torch.float64).requires_grad_(),
        "gain": torch.rand(gain, dtype=torch.float64).requires_grad_(),
        "bias": torch.randn(gain, dtype=torch.float64).requires_grad_() if bias else None,
    }
    fused, composed = fused_gain(**tensors), fused_lora.scaled_sum(**tensors)
    assert torch.equal(fused, composed)
    upstream = torch.randn_like(composed)
    assert_same_gradients(
        gradients_of(fused.relu_(), tensors, upstream), gradients_of(composed.relu(), tensors, upstream)
    )


def kept_bytes(dtype, tokens, autocast=False, **options):
    """Bytes that a forward pass keeps beside its input, its output and the parameters."""
    base = nn.Linear(256, 512).to(dtype).requires_grad_(False)
    module = LoRAModule("x", base, 1.0, 8, **options)
    module.apply_to()
    input = torch.randn(tokens, 256).to(dtype).requires_grad_()
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    watched = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with watched, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = base(input)
    for tensor in (input, output, *base.parameters(), *module.parameters()):
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(kept.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [64, 1024])
def test_dora_keeps_a_few_numbers_for_each_output_and_nothing_for_each_token(dtype, tokens):
    lora = kept_bytes(dtype, tokens)
    assert lora == 4 * tokens * 8
    assert kept_bytes(dtype, tokens, use_dora=True) - lora <= 3 * 4 * 512


def test_under_autocast_dora_keeps_what_its_gain_multiplies_as_wide_as_the_output():
    lora, dora = (kept_bytes(torch.bfloat16, 256, autocast=True, use_dora=use_dora) for use_dora in (False, True))
    assert dora - lora <= 2 * 256 * 512 + 3 * 4 * 512


def test_the_norm_never_holds_a_float32_copy_of_a_half_precision_weight(monkeypatch):
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            nonlocal largest
            result = function(*arguments, **(keywords or {}))
            if isinstance(result, torch.Tensor) and result.dtype == torch.float32:
                largest = max(largest, result.untyped_storage().nbytes())
            return result

    monkeypatch.setattr("networks.kernels.half_precision._CACHED", 2**12)
    base = nn.Linear(256, 512).bfloat16().requires_grad_(False)
    module = LoRAModule("x", base, 1.0, 8, use_dora=True)
    with Watch():
        module.apply_to()
        module._gain()
    assert largest <= 4 * max(2**12, 512 * 8, 256 * 8)


def test_products_that_autograd_differentiates_agree_with_the_fused_ones():
    tensors = operands()
    hidden = tensors["input"] @ tensors["down"].t() * 0.7
    composed = fused_lora.dora_linear(
        tensors["input"], tensors["weight"], tensors["bias"], [FusedProduct(hidden, tensors["up"])], tensors["gain"]
    )
    fused = fused_linear(**tensors, scale=0.7)
    upstream = torch.randn_like(fused)
    assert_same_gradients(gradients_of(composed, tensors, upstream), gradients_of(fused, tensors, upstream))
