"""DoRA on LoHa and LoKr against its formula in float64, and against the real lycoris-lora, which reads the files."""

import logging

import pytest
import torch
import torch.nn.functional as F
from bases import FP8, dequantised, quantise
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from safetensors.torch import load_file
from torch import nn

from networks import loha, lokr
from networks.network import creation
from networks.network.network import LoRANetwork

pytestmark = pytest.mark.numeric

VARIANTS = {
    "LoHa": (loha.LoHaModule, loha.LoHaInfModule, LohaModule, 3, {}),
    "LoKr": (lokr.LoKrModule, lokr.LoKrInfModule, LokrModule, 2, {}),
    "LoKr, factor 4": (lokr.LoKrModule, lokr.LoKrInfModule, LokrModule, 2, {"factor": 4}),
    "LoKr, whole": (lokr.LoKrModule, lokr.LoKrInfModule, LokrModule, 64, {}),
}
LAYERS = {
    "linear": lambda: nn.Linear(48, 64),
    "linear without bias": lambda: nn.Linear(48, 64, bias=False),
    "conv": lambda: nn.Conv2d(12, 24, 3, stride=2, padding=1),
    "grouped": lambda: nn.Conv2d(12, 24, 3, groups=2, padding=1, bias=False),
}
every_variant = pytest.mark.parametrize("variant", VARIANTS)
every_layer = pytest.mark.parametrize("kind", LAYERS)


def input_of(base):
    return torch.randn(2, 5, 48) if isinstance(base, nn.Linear) else torch.randn(2, 12, 8, 8)


def built(variant, base, learned=True, inference=False, **options):
    module_class, inference_class, _, rank, own = VARIANTS[variant]
    chosen = inference_class if inference else module_class
    options = {"use_dora": True, "dora_conv": True, **own, **options}
    module = chosen("layer", base.requires_grad_(False), 1.0, rank, 1.5, **options).to(base.weight.dtype)
    module.apply_to()
    if learned:
        learn(module)
    return module


def learn(module):
    with torch.no_grad():
        for factor in module.factors.values():
            factor.add_(0.2 * torch.randn_like(factor))
        module.dora_layer.weight.mul_(0.5 + torch.rand_like(module.dora_layer.weight))


def delta_of(module):
    """The scaled delta in float64, entry by entry, differentiable in the factors."""
    factors = {role: factor.double() for role, factor in module.factors.items()}
    if "w1_b" in factors:
        delta = torch.einsum("or,ri,os,si->oi", *factors.values())
    else:
        large = factors["w2"].flatten(1) if "w2" in factors else factors["w2_a"] @ factors["w2_b"]
        delta = torch.einsum("ab,cd->acbd", factors["w1"], large).reshape(module.matrix_shape)
    return module.scale * delta.reshape(module.org_module.weight.shape)


def expected_weight(module, base_weight, multiplier=1.0):
    """magnitude · V / ‖V‖ of the rows, the norm without a gradient (section 4.3 of Liu et al.)."""
    combined = base_weight.double() + multiplier * delta_of(module)
    per_row = (-1, *[1] * (combined.dim() - 1))
    norms = combined.detach().flatten(1).norm(dim=1).view(per_row)
    return module.dora_layer.weight.double().view(per_row) / norms * combined


def computed_with(base, weight, x):
    bias = None if base.bias is None else base.bias.double()
    if isinstance(base, nn.Linear):
        return F.linear(x.double(), weight, bias)
    return base._conv_forward(x.double(), weight, bias)


def furthest(found, wanted):
    return (found.double() - wanted).abs().max() / wanted.abs().max()


