"""OFT against its formula in float64, and against lycoris-lora's diag-oft: its forward, its steps and its files."""

import logging
import math

import lycoris.kohya
import pytest
import torch
from bases import FP8, dequantised, quantise
from lycoris.modules.diag_oft import DiagOFTModule
from pairs import crossed
from safetensors.torch import load_file, save_file
from torch import nn

from networks import lora, oft
from networks.kernels.rotated_output import cayley_turn
from networks.modules.adapter_module import limit_norms
from networks.network.network import LoRANetwork
from networks.oft import OFTInfModule, OFTModule

pytestmark = pytest.mark.numeric

LAYERS = {
    "linear": lambda: nn.Linear(48, 64),
    "linear without bias": lambda: nn.Linear(48, 64, bias=False),
    "conv": lambda: nn.Conv2d(12, 24, 3, stride=2, padding=1),
    "1x1": lambda: nn.Conv2d(12, 24, 1),
    "grouped": lambda: nn.Conv2d(12, 24, 3, groups=2, padding=1),
    "circular": lambda: nn.Conv2d(12, 24, (3, 1), padding=(1, 0), padding_mode="circular"),
    "conv1d": lambda: nn.Conv1d(12, 24, 3, bias=False),
    "conv3d": lambda: nn.Conv3d(12, 24, (1, 2, 2), stride=(1, 2, 2)),
}
# lycoris-lora's layers pad with zeros alone.
IN_LYCORIS = [kind for kind in LAYERS if kind != "circular"]
# The norm of all generators is about 9 in a Linear and 3 in a convolution, their limit 0.0625 for each output.
OPTIONS = {
    "plain": {},
    "rescaled": {"rescaled": True},
    "limited": {"constraint": 0.0625},
    "not quite limited": {"constraint": 0.5},
    "rescaled and limited": {"rescaled": True, "constraint": 0.0625},
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
RANK = 8

every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def moved(module):
    """The module as after some training, at work in its layer."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter) / math.sqrt(parameter.shape[-1]))
    module.apply_to()
    return module


def built(base, cls=OFTModule, **options):
    return moved(cls("layer", base.requires_grad_(False), 1.0, RANK, 1.5, **options))


def input_of(base):
    if isinstance(base, nn.Linear):
        return torch.randn(2, 5, base.in_features)
    return torch.randn(2, base.in_channels, *[8] * len(base.kernel_size))


def rotated(module, weight, multiplier=1.0):
    """The changed weight, as one rotation of all its rows, of the module's tensors in their own dtype."""
    blocks = module.oft_blocks
    skew = torch.block_diag(*(block - block.mT for block in blocks))
    limit = float(module.alpha) * len(weight)
    if limit and skew.norm() > limit:
        skew = skew / skew.norm() * limit
    one = torch.eye(len(weight), dtype=weight.dtype)
    whole = (one + skew) @ torch.linalg.inv(one - skew)
    changed = (multiplier * (whole - one) + one).T @ weight.flatten(1)
    return module.rescale * changed.view(weight.shape) if hasattr(module, "rescale") else changed.view(weight.shape)


def with_weight(base, x, weight):
    """The layer's output with another weight."""
    if isinstance(base, nn.Linear):
        return nn.functional.linear(x, weight, base.bias)
    return base._conv_forward(x, weight, base.bias)


def furthest(found, expected):
    """The largest difference as a share of the largest entry."""
    return (found.double() - expected.double()).abs().max() / expected.double().abs().max()


def of_lycoris(base, module, **options):
    """The same module of lycoris-lora, with the same tensors."""
    theirs = DiagOFTModule("layer", base.requires_grad_(False), 1.0, RANK, 1.5, **options)
    theirs.load_state_dict(module.state_dict(), strict=True)
    theirs.apply_to()
    return theirs


@pytest.mark.parametrize("outputs", [1, 7, 24, 64, 96, 127, 128, 250, 320, 1536])
@pytest.mark.parametrize("rank", [1, 2, 4, 5, 16, 100])
def test_keys_and_shapes_are_those_of_lycoris(outputs, rank):
    for base in (nn.Linear(2, outputs), nn.Conv2d(2, outputs, 3)):
        ours = OFTModule("layer", base, 1.0, rank, rescaled=True).state_dict()
        theirs = DiagOFTModule("layer", base, 1.0, rank, rescaled=True, constraint=0.0).state_dict()
        assert {key: tensor.shape for key, tensor in ours.items()} == {key: t.shape for key, t in theirs.items()}


@crossed(
    kind=LAYERS.keys(), options=OPTIONS, dtype=[torch.float32, torch.bfloat16, torch.float16], autocast=(False, True)
)
def test_the_first_step_is_the_base_bit_for_bit(kind, options, dtype, autocast):
    base = LAYERS[kind]().to(dtype)
    x = input_of(base).to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        before = base(x)
        module = OFTModule("layer", base.requires_grad_(False), 1.0, RANK, **options)
        module.apply_to()
        output = base(x)
    assert output.dtype == before.dtype
    assert torch.equal(output, before)
    output.float().square().sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in module.parameters())


