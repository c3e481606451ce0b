"""DoRA on a base whose weights are exchanged under it, in the ways of trainers, while training and sampling."""

import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from networks import lora
from networks.modules.lora_module import LoRAModule

IN, OUT = 24, 40
pytestmark = pytest.mark.numeric


def adapted(dtype=torch.float32, trained=True):
    base = nn.Linear(IN, OUT).to(dtype).requires_grad_(False)
    module = LoRAModule("x", base, 1.0, 4, 4.0, use_dora=True)
    module.apply_to()
    if trained:
        with torch.no_grad():
            module.lora_up.weight.normal_(std=0.1)
            module.dora_layer.weight.mul_(1.2)
    return base, module


def merged(module, values):
    """(out, in) in float64 of a base with these values."""
    change = module.lora_up.weight.double() @ module.lora_down.weight.double()
    combined = values.double() + module.scale * change
    return module.dora_layer.weight.double()[:, None] * combined / combined.norm(dim=1, keepdim=True)


def other_weight(base):
    """Rows of other lengths, which the magnitude does not know."""
    generator = torch.Generator().manual_seed(7)
    lengths = torch.rand(OUT, 1, generator=generator) + 0.5
    return (torch.randn(OUT, IN, generator=generator) * lengths).to(base.weight.dtype)


def overwrite(base, weight):
    base.weight.data.copy_(weight)


def free_and_assign(base, weight):
    """As from a caching allocator, which hands out the same memory again."""
    memory = base.weight.data
    base.weight.data = memory.new_empty(0)
    memory.copy_(weight)
    base.weight.data = memory


def free_and_assign_elsewhere(base, weight):
    base.weight.data = base.weight.data.new_empty(0)
    base.weight.data = weight


def load(base, weight):
    base.load_state_dict({**base.state_dict(), "weight": weight})


def load_and_assign(base, weight):
    base.load_state_dict({**base.state_dict(), "weight": weight}, assign=True)
    base.requires_grad_(False)


def overwrite_one_row(base, weight):
    base.weight.data[29].copy_(weight[29])


def exchange_two_rows(base, weight):
    base.weight.data[[3, 29]] = base.weight.data[[29, 3]]


def view_as_numpy(base, weight):
    base.weight.detach().numpy()[:] = weight.numpy()


CHANGES = [
    overwrite,
    free_and_assign,
    free_and_assign_elsewhere,
    load,
    load_and_assign,
    overwrite_one_row,
    exchange_two_rows,
    view_as_numpy,
]


def train_step(base, module, x):
    """The output in a training step, whose optimiser moves the factors but a little."""
    output = base(x)
    output.square().sum().backward()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.sub_(parameter.grad, alpha=1e-4)
            parameter.grad = None
    return output.detach()


def sample(base, module, x):
    with torch.no_grad():
        return base(x)


def infer(base, module, x):
    with torch.inference_mode():
        return base(x)


