"""torch.compile on an adapted model: one graph, and what the uncompiled model computes."""

import pytest
import torch
from torch import nn

from networks.modules.lora_module import LoRAModule

KINDS = ("lora", "rslora+dora")

# torch's own code inside its compiler warns of what later releases change.
pytestmark = [
    pytest.mark.numeric,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()


def adapted_model(reference, kind, dtype):
    model = nn.Sequential(nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 8, bias=False)).to(dtype).requires_grad_(False)
    modules = []
    for index in (0, 2):
        modules.append(LoRAModule(f"x{index}", model[index], 0.7, 4, 2.0, **reference.options(kind)))
        modules[-1].apply_to()
        reference.perturb(modules[-1], 0.1)
    return model, [parameter for module in modules for parameter in module.parameters()]


@pytest.mark.parametrize(
    ("dtype", "autocast"), [(torch.float32, False), (torch.bfloat16, False), (torch.bfloat16, True)]
)
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("kind", KINDS)
def test_forward_and_backward_are_one_graph_with_the_same_numbers(reference, kind, backend, dtype, autocast):
    model, parameters = adapted_model(reference, kind, dtype)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    results = []
    for run in (model, compiled):
        x = torch.linspace(-1, 1, 2 * 5 * 12).reshape(2, 5, 12).to(dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output = run(x)
        results.append([output, *torch.autograd.grad(output.float().square().sum(), [x, *parameters])])
    tolerance = 1e-5 if dtype == torch.float32 else 2.0**-6
    for ours, compiled_ours in zip(*results, strict=True):
        assert ours.dtype == compiled_ours.dtype
        assert (ours - compiled_ours).abs().max() <= tolerance * ours.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_of_the_optimiser_needs_no_new_graph(reference, kind):
    model, parameters = adapted_model(reference, kind, torch.float32)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    x = torch.randn(3, 12)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(3):
            compiled(x).square().sum().backward()
            with torch.no_grad():
                for parameter in parameters:
                    parameter.sub_(parameter.grad, alpha=0.1)
                    parameter.grad = None
            assert torch.allclose(compiled(x), model(x), atol=1e-5)


@pytest.mark.parametrize("dora", [False, True])
def test_switched_off_compiles_to_the_base(dora):
    base = nn.Linear(6, 8).requires_grad_(False)
    x = torch.randn(3, 6)
    before = base(x)
    module = LoRAModule("x", base, use_dora=dora)
    module.apply_to()
    nn.init.normal_(module.lora_up.weight)
    module.enabled = False
    assert torch.equal(torch.compile(base, backend="eager", fullgraph=True)(x), before)