@every_variant
@every_layer
def test_training_begins_at_the_base(kind, variant):
    base = LAYERS[kind]()
    x = input_of(base)
    before = base(x)
    module = built(variant, base, learned=False)
    assert module.use_dora
    assert torch.equal(module._gain(), torch.ones(base.weight.shape[0]))
    # The bias is taken off and put on again.
    assert torch.allclose(base(x), before, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("multiplier", [1.0, 0.3, -2.0])
@every_variant
@every_layer
def test_output_gradients_and_merge_are_the_formula(kind, variant, multiplier):
    base = LAYERS[kind]().double()
    module = built(variant, base, inference=True)
    module.multiplier = multiplier
    x = input_of(base).double().requires_grad_()
    output, weight = base(x), expected_weight(module, base.weight, multiplier)
    wanted = computed_with(base, weight, x)
    assert torch.allclose(output, wanted, rtol=1e-10, atol=1e-10)
    inputs, upstream = [x, *module.parameters()], torch.randn_like(wanted)
    found = torch.autograd.grad(output, inputs, upstream)
    for ours, theirs in zip(found, torch.autograd.grad(wanted, inputs, upstream), strict=True):
        assert furthest(ours, theirs) < 1e-9
    assert torch.allclose(module.get_weight(), weight - base.weight, rtol=1e-10, atol=1e-12)
    before = base.weight.clone()
    assert not module.get_weight(0.0).any()
    module.merge_to(module.state_dict())
    assert torch.allclose(base.weight, weight, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(base.weight, before)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["linear", "conv"])
@every_variant
def test_half_precision_bases(kind, variant, dtype, autocast):
    base = LAYERS[kind]().to(dtype)
    module = built(variant, base, learned=False).float()
    learn(module)
    x = input_of(base).to(dtype)
    with torch.autocast("cpu", dtype, enabled=autocast):
        output = base(x)
    assert output.dtype == dtype
    wanted = computed_with(base, expected_weight(module, base.weight), x)
    assert furthest(output, wanted) < (16 if autocast else 4) * torch.finfo(dtype).eps
    output.float().sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in module.parameters())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("kind", ["linear", "conv"])
@every_variant
@pytest.mark.slow
def test_forward_and_backward_compile_to_one_graph(kind, variant):
    torch._dynamo.reset()
    base = LAYERS[kind]()
    module = built(variant, base)
    compiled = torch.compile(base, backend="aot_eager", fullgraph=True)
    results = []
    for run in (base, compiled):
        output = run(input_of(base).fill_(0.5))
        results.append([output, *torch.autograd.grad(output.square().sum(), list(module.parameters()))])
    for ours, compiled_ours in zip(*results, strict=True):
        assert furthest(compiled_ours, ours.double()) < 1e-5


@every_variant
@pytest.mark.parametrize("kind", LAYERS)
def test_lycoris_makes_the_same_of_a_file_of_ours(kind, variant, tmp_path):
    """At a multiplier of 1, where all programs agree on what DoRA is."""
    model = nn.ModuleDict({"block": LAYERS[kind]()}).requires_grad_(False)
    x = input_of(model["block"])
    module_class, _, theirs, rank, own = VARIANTS[variant]
    options = {"module_class": module_class, "module_kwargs": own, "use_dora": True, "dora_conv": True}
    network = LoRANetwork(None, "lora_unet", None, model, 1.0, rank, 1.5, **options)
    network.apply_to(None, model)
    learn(network.unet_loras[0])
    ours = model["block"](x)
    file = str(tmp_path / "adapter.safetensors")
    network.save_weights(file, None, None)
    weights = load_file(file)
    magnitude = weights["lora_unet_block.dora_scale"]
    assert magnitude.shape == (len(model["block"].weight), *[1] * (model["block"].weight.dim() - 1))
    assert magnitude.dtype == torch.float32
    base = LAYERS[kind]()
    base.load_state_dict(model["block"].state_dict())
    with torch.no_grad():
        found = theirs.make_module_from_state_dict("x", base, *theirs.extract_state_dict(weights, "lora_unet_block"))
        found.apply_to()
        assert furthest(base(x), ours.double()) < 1e-5
        # Without the magnitude it is another function by far.
        found.wd = False
        assert furthest(base(x), ours.double()) > 1e-2