@crossed(kind=LAYERS.keys(), options=OPTIONS, multiplier=(1.0, 0.3, -2.0))
def test_forward_and_merge_are_the_formula(kind, options, multiplier):
    base = LAYERS[kind]().double()
    module = built(base, OFTInfModule, **options).double()
    module.multiplier = multiplier
    before = base.weight.clone()
    expected = rotated(module, before, multiplier)
    x = input_of(base).double()
    runtime = base(x)
    assert torch.allclose(runtime, with_weight(base, x, expected), rtol=1e-7, atol=1e-7)
    assert not torch.allclose(runtime, module.org_forward(x), atol=1e-2)
    assert torch.allclose(module.get_weight(), expected - before, rtol=1e-7, atol=1e-7)
    assert torch.allclose(module.get_weight(1.0), rotated(module, before) - before, rtol=1e-7, atol=1e-7)
    module.merge_to(module.state_dict())
    assert torch.allclose(base.weight, expected, rtol=1e-7, atol=1e-7)
    assert torch.allclose(base(x), runtime, rtol=1e-9)


@crossed(kind=LAYERS.keys(), options=OPTIONS, multiplier=(1.0, 0.3), frozen=(False, True), traced=(False, True))
def test_gradients_are_those_of_the_formula(kind, options, multiplier, frozen, traced, monkeypatch):
    base = LAYERS[kind]().double()
    module = built(base, **options).double()
    base.requires_grad_(not frozen)
    module.multiplier = multiplier
    x = input_of(base).double().requires_grad_()
    inputs = [x, *([] if frozen else base.parameters()), *module.parameters()]
    monkeypatch.setattr(oft, "is_traced", lambda: traced)
    output = base(x)
    weights = torch.randn_like(output)
    found = torch.autograd.grad((output * weights).sum(), inputs)
    reference = with_weight(base, x, rotated(module, base.weight, multiplier))
    expected = torch.autograd.grad((reference * weights).sum(), inputs)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-7 * theirs.abs().max().item())


@every_option
@pytest.mark.parametrize("kind", IN_LYCORIS)
def test_lycoris_makes_the_same_of_the_same_tensors(kind, options):
    base, other = LAYERS[kind](), LAYERS[kind]()
    other.load_state_dict(base.state_dict())
    module = built(base, **options)
    for multiplier in (1.0, 0.5):
        theirs = of_lycoris(other, module, **options)
        theirs.multiplier = module.multiplier = multiplier
        x = input_of(base)
        ours, reference = base(x), other(x)
        theirs.restore()
        assert furthest(ours, reference) < 1e-5
        weights = torch.randn_like(ours)
        names, parameters = zip(*module.named_parameters(), strict=True)
        found = torch.autograd.grad((ours * weights).sum(), parameters)
        expected = torch.autograd.grad((reference * weights).sum(), [getattr(theirs, name) for name in names])
        for name, mine, other_s in zip(names, found, expected, strict=True):
            assert furthest(mine, other_s) < 1e-4, name