def checkpointed_step(base, module, x):
    leaf = x.clone().requires_grad_()
    output = checkpoint(base, leaf, use_reentrant=True)
    output.sum().backward()
    return output.detach()


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("before", [train_step, sample])
@pytest.mark.parametrize("after", [train_step, sample, infer, checkpointed_step])
def test_dora_norms_follow_a_base_that_is_exchanged(change, before, after):
    base, module = adapted()
    x = torch.randn(5, IN)
    for _ in range(2):
        before(base, module, x)
    change(base, other_weight(base))
    expected = F.linear(x.double(), merged(module, base.weight), base.bias.double())
    assert (after(base, module, x).double() - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("change", CHANGES)
def test_gradients_follow_a_base_that_is_exchanged_too(change):
    base, module = adapted()
    x = torch.randn(5, IN)
    train_step(base, module, x)
    change(base, other_weight(base))
    base(x).square().sum().backward()
    # The norm is a constant of the backward pass.
    magnitude, up, down = (
        parameter.detach().double().requires_grad_()
        for parameter in (module.dora_layer.weight, module.lora_up.weight, module.lora_down.weight)
    )
    combined = base.weight.double() + up @ down
    weight = magnitude[:, None] * combined / combined.detach().norm(dim=1, keepdim=True)
    loss = F.linear(x.double(), weight, base.bias.double()).square().sum()
    expected = torch.autograd.grad(loss, [magnitude, up, down])
    found = [module.dora_layer.weight.grad, module.lora_up.weight.grad, module.lora_down.weight.grad]
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.double() - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("step", [train_step, sample])
@pytest.mark.parametrize("shape", [(1,), (OUT, 1), (OUT, 3, 1)])
def test_dora_norms_follow_a_scale_weight_that_alone_is_overwritten(shape, step):
    base = nn.Linear(IN, OUT).requires_grad_(False)
    base.weight.data = base.weight.data.to(torch.float8_e4m3fn)
    base.register_buffer("scale_weight", torch.full(shape, 0.5))

    def values():
        blocks = base.weight.double().view(OUT, shape[1] if len(shape) == 3 else 1, -1)
        scale = base.scale_weight.double()
        return (blocks * (scale if len(shape) == 3 else scale.view(-1, 1, 1))).view(OUT, IN)

    base.forward = lambda x: F.linear(x, values().float(), base.bias)
    module = LoRAModule("x", base, 1.0, 4, 4.0, use_dora=True)
    module.apply_to()
    nn.init.normal_(module.lora_up.weight, std=0.1)
    x = torch.randn(5, IN)
    step(base, module, x)
    base.scale_weight.data.copy_(torch.rand(shape) + 0.1)
    expected = F.linear(x.double(), merged(module, values()), base.bias.double())
    assert (step(base, module, x).double() - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_base_that_is_exchanged_for_samples_comes_back_to_the_same_training():
    """As Krea 2's trainer samples on the distilled model, by copies or by freeing and loading."""
    for change in (overwrite, free_and_assign, free_and_assign_elsewhere):
        torch.manual_seed(1)
        base, module = adapted()
        x, raw = torch.randn(5, IN), base.weight.detach().clone()
        train_step(base, module, x)
        before = base(x)
        change(base, other_weight(base))
        expected = F.linear(x.double(), merged(module, base.weight), base.bias.double())
        assert (sample(base, module, x).double() - expected).abs().max() <= 1e-5 * expected.abs().max()
        change(base, raw)
        assert torch.equal(base(x), before)


def test_samples_of_another_base_before_the_first_step_do_not_move_the_start():
    base, module = adapted(trained=False)
    x, raw = torch.randn(5, IN), base.weight.detach().clone()
    start = module.dora_layer.weight.detach().clone()
    overwrite(base, other_weight(base))
    assert (infer(base, module, x) - F.linear(x, base.weight, base.bias)).abs().max() <= 1e-5
    overwrite(base, raw)
    base(x).sum().backward()
    assert torch.equal(module.dora_layer.weight, start)


@pytest.mark.parametrize("columns", [255, 256, 257, 4099, 200001])
def test_long_rows_of_equal_numbers_lose_no_digits(columns):
    """Sums of equal numbers, one after another, always round to the same side."""
    base = nn.Linear(columns, 3, bias=False).requires_grad_(False)
    base.weight.fill_(0.1)
    module = LoRAModule("x", base, 1.0, 1, 1.0, use_dora=True)
    module.apply_to()
    expected = base.weight.double().norm(dim=1)
    # A piece of 256 squares on at least one lane, 10 additions of pairs more at 200001 columns, three roundings beside.
    assert (module.dora_layer.weight.double() / expected - 1).abs().max() <= (256 + 10 + 3) * 2.0**-24


# --- The warning


def network(model, **options):
    adapter = lora.create_network(["Block"], "lora_unet", 1.0, 4, 4.0, None, None, model, **options)
    adapter.apply_to(None, model)
    adapter.prepare_optimizer_params(1e-3)
    return adapter


def step(model, adapter, x=None):
    torch.manual_seed(3)
    model(torch.randn(2, 4, 12)).square().sum().backward()
    with torch.no_grad():
        for parameter in adapter.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad, alpha=1e-3)
                parameter.grad = None


def exchange(model, inactive):
    """As Wan's trainer does it for high and low noise: (returns what was there)."""
    active = model.state_dict()
    model.load_state_dict(inactive, assign=True)
    model.requires_grad_(False)
    return active


def warnings_of(caplog):
    return [
        record.message
        for record in caplog.records
        if record.levelno == logging.WARNING and record.name == "networks.modules.dora_layer"
    ]


def overwrite_all(model, inactive):
    for name, tensor in model.state_dict().items():
        tensor.copy_(inactive[name])
    return inactive


@pytest.mark.parametrize("exchanged", [exchange, overwrite_all])
def test_bases_that_take_turns_under_dora_are_one_warning(make_model, caplog, exchanged):
    model, inactive = make_model(1), make_model(2).state_dict()
    adapter = network(model, use_dora="True")
    for _ in range(4):
        step(model, adapter)
        inactive = exchanged(model, inactive)
    (message,) = warnings_of(caplog)
    assert "DoRA" in message
    assert "Wan 2.2" in message
    assert "one network for each base" in message


def test_a_resumed_network_warns_as_well(make_model, caplog, tmp_path):
    model = make_model(1)
    adapter = network(model, use_dora="True")
    step(model, adapter)
    adapter.save_weights(str(tmp_path / "a.safetensors"), None, {})
    model = make_model(1)
    adapter = network(model, use_dora="True")
    adapter.load_weights(str(tmp_path / "a.safetensors"))
    step(model, adapter)
    assert not warnings_of(caplog)
    exchange(model, make_model(2).state_dict())
    step(model, adapter)
    assert len(warnings_of(caplog)) == 1


def test_a_forward_before_the_first_step_is_taken_for_its_base(make_model, caplog):
    """Trainers try a batch, and cast or load the base that they train on after it."""
    model = make_model(1)
    adapter = network(model, use_dora="True")
    model(torch.randn(2, 4, 12)).sum().backward()
    exchange(model, make_model(2).state_dict())
    adapter.zero_grad()
    for _ in range(2):
        step(model, adapter)
    assert not warnings_of(caplog)


def test_two_networks_warn_once_each(make_model, caplog):
    for _ in range(2):
        model = make_model(1)
        adapter = network(model, use_dora="True")
        step(model, adapter)
        exchange(model, make_model(2).state_dict())
        step(model, adapter)
    assert len(warnings_of(caplog)) == 2


def clone_all(model):
    """As block swap does with the weights of each step."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()


def sample_on_another(model, make_model):
    inactive = exchange(model, make_model(2).state_dict())
    with torch.no_grad():
        model(torch.randn(2, 4, 12))
    exchange(model, inactive)


@pytest.mark.parametrize("between", ["nothing", "moved", "sampled", "summed in another order"])
def test_what_is_no_other_base_is_no_warning(make_model, caplog, monkeypatch, between):
    model = make_model(1)
    adapter = network(model, use_dora="True")
    for _ in range(3):
        step(model, adapter)
        if between == "moved":
            clone_all(model)
        elif between == "sampled":
            sample_on_another(model, make_model)
        elif between == "summed in another order":
            monkeypatch.setattr("networks.kernels.base_weight._PIECE", 5)
    assert not warnings_of(caplog)


def test_a_base_that_changes_before_the_first_step_is_the_start_and_no_warning(make_model, caplog):
    model = make_model(1)
    adapter = network(model, use_dora="True")
    with torch.no_grad():
        model(torch.randn(2, 4, 12))
    exchange(model, make_model(2).state_dict())
    torch.manual_seed(5)
    x = torch.randn(2, 4, 12)
    assert (model(x) - make_model(2)(x)).abs().max() <= 1e-5
    step(model, adapter)
    step(model, adapter)
    assert not warnings_of(caplog)


def test_a_base_that_is_trained_itself_is_no_warning(make_model, caplog):
    model = make_model(1)
    adapter = network(model, use_dora="True")
    model.requires_grad_(True)
    for _ in range(3):
        step(model, adapter)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.01)
    assert not warnings_of(caplog)


@pytest.mark.parametrize("options", [{}, {"use_rslora": "True"}])
def test_without_dora_bases_may_take_turns(make_model, caplog, options):
    model, inactive = make_model(1), make_model(2).state_dict()
    adapter = network(model, **options)
    for _ in range(3):
        step(model, adapter)
        inactive = exchange(model, inactive)
    assert not warnings_of(caplog)
