"""LoHa and LoKr against their formulas and against lycoris-lora's forward (its merge applies the scale twice)."""

import importlib
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from networks import loha, lokr

pytestmark = pytest.mark.numeric

LAYERS = {
    "linear": lambda: nn.Linear(48, 64),
    "linear without bias": lambda: nn.Linear(48, 64, bias=False),
    "conv": lambda: nn.Conv2d(12, 24, 3, stride=2, padding=1),
    "1x1": lambda: nn.Conv2d(12, 24, 1),
    "grouped": lambda: nn.Conv2d(12, 24, 3, groups=2, padding=1),
    "circular": lambda: nn.Conv2d(12, 24, (3, 1), padding=(1, 0), padding_mode="circular"),
    "conv3d": lambda: nn.Conv3d(12, 24, (1, 2, 2), stride=(1, 2, 2)),
}
# lycoris-lora's layers pad with zeros alone.
IN_LYCORIS = [kind for kind in LAYERS if kind != "circular"]


def hadamard(module):
    """(w1_a @ w1_b) ⊙ (w2_a @ w2_b) in one sum over both ranks."""
    a, b, c, d = (getattr(module, f"hada_{role}").detach().double() for role in ("w1_a", "w1_b", "w2_a", "w2_b"))
    delta = torch.einsum("or,ri,os,si->oi", a, b, c, d) * (float(module.alpha) / module.lora_dim)
    return delta.view(module.org_module.weight.shape)


def kronecker(module):
    """w1 ⊗ w2, of (o1, i1) and (o2, i2, kernel), entry by entry of the two."""
    factors = {name.removeprefix("lokr_"): value.detach().double() for name, value in module.named_parameters()}
    whole = "w2" in factors
    w2 = factors["w2"].flatten(1) if whole else factors["w2_a"] @ factors["w2_b"]
    w2 = w2.view(w2.shape[0], -1, math.prod(module.org_module.weight.shape[2:]))
    delta = torch.einsum("ab,cdk->acbdk", factors["w1"], w2)
    scale = 1.0 if whole else float(module.alpha) / module.lora_dim
    return scale * delta.reshape(module.org_module.weight.shape)


class Variant(NamedTuple):
    """An algorithm at one rank: its classes here and in lycoris-lora, its formula in float64, and its options."""

    module_class: Any
    inference_class: Any
    merge: Any
    lycoris: str
    oracle: Any
    rank: int
    options: Mapping[str, Any] = {}

    def built(self, base, inference=False, **options):
        """A module that has learned something, on a frozen base."""
        chosen = self.inference_class if inference else self.module_class
        module = chosen("layer", base.requires_grad_(False), 1.0, self.rank, 1.5, **self.options, **options)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        module.apply_to()
        return module

    def in_lycoris(self, base, **options):
        """The same module of lycoris-lora, as it starts."""
        file, name = self.lycoris.split(".")
        chosen = getattr(importlib.import_module(f"lycoris.modules.{file}"), name)
        return chosen("layer", base, 1.0, self.rank, 1.5, **self.options, **options)


LOHA = Variant(
    loha.LoHaModule, loha.LoHaInfModule, loha.merge_weights_to_tensor, "loha.LohaModule", hadamard, rank=3
)  # fmt: skip
LOKR = Variant(
    lokr.LoKrModule, lokr.LoKrInfModule, lokr.merge_weights_to_tensor, "lokr.LokrModule", kronecker, rank=2
)  # fmt: skip
VARIANTS = {
    "LoHa": LOHA,
    "LoKr": LOKR,
    "LoKr, factor 4": LOKR._replace(options={"factor": 4}),
    # From half of the longer side of w2 on it is whole.
    "LoKr, whole": LOKR._replace(rank=64),
    "LoKr, whole, factor 4": LOKR._replace(rank=64, options={"factor": 4}),
}
every_variant = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
both_algorithms = pytest.mark.parametrize("variant", [LOHA, LOKR], ids=["LoHa", "LoKr"])
every_layer = pytest.mark.parametrize("kind", LAYERS)


def input_of(base):
    if isinstance(base, nn.Linear):
        return torch.randn(2, 5, base.in_features)
    return torch.randn(2, base.in_channels, *[8] * len(base.kernel_size))


def furthest(found, expected):
    """The largest difference as a share of the largest entry."""
    return (found.double() - expected.double()).abs().max() / expected.double().abs().max()


@every_variant
@every_layer
def test_the_first_step_is_the_base(kind, variant):
    base = LAYERS[kind]()
    x = input_of(base)
    before = base(x)
    module = variant.module_class("layer", base, lora_dim=variant.rank, **variant.options)
    module.apply_to()
    assert torch.equal(base(x), before)
    # One factor alone is zero, so that there is a gradient.
    assert sum(not parameter.any() for parameter in module.parameters()) == 1