@pytest.mark.parametrize("save_format", ["native", "standard"])
@every_variant
def test_files_load_and_merge_to_what_was_trained(variant, save_format, make_model, tmp_path):
    module_class, inference_class, _, rank, own = VARIANTS[variant]

    def network(model, **more):
        options = {"module_class": module_class, "module_kwargs": own, "use_dora": True, "save_format": save_format}
        created = LoRANetwork(["Block"], "lora_unet", None, model, 1.0, rank, 1.5, **options, **more)
        created.apply_to(None, model)
        return created

    model, x = make_model(), torch.randn(3, 8, 12)
    trained = network(model)
    assert {lora.dora_disabled_reason for lora in trained.unet_loras} == {None, "non-Linear"}
    for lora in trained.unet_loras:
        if lora.use_dora:
            learn(lora)
        else:
            nn.init.normal_(lora.zero_factor, std=0.1)
    output = model(x)
    file = str(tmp_path / "adapter.safetensors")
    trained.save_weights(file, None, None)
    assert {key.rpartition(".")[2] for key in load_file(file) if "dora" in key} == (
        {"dora_scale", "use_dora_flag"} if save_format == "native" else {"dora_scale"}
    )
    resumed = make_model()
    again = network(resumed)
    again.load_weights(file)
    assert torch.equal(resumed(x), output)
    again.load_state_dict(again.state_dict(), strict=True)
    merged = make_model()
    create = loha if module_class is loha.LoHaModule else lokr
    weights = load_file(file)
    merging = creation.create_network_from_weights(
        None, 1.0, weights, unet=merged, for_inference=True, module_class=inference_class
    )
    merging.merge_to(None, merged, weights)
    assert furthest(merged(x), output.double()) < 1e-5
    weight = merged.blocks[0].attn["to_q"].weight
    base = make_model().blocks[0].attn["to_q"].weight
    with torch.no_grad():
        keys = set(weights)
        name = "lora_unet_blocks_0_attn_to_q"
        assert torch.allclose(create.merge_weights_to_tensor(base, name, weights, keys, 1.0, "cpu"), weight, atol=1e-6)
    assert not any(key.startswith(f"{name}.") for key in keys)


@every_variant
def test_magnitudes_that_are_missing_are_an_error(variant, make_model, tmp_path):
    module_class, inference_class, _, rank, own = VARIANTS[variant]
    options = {"module_class": module_class, "module_kwargs": own}
    plain = LoRANetwork(["Block"], "lora_unet", None, make_model(), 1.0, rank, 1.5, **options)
    file = str(tmp_path / "adapter.safetensors")
    plain.save_weights(file, None, None)
    network = LoRANetwork(["Block"], "lora_unet", None, make_model(), 1.0, rank, 1.5, use_dora=True, **options)
    with pytest.raises(ValueError, match="network expects DoRA but weights lack it"):
        network.load_weights(file)
    with pytest.raises(RuntimeError, match="network expects DoRA but weights lack it"):
        network.load_state_dict(load_file(file), strict=False)
    module = inference_class("layer", nn.Linear(48, 64), lora_dim=rank, use_dora=True, **own)
    tensors = {key: tensor for key, tensor in module.state_dict().items() if "dora" not in key}
    with pytest.raises(ValueError, match=r"layer\.dora_layer\.weight is missing"):
        module.merge_to(tensors)
    with pytest.raises(ValueError, match=r"layer\.dora_layer\.weight has shape \[3\], but the base has 64 rows"):
        module.merge_to({**tensors, "dora_layer.weight": torch.ones(3)})


@pytest.mark.parametrize("variant", ["LoHa", "LoKr"])
def test_groups_norms_and_the_exchange_of_a_base(variant, caplog):
    base = LAYERS["linear"]()
    module = built(variant, base)
    groups = module.parameter_groups()
    assert [parameter is module.dora_layer.weight for parameter in groups["dora"]] == [True]
    assert len(groups[""]) == len(module.factors)
    norm = module.change_norm()
    assert torch.isclose(norm.double(), delta_of(module).norm(), rtol=1e-5)
    module.shrink(torch.tensor(0.25))
    assert torch.isclose(delta_of(module).norm(), norm.double() / 4, rtol=1e-5)
    base(input_of(base))
    with torch.no_grad(), caplog.at_level(logging.WARNING):
        base.weight.mul_(2.0)
    base(input_of(base))
    assert "the weights of the base changed" in caplog.text


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("shape", [(), (64, 1), (64, 4, 1)], ids=["number", "rows", "blocks"])
@pytest.mark.parametrize("dtype", FP8)
@every_variant
def test_scaled_fp8_bases(variant, dtype, shape, autocast):
    base = nn.Linear(48, 64).bfloat16().requires_grad_(False)
    quantise(base, dtype, shape, torch.bfloat16)
    x = input_of(base).bfloat16().requires_grad_()
    module_class, _, _, rank, own = VARIANTS[variant]
    module = module_class("layer", base, 1.0, rank, 1.5, use_dora=True, **own)
    module.apply_to()
    assert torch.equal(module._gain(), torch.ones(64))
    learn(module)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = base(x)
    assert output.dtype == torch.bfloat16
    wanted = computed_with(base, expected_weight(module, dequantised(base)), x)
    # The forward of the base rounds its weight and its output, and autocast the change.
    assert furthest(output, wanted) < 2.0**-5
    output.float().square().sum().backward()
    assert all(torch.isfinite(tensor.grad).all() and tensor.grad.any() for tensor in (x, *module.parameters()))