@every_option
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_ten_steps_of_training_are_those_of_lycoris(kind, options):
    bases, modules, losses = [LAYERS[kind](), LAYERS[kind]()], [], []
    bases[1].load_state_dict(bases[0].state_dict())
    x = input_of(bases[0])
    target = torch.randn_like(bases[0](x))
    for cls, base in zip((OFTModule, DiagOFTModule), bases, strict=True):
        module = cls("layer", base.requires_grad_(False), 1.0, RANK, 1.0, **options)
        module.apply_to()
        optimizer = torch.optim.SGD(module.parameters(), lr=2.0, momentum=0.5)
        for _ in range(10):
            loss = (base(x) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        modules.append(module)
        losses.append(loss.item())
    ours, theirs = modules
    for name, parameter in ours.named_parameters():
        assert furthest(parameter, getattr(theirs, name)) < 1e-4, name
        assert (parameter - OFTModule("layer", bases[0], 1.0, RANK, **options).get_parameter(name)).abs().max() > 0.03
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@every_option
def test_files_are_lycoris_s_own(options, make_model, tmp_path):
    model, x = make_model(), torch.randn(3, 8, 12)
    network = LoRANetwork(
        ["Block"], "lora_unet", None, model, 1.0, 4, 1.0, module_class=OFTModule, module_kwargs=options
    )
    network.apply_to(None, model)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    file = str(tmp_path / "ours.safetensors")
    network.save_weights(file, None, None)
    other = make_model()
    assert not torch.allclose(other(x), model(x), atol=1e-2)
    theirs, _ = lycoris.kohya.create_network_from_weights(1.0, file, None, None, other)
    theirs.apply_to(None, other, apply_text_encoder=False, apply_unet=True)
    assert torch.allclose(other(x), model(x), atol=1e-5)


@every_option
def test_files_of_lycoris_are_ours(options, make_model, tmp_path):
    model, x = make_model(), torch.randn(3, 8, 12)
    theirs = lycoris.kohya.create_network(
        1.0, 4, 1.0, None, None, model, algo="diag-oft", warn_on_unmatched=False, **options
    )
    theirs.apply_to(None, model, apply_text_encoder=False, apply_unet=True)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    file = str(tmp_path / "theirs.safetensors")
    theirs.save_weights(file, None, {})
    weights = load_file(file)
    for cls in (OFTModule, OFTInfModule):
        other = make_model()
        network = lora.create_network_from_weights(None, 1.0, weights, unet=other, module_class=cls)
        network.apply_to(None, other)
        network.load_weights(file)
        assert torch.allclose(other(x), model(x), atol=1e-5)
        assert {float(one.alpha) for one in network.unet_loras} == {options.get("constraint", 0.0)}
    fresh = make_model()
    network = lora.create_network_from_weights(None, 1.0, weights, unet=fresh, module_class=OFTInfModule)
    network.merge_to(None, fresh, weights)
    assert torch.allclose(fresh(x), model(x), atol=1e-5)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cast", [False, True])
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_half_precision_bases_and_blocks(kind, cast, dtype, autocast):
    base = LAYERS[kind]().to(dtype)
    module = built(base, rescaled=True, constraint=0.1)
    if cast:
        module.to(dtype)
    x = input_of(base).to(dtype)
    with torch.autocast("cpu", dtype, enabled=autocast):
        output = base(x)
    assert output.dtype == dtype
    reference = LAYERS[kind]().double()
    reference.load_state_dict({key: tensor.double() for key, tensor in base.state_dict().items()})
    exact = OFTModule("layer", reference, 1.0, RANK, rescaled=True, constraint=0.1).double()
    exact.load_state_dict(module.state_dict())
    expected = with_weight(reference, x.double(), rotated(exact, reference.weight))
    # Once by the base's own layer, and once by ours.
    assert furthest(output, expected) < 2 * (2**-8 if dtype == torch.bfloat16 else 2**-11)
    output.float().square().sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in module.parameters())