@pytest.mark.parametrize("multiplier", [1.0, 0.3, -2.0])
@every_variant
@every_layer
def test_forward_delta_and_merge_are_the_formula(kind, variant, multiplier):
    base = LAYERS[kind]().double()
    module = variant.built(base, inference=True).double()
    module.multiplier = multiplier
    x = input_of(base).double()
    runtime = base(x)
    assert torch.allclose(module.get_weight(), multiplier * variant.oracle(module), rtol=1e-12)
    assert torch.allclose(module.get_weight(1.0), variant.oracle(module), rtol=1e-12)
    before = base.weight.clone()
    module.merge_to(module.state_dict())
    assert torch.allclose(base.weight, before + multiplier * variant.oracle(module), rtol=1e-12)
    assert torch.allclose(base(x), runtime, rtol=1e-12)


@every_variant
@pytest.mark.parametrize("kind", IN_LYCORIS)
def test_lycoris_makes_the_same_of_the_same_factors(kind, variant):
    base, other = LAYERS[kind](), LAYERS[kind]()
    other.load_state_dict(base.state_dict())
    module = variant.built(base)
    theirs = variant.in_lycoris(other.requires_grad_(False))
    assert {key: tensor.shape for key, tensor in theirs.state_dict().items()} == {
        key: tensor.shape for key, tensor in module.state_dict().items()
    }
    assert theirs.scale == module.scale
    assert float(theirs.alpha) == float(module.alpha)
    theirs.load_state_dict(module.state_dict(), strict=True)
    theirs.apply_to()
    x = input_of(base)
    ours, reference = base(x), other(x)
    assert furthest(ours, reference) < 1e-5
    ours.square().sum().backward()
    reference.square().sum().backward()
    for factor, parameter in module.named_parameters():
        assert furthest(parameter.grad, getattr(theirs, factor).grad) < 1e-4, factor


# U-27: a half-precision base beside float32 factors, without autocast.
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["linear", "conv"])
@every_variant
def test_half_precision_bases(kind, variant, dtype, autocast):
    base = LAYERS[kind]().to(dtype)
    module = variant.built(base)
    x = input_of(base).to(dtype)
    with torch.autocast("cpu", dtype, enabled=autocast):
        output = base(x)
    assert output.dtype == dtype
    reference = LAYERS[kind]().double()
    reference.load_state_dict({"weight": base.weight.double() + variant.oracle(module), "bias": base.bias.double()})
    # Autocast computes the delta itself in half precision.
    bound = (8 if autocast else 4) * 2 ** (-7 if dtype == torch.bfloat16 else -10)
    assert furthest(output, reference(x.double())) < bound
    output.float().sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in module.parameters())


@pytest.mark.parametrize("autocast", [False, True])
@every_variant
def test_a_base_in_scaled_fp8_is_called_and_not_computed(variant, autocast):
    base = nn.Linear(48, 64)
    stored = base.weight.detach().to(torch.float8_e4m3fn)
    base.weight = nn.Parameter(stored, requires_grad=False)
    base.bias = nn.Parameter(base.bias.detach().bfloat16(), requires_grad=False)
    base.forward = lambda x: nn.functional.linear(x, 0.5 * base.weight.to(x.dtype), base.bias)
    module = variant.built(base)
    x = input_of(base).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = base(x)
    assert output.dtype == torch.bfloat16
    weight = 0.5 * stored.double() + variant.oracle(module)
    assert furthest(output, nn.functional.linear(x.double(), weight, base.bias.double())) < 8 * 2**-7
    output.float().square().sum().backward()
    for tensor in (x, *module.parameters()):
        assert tensor.grad.dtype == tensor.dtype
        assert torch.isfinite(tensor.grad).all()


@pytest.mark.parametrize("kind", ["linear", "conv", "grouped"])
@every_variant
def test_layers_of_one_sample_and_of_none(kind, variant):
    base = LAYERS[kind]()
    x = input_of(base)
    variant.built(base)
    whole = base(x)
    one = base(x[0])
    assert one.shape == whole[0].shape
    # Outputs of up to 12 are summed in another order.
    assert torch.allclose(one, whole[0], atol=1e-5)
    if kind == "linear":
        assert torch.allclose(base(x[0, 0]), whole[0, 0], atol=1e-6)
    empty = base(x[:0].requires_grad_())
    assert empty.shape == whole[:0].shape
    empty.sum().backward()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("kind", ["linear", "conv"])
