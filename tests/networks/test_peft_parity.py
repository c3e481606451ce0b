"""The same factors in PEFT's layers and in ours: outputs, gradients, and ten steps of AdamW."""

import peft
import pytest
import torch
from torch import nn

from networks.lora import LoRAModule

pytestmark = pytest.mark.numeric

KINDS = ("lora", "rslora", "dora", "rslora+dora")
RANK, ALPHA = 4, 6


def build(kind, dtype, bias):
    """(our base, our parameters, PEFT's layer, PEFT's parameters), the latter in the same order."""
    use_rslora, use_dora = "rslora" in kind, "dora" in kind.split("+")
    plain = nn.Linear(24, 40, bias=bias).to(dtype)
    theirs = nn.Sequential(nn.Linear(24, 40, bias=bias).to(dtype))
    theirs[0].load_state_dict(plain.state_dict())
    config = peft.LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        target_modules=["0"],
        use_rslora=use_rslora,
        use_dora=use_dora,
        init_lora_weights=False,
    )
    layer = peft.get_peft_model(theirs, config).to(dtype).base_model.model[0]
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    module = LoRAModule("x", plain.requires_grad_(False), 1.0, RANK, ALPHA, use_rslora=use_rslora, use_dora=use_dora)
    module.to(dtype)
    with torch.no_grad():
        up.mul_(0.1)
        module.lora_down.weight.copy_(down)
        module.lora_up.weight.copy_(up)
    ours, peers = [module.lora_down.weight, module.lora_up.weight], [down, up]
    module.apply_to()
    if use_dora:
        magnitude = layer.lora_magnitude_vector["default"].weight
        with torch.no_grad():
            magnitude.mul_(1 + 0.1 * torch.randn_like(magnitude))
            module.dora_layer.weight.copy_(magnitude)
        ours.append(module.dora_layer.weight)
        peers.append(magnitude)
    return plain, ours, layer, peers


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_gradients_and_steps(kind, bias, dtype, tolerance):
    ours, our_parameters, theirs, their_parameters = build(kind, dtype, bias)

    def close(found, expected):
        return (found - expected).norm() <= tolerance * expected.norm()

    optimizers = [torch.optim.AdamW(parameters, lr=1e-3) for parameters in (our_parameters, their_parameters)]
    for _ in range(10):
        x = torch.randn(2, 7, 24, dtype=dtype)
        target = torch.randn(2, 7, 40, dtype=dtype)
        inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
        outputs = [ours(inputs[0]), theirs(inputs[1])]
        assert close(*outputs)
        for output, optimizer in zip(outputs, optimizers, strict=True):
            optimizer.zero_grad()
            nn.functional.mse_loss(output, target).backward()
        assert close(inputs[0].grad, inputs[1].grad)
        for found, expected in zip(our_parameters, their_parameters, strict=True):
            assert close(found.grad, expected.grad)
        for optimizer in optimizers:
            optimizer.step()
        for found, expected in zip(our_parameters, their_parameters, strict=True):
            assert close(found, expected)