def test_what_else_is_in_the_forward_of_the_base_is_turned_too_but_not_the_bias():
    base = LAYERS["linear"]().double()
    x = input_of(base).double()
    weight = 1.5 * base.weight
    plain = base.forward
    base.forward = lambda input: base.bias + 1.5 * (plain(input) - base.bias)
    module = built(base).double()
    assert torch.allclose(base(x), with_weight(base, x, rotated(module, weight)), rtol=1e-9)


def test_rotations_leave_lengths_as_they_are():
    base = nn.Linear(48, 64, bias=False).double()
    x = input_of(base).double()
    lengths = base(x).norm(dim=-1)
    module = built(base).double()
    assert torch.allclose(base(x).norm(dim=-1), lengths, rtol=1e-12)
    with torch.no_grad():
        module.oft_blocks.mul_(1e6)
    assert torch.allclose(base(x).norm(dim=-1), lengths, rtol=1e-8)


@pytest.mark.parametrize(
    ("kind", "options", "autocast", "kept_dtypes"),
    [
        ("linear", {}, False, []),
        ("linear", {}, True, []),
        ("linear", {"rescaled": True}, False, [torch.bfloat16]),
        ("conv", {}, False, [torch.bfloat16]),
    ],
)
def test_nothing_of_the_output_s_size_is_kept_but_the_output_of_the_base(kind, options, autocast, kept_dtypes):
    base = LAYERS[kind]().bfloat16()
    built(base, **options)
    x = input_of(base).bfloat16().requires_grad_()
    kept = []
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        output = base(x)
    own = [tensor.data_ptr() for tensor in (x, output, *base.parameters())]
    large = [tensor for tensor in kept if tensor.numel() >= output.numel() and tensor.data_ptr() not in own]
    assert [tensor.dtype for tensor in large] == kept_dtypes


@pytest.mark.parametrize("rows_at_once", [3, 400])
@pytest.mark.parametrize("bias", [None, 1.0, 30.0])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 3e-6), (torch.float16, 3e-3), (torch.bfloat16, 2e-2)])
def test_gradients_by_what_is_read_back_from_the_output(dtype, bound, bias, rows_at_once, monkeypatch):
    monkeypatch.setattr("networks.kernels.half_precision._CACHED", 64 * rows_at_once)
    base = nn.Linear(48, 64, bias=bias is not None)
    if bias is not None:
        nn.init.normal_(base.bias, std=bias)
    module = built(base.to(dtype))
    x = torch.randn(4, 50, 48).to(dtype).requires_grad_()
    output = base(x)
    weights = torch.randn_like(output)
    output.backward(weights)
    exact = OFTModule("layer", nn.Linear(48, 64), 1.0, RANK).double()
    exact.load_state_dict(module.state_dict())
    inputs = x.detach().double().requires_grad_()
    reference = with_weight(base.double(), inputs, rotated(exact, base.weight.double()))
    expected, of_input = torch.autograd.grad(reference, (exact.oft_blocks, inputs), weights.double())
    # An output is rounded to a share of itself, and its bias is a part of it.
    assert (output - reference).norm() < bound * reference.norm()
    assert module.oft_blocks.grad.dtype == torch.float32
    assert (module.oft_blocks.grad - expected).norm() < bound * max(1.0, bias or 0.0) * expected.norm()
    assert x.grad.dtype == dtype
    assert (x.grad - of_input).norm() < bound * of_input.norm()