@every_variant
@pytest.mark.slow
def test_forward_and_backward_compile_to_one_graph(kind, variant, backend):
    torch._dynamo.reset()
    base = LAYERS[kind]()
    module = variant.built(base)
    compiled = torch.compile(base, backend=backend, fullgraph=True)
    results = []
    for run in (base, compiled):
        x = input_of(base).fill_(0.5).requires_grad_()
        output = run(x)
        results.append([output, *torch.autograd.grad(output.square().sum(), [x, *module.parameters()])])
    for ours, compiled_ours in zip(*results, strict=True):
        assert furthest(compiled_ours, ours) < 1e-5


@every_variant
def test_switches(variant):
    base = LAYERS["linear"]()
    x = input_of(base)
    before = base(x)
    module = variant.built(base)
    assert not torch.equal(base(x), before)
    module.multiplier = 0
    assert torch.equal(base(x), before)
    module.multiplier, module.enabled = 1.0, False
    assert torch.equal(base(x), before)


@pytest.mark.slow
@both_algorithms
def test_dropouts_act_in_training_alone_and_keep_the_mean(variant):
    base = nn.Linear(10, 14)
    x = input_of(base)
    module = variant.built(base, dropout=0.25, rank_dropout=0.25)
    module.eval()
    change = base(x) - module.org_forward(x)
    module.train()
    draws = torch.stack([base(x) - module.org_forward(x) for _ in range(4000)])
    assert torch.allclose(draws.mean(0), change, atol=0.05 * change.abs().max().item())
    # Whole outputs are dropped, of all samples alike.
    assert any((draw.abs().amax((0, 1)) < 1e-6).any() for draw in draws[:50])


@both_algorithms
def test_module_dropout(variant):
    base = LAYERS["linear"]()
    x = input_of(base)
    before = base(x)
    variant.built(base, module_dropout=0.5)
    same = sum(torch.equal(base(x), before) for _ in range(200))
    assert 60 < same < 140


@every_variant
def test_max_norm_shrinks_the_delta_to_the_limit(variant):
    module = variant.built(LAYERS["conv"]())
    norm = variant.oracle(module).norm()
    assert math.isclose(module.change_norm(), norm, rel_tol=1e-5)
    module.shrink(torch.tensor(0.25))
    assert math.isclose(variant.oracle(module).norm(), norm / 4, rel_tol=1e-5)


@every_variant
def test_one_weight_at_a_time(variant):
    """The call of musubi-tuner's loader: keys that were used leave the set, other weights come back as they are."""
    module = variant.built(LAYERS["conv"](), inference=True)
    weight, before = module.org_module.weight, module.org_module.weight.clone()
    weights = {f"layer.{key}": tensor for key, tensor in module.state_dict().items()}
    weights["layer_1.alpha"] = torch.tensor(1.0)
    left = set(weights)
    assert variant.merge(weight, "other", weights, left, 1.0, "cpu") is weight
    assert left == set(weights)
    merged = variant.merge(weight, "layer", weights, left, 0.5, "cpu")
    assert left == {"layer_1.alpha"}
    module.multiplier = 0.5
    module.merge_to(module.state_dict())
    assert torch.equal(merged, module.org_module.weight)
    assert torch.allclose(merged - before, 0.5 * variant.oracle(module).float(), atol=1e-6)
    half = variant.merge(before.bfloat16(), "layer", weights, set(weights), 0.5, "cpu")
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize("key", ["extra", "lora_down.weight"])
@both_algorithms
def test_one_weight_is_not_merged_without_a_part_of_its_change(variant, key):
    module = variant.built(nn.Linear(10, 14))
    weights = {f"layer.{name}": tensor for name, tensor in module.state_dict().items()}
    weights[f"layer.{key}"] = torch.ones(14, 1)
    left = set(weights)
    with pytest.raises(ValueError, match=rf"1 tensor of the weights cannot be used by a Lo\w+ network: layer\.{key}"):
        variant.merge(module.org_module.weight, "layer", weights, left, 1.0, "cpu")
    assert left == set(weights)


@both_algorithms
def test_one_weight_at_a_time_may_have_tucker_cores(variant):
    """Those of lycoris-lora's convolutions, which no network here trains."""
    base = LAYERS["conv"]().requires_grad_(False)
    weight = base.weight.clone()
    theirs = variant.in_lycoris(base, use_tucker=True)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    weights = {f"layer.{key}": tensor for key, tensor in theirs.state_dict().items()}
    assert any(key.endswith(("_t1", "_t2")) for key in weights)
    left = set(weights)
    merged = variant.merge(weight, "layer", weights, left, 1.0, "cpu")
    assert left == set()
    theirs.apply_to()
    x = input_of(base)
    assert furthest(base._conv_forward(x, merged, base.bias), base(x)) < 1e-5
    assert not torch.allclose(merged, weight, atol=1e-2)