@pytest.mark.parametrize(
    ("kind", "options"), [("conv", {}), ("conv1d", {"rescaled": True}), ("linear", {"rescaled": True})]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_other_layers_a_few_samples_at_a_time(kind, options, dtype, monkeypatch):
    base = LAYERS[kind]().to(dtype)
    module = built(base, **options)
    own = [] if base.bias is None else [base.bias.requires_grad_()]
    x = torch.cat([input_of(base), input_of(base)]).to(dtype).requires_grad_()
    output = base(x)
    weights = torch.randn_like(output)

    def gradients():
        return torch.autograd.grad(base(x), (x, *own, *module.parameters()), weights)

    expected = gradients()
    monkeypatch.setattr("networks.kernels.half_precision._CACHED", 1)
    for found, one in zip((base(x), *gradients()), (output, *expected), strict=True):
        assert furthest(found, one) < (1e-5 if one.dtype == torch.float32 else 2**-7)


def test_the_output_may_be_written_over():
    base, other = LAYERS["linear"](), LAYERS["linear"]()
    other.load_state_dict(base.state_dict())
    module, same = built(base), OFTModule("layer", other.requires_grad_(False), 1.0, RANK)
    same.load_state_dict(module.state_dict())
    same.apply_to()
    x = input_of(base)
    base(x).relu_().sum().backward()
    other(x).relu().sum().backward()
    assert furthest(module.oft_blocks.grad, same.oft_blocks.grad) < 1e-5


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_nothing(reentrant):
    base = LAYERS["linear"]()
    module = built(base, rescaled=True)
    x = input_of(base).requires_grad_()
    results = []
    for run in (base, lambda input: torch.utils.checkpoint.checkpoint(base, input, use_reentrant=reentrant)):
        run(x).square().sum().backward()
        results.append([x.grad, *(parameter.grad for parameter in module.parameters())])
        x.grad = None
        module.zero_grad()
    assert all(torch.equal(first, second) for first, second in zip(*results, strict=True))


# torch's own code inside its compiler warns of what later releases change.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.slow
def test_compiled_it_is_one_graph_with_the_same_numbers(kind, backend, autocast):
    torch._dynamo.reset()
    base = LAYERS[kind]()
    module = built(base, rescaled=True, constraint=0.1)
    compiled = torch.compile(base, backend=backend, fullgraph=True)
    results = []
    for run in (base, compiled, compiled):
        x = torch.linspace(-1, 1, input_of(base).numel()).reshape(input_of(base).shape).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output = run(x)
        results.append([output, *torch.autograd.grad(output.float().square().sum(), [x, *module.parameters()])])
    for ours, compiled_ours in zip(results[0], results[2], strict=True):
        assert furthest(compiled_ours, ours) < (2**-6 if autocast else 1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_step_of_the_optimiser_needs_no_new_graph():
    torch._dynamo.reset()
    base = LAYERS["linear"]()
    module = built(base)
    compiled, x = torch.compile(base, backend="eager", fullgraph=True), input_of(base)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(3):
            compiled(x).relu().sum().backward()
            with torch.no_grad():
                module.oft_blocks.sub_(module.oft_blocks.grad, alpha=0.01)
            module.zero_grad()
            assert torch.allclose(compiled(x), base(x), atol=1e-5)


def test_switches():
    base = LAYERS["linear"]()
    x = input_of(base)
    before = base(x)
    module = built(base, OFTInfModule, rescaled=True)
    assert not torch.allclose(base(x), before, atol=1e-2)
    module.multiplier = 0.0
    assert torch.equal(base(x), before)
    assert not module.get_weight().any()
    module.multiplier, module.enabled = 1.0, False
    assert torch.equal(base(x), before)


@pytest.mark.parametrize("option", ["dropout", "rank_dropout"])
def test_dropouts_of_parts_of_a_rotation_are_refused(option):
    with pytest.raises(ValueError, match="layer: dropout and rank_dropout would leave no rotation; leave"):
        OFTModule("layer", nn.Linear(4, 4), **{option: 0.1})


@pytest.mark.parametrize("limit", [0.5, 100.0])
def test_max_norm_is_that_of_lycoris(limit):
    base = LAYERS["conv"]()
    module = built(base)
    theirs = of_lycoris(LAYERS["conv"](), module)
    _, norm = theirs.apply_max_norm(limit, "cpu")
    shrunk, mean, largest = limit_norms([module], limit)
    assert shrunk == (limit == 0.5)
    assert mean == pytest.approx(largest) == pytest.approx(norm.item(), rel=1e-5)
    assert torch.allclose(module.oft_blocks, theirs.oft_blocks, rtol=1e-5)


@every_option
def test_one_weight_at_a_time(options):
    """The call of musubi-tuner's loader: keys that were used leave the set, other weights come back as they are."""
    module = built(LAYERS["conv"](), OFTInfModule, **options)
    weight = module.org_module.weight
    before = weight.clone()
    weights = {f"layer.{key}": tensor for key, tensor in module.state_dict().items()}
    weights["layer_1.alpha"] = torch.tensor(1.0)
    left = set(weights)
    assert oft.merge_weights_to_tensor(weight, "other", weights, left, 1.0, "cpu") is weight
    assert oft.merge_weights_to_tensor(weight, "layer", weights, left, 0.0, "cpu") is weight
    assert left == set(weights)
    merged = oft.merge_weights_to_tensor(weight, "layer", weights, left, 0.5, "cpu")
    assert left == {"layer_1.alpha"}
    assert furthest(merged, rotated(module, before, 0.5)) < 1e-5
    half = oft.merge_weights_to_tensor(before.bfloat16(), "layer", weights, set(weights), 0.5, "cpu")
    assert half.dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r"layer: it rotates 24 rows, but the base has 12"):
        oft.merge_weights_to_tensor(before[:12], "layer", weights, set(weights), 0.5, "cpu")
    with pytest.raises(
        ValueError, match=r"layer: the base is stored as torch\.int8, and no change can be added to that"
    ):
        oft.merge_weights_to_tensor(before.to(torch.int8), "layer", weights, set(weights), 0.5, "cpu")
    with pytest.raises(ValueError, match=r"1 tensor of the weights cannot be used by a OFT network: layer\.extra"):
        oft.merge_weights_to_tensor(
            before, "layer", {**weights, "layer.extra": before}, {*weights, "layer.extra"}, 0.5, "cpu"
        )


def test_factors_that_do_not_fit_are_errors():
    module = OFTInfModule("layer", nn.Linear(48, 64), 1.0, RANK)
    with pytest.raises(ValueError, match=r"layer\.oft_blocks is missing"):
        module.merge_to({"alpha": torch.tensor(0.0)})
    with pytest.raises(ValueError, match=r"layer: oft_blocks \[4, 16, 8\] are not square blocks"):
        module.merge_to({"oft_blocks": torch.zeros(4, 16, 8)})
    with pytest.raises(ValueError, match="layer: it rotates 32 rows, but the base has 64"):
        module.merge_to({"oft_blocks": torch.zeros(4, 8, 8)})
    with pytest.raises(ValueError, match="layer: its factors change a weight that rotates 32 rows, but the base has 6"):
        OFTModule("layer", nn.Linear(48, 64), factor_shapes={"blocks": (4, 8, 8)})
    with pytest.raises(ValueError, match="layer: a LayerNorm is neither a Linear nor a convolution"):
        OFTModule("layer", nn.LayerNorm(4))


def network_of(model, rank=4, **options):
    return LoRANetwork(
        ["Block"], "lora_unet", None, model, 1.0, rank, 7.0, module_class=OFTModule, module_kwargs=options
    )


def test_a_network_of_them(make_model, tmp_path):
    network = network_of(make_model(), rescaled=True, constraint=0.25)
    network.apply_to(None, make_model())
    groups, descriptions = network.prepare_optimizer_params(unet_lr=1e-3)
    assert descriptions == ["unet"]
    assert len(groups[0]["params"]) == 2 * len(network.unet_loras)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    file = str(tmp_path / "adapter.safetensors")
    network.save_weights(file, torch.bfloat16, None)
    weights = load_file(file)
    name = "lora_unet_blocks_0_conv"
    # A gain is as a magnitude: half precision would move a whole row.
    assert {tail: weights[f"{name}.{tail}"].dtype for tail in ("oft_blocks", "rescale", "alpha")} == {
        "oft_blocks": torch.bfloat16,
        "rescale": torch.float32,
        "alpha": torch.float32,
    }
    assert weights[f"{name}.alpha"] == 0.25
    assert weights[f"{name}.oft_blocks"].shape == (4, 3, 3)
    # The limit of the file is the one that counts.
    again = network_of(make_model(), rescaled=True)
    again.load_weights(file)
    assert {float(one.alpha) for one in again.unet_loras} == {one._alpha_value for one in again.unet_loras} == {0.25}
    again.load_state_dict(again.state_dict(), strict=True)


@pytest.mark.parametrize(
    ("rank", "options", "message"),
    [
        (2, {"rescaled": True}, r"oft_blocks has blocks of 3 outputs, .* blocks of 2; set network_dim, .* to 3"),
        (4, {}, r"rescale is not in the network; set rescaled=True"),
    ],
)
def test_files_of_other_options_name_the_option(rank, options, message, make_model, tmp_path):
    file = str(tmp_path / "adapter.safetensors")
    network_of(make_model(), rescaled=True).save_weights(file, None, None)
    with pytest.raises(ValueError, match=message):
        network_of(make_model(), rank, **options).load_weights(file)


def test_a_file_may_have_blocks_that_no_rank_makes(make_model):
    """Those of sd-scripts, where the rank is the number of blocks."""
    weights = {"lora_unet_blocks_0_conv.oft_blocks": 0.1 * torch.randn(2, 6, 6)}
    model = make_model()
    network = lora.create_network_from_weights(None, 1.0, weights, unet=model, module_class=OFTInfModule)
    network.load_state_dict(weights | {"lora_unet_blocks_0_conv.alpha": torch.tensor(0.0)}, strict=True)
    network.apply_to(None, model)
    layer, x = model.blocks[0].conv, torch.randn(1, 12, 4, 4)
    (module,) = network.unet_loras
    # Without an alpha there is no limit.
    assert (module.lora_dim, float(module.alpha)) == (6, 0.0)
    assert torch.allclose(layer(x), with_weight(layer, x, rotated(module, layer.weight)), atol=1e-5)


@pytest.mark.parametrize(
    ("alpha", "metadata", "message"),
    [
        (math.nan, {}, r"conv.alpha is nan, which is no limit of a rotation; store the right one"),
        (0.0, {"ss_network_module": "networks.oft"}, "an alpha of 0 allows no rotation in sd-scripts, which wrote it"),
    ],
)
def test_alphas_that_say_nothing_certain_are_refused(alpha, metadata, message, make_model, tmp_path):
    weights = {
        "lora_unet_blocks_0_conv.oft_blocks": torch.zeros(4, 3, 3),
        "lora_unet_blocks_0_conv.alpha": torch.tensor(alpha),
    }
    file = str(tmp_path / "adapter.safetensors")
    save_file(weights, file, metadata)
    with pytest.raises(ValueError, match=message):
        network_of(make_model()).load_weights(file)


def test_alphas_of_a_scale_are_said_to_have_no_effect(wan, caplog):
    caplog.set_level(logging.INFO)
    network = oft.create_arch_network(1.0, 4, 16.0, None, None, wan(), conv_alpha="2", alpha_pattern="{'.*': 3}")
    said = [record.message for record in caplog.records if "no effect" in record.message]
    assert said == ["network_alpha, conv_alpha, alpha_pattern: no effect, as OFT has no scale"]
    assert {float(module.alpha) for module in network.unet_loras} == {0.0}
    assert network.alpha_pattern == {}
    caplog.clear()
    network = oft.create_arch_network(1.0, 4, None, None, None, wan(), constraint="0.5", rescaled="true")
    assert {float(module.alpha) for module in network.unet_loras} == {0.5}
    assert all(hasattr(module, "rescale") for module in network.unet_loras)
    weights = network.state_dict()
    assert "no effect" not in caplog.text
    oft.create_arch_network_from_weights(1.0, weights, unet=wan(), constraint="0.1", rescaled="true")
    assert "constraint, rescaled: no effect, as the weights already settle that" in caplog.text


@pytest.mark.parametrize(
    ("options", "clauses"),
    [
        ({}, []),
        ({"constraint": "0.1"}, ["constraint of 0.1"]),
        ({"rescaled": "True"}, ["rescaled=True"]),
        ({"constraint": "0.1", "rescaled": "True"}, ["constraint of 0.1", "rescaled=True"]),
    ],
)
def test_oft_options_misread_by_comfyui_are_one_line(options, clauses, wan, caplog):
    caplog.set_level(logging.INFO)
    oft.create_arch_network(1.0, 4, None, None, None, wan(), **options)
    lines = [record.message for record in caplog.records if "ComfyUI" in record.message]
    assert len(lines) == bool(clauses)
    assert all(clause in line for line in lines for clause in clauses)
    assert any("constraint" in line for line in lines) == ("constraint" in options)


@pytest.mark.parametrize("value", ["-1", "nan", "much", True])
def test_a_constraint_has_to_be_a_number_of_at_least_0(value, wan):
    with pytest.raises(ValueError, match=r"constraint=.*: a number.* was expected"):
        oft.create_arch_network(1.0, 4, 1.0, None, None, wan(), constraint=value)


def test_outputs_that_make_no_blocks_are_named(caplog):
    base = nn.Linear(4, 7)
    OFTModule("layer", base, lora_dim=4)
    assert "layer: its 7 outputs fall into blocks of 1 at rank 4; nothing turns there" in caplog.text


def test_an_input_of_another_dtype_than_the_base_s_is_the_base_s_own_affair():
    """A trainer's autocast to bfloat16 casts a float32 input, and a base in float32 as well."""
    for dtype in (torch.float32, torch.bfloat16):
        base = LAYERS["linear"]().to(dtype)
        x = input_of(base)
        module = built(base)
        with torch.autocast("cpu", torch.bfloat16):
            plain, output = module.org_forward(x), base(x)
            assert output.dtype == plain.dtype
            module._base_is_plain = False
            assert furthest(base(x), output) < 2**-7


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("shape", [(), (64, 1), (64, 4, 1)], ids=["number", "rows", "blocks"])
@pytest.mark.parametrize("dtype", FP8)
def test_scaled_fp8_bases(dtype, shape, autocast):
    base = nn.Linear(48, 64).bfloat16().requires_grad_(False)
    quantise(base, dtype, shape, torch.bfloat16)
    x = input_of(base).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        before = base(x)
        module = OFTModule("layer", base, 1.0, RANK, rescaled=True, constraint=0.1)
        module.apply_to()
        assert torch.equal(base(x), before)
    moved(module)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = base(x)
    weight = rotated(module, dequantised(base).float())
    expected = nn.functional.linear(x.double(), weight.double(), base.bias.double())
    assert output.dtype == torch.bfloat16
    # Once by the base's own layer, and once by ours.
    assert furthest(output, expected) < 2 * 2**-8
    output.float().square().sum().backward()
    assert all(torch.isfinite(tensor.grad).all() and tensor.grad.any() for tensor in (x, *module.parameters()))


@pytest.mark.parametrize("size", [0.01, 1.0, 30.0])
def test_the_gradient_of_the_transform_is_that_of_its_formula(size):
    generator = torch.Generator().manual_seed(5)
    free = (size * torch.randn(3, 4, 4, generator=generator, dtype=torch.float64)).requires_grad_()
    upstream = torch.randn(3, 4, 4, generator=generator, dtype=torch.float64)
    one = torch.eye(4, dtype=torch.float64)

    def gradient(transform):
        return torch.autograd.grad(transform(free - free.mT), free, upstream)[0]

    expected = gradient(lambda skew: (one + skew) @ torch.linalg.inv(one - skew) - one)
    torch.testing.assert_close(gradient(cayley_turn), expected, rtol=1e-9, atol=1e-12)
