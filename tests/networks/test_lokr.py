"""LoKr against its formula and against lycoris-lora, whose forward applies the scale once (its merge does it twice)."""

import importlib
import math

import pytest
import torch
from torch import nn

from lora_inspect.algorithms import lokr
from networks.build.network import LoRANetwork
from networks.lokr import LoKrInfModule, LoKrModule, merge_weights_to_tensor

pytestmark = pytest.mark.numeric

LAYERS = {
    "linear": lambda: nn.Linear(48, 64),
    "linear without bias": lambda: nn.Linear(48, 64, bias=False),
    "conv": lambda: nn.Conv2d(12, 24, 3, stride=2, padding=1),
    "1x1": lambda: nn.Conv2d(12, 24, 1),
    "grouped": lambda: nn.Conv2d(12, 24, 3, groups=2, padding=1),
    "conv3d": lambda: nn.Conv3d(12, 24, (1, 2, 2), stride=(1, 2, 2)),
}
# w2 as a product, and, at a rank of half its longer side, whole.
RANKS = (2, 64)


def input_of(base):
    if isinstance(base, nn.Linear):
        return torch.randn(2, 5, base.in_features)
    return torch.randn(2, base.in_channels, *[8] * len(base.kernel_size))


def built(base, module_class=LoKrModule, rank=2, alpha=3.0, **options):
    """A module that has learned something, on a frozen base."""
    module = module_class("layer", base.requires_grad_(False), 1.0, rank, alpha, **options)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    module.apply_to()
    return module


def oracle(module):
    """kron of w1 (o1, i1) and w2 (o2, i2, kernel), entry by entry of the two."""
    factors = {name.removeprefix("lokr_"): value.detach().double() for name, value in module.named_parameters()}
    whole = "w2" in factors
    w2 = factors["w2"].flatten(1) if whole else factors["w2_a"] @ factors["w2_b"]
    w2 = w2.view(w2.shape[0], -1, math.prod(module.org_module.weight.shape[2:]))
    delta = torch.einsum("ab,cdk->acbdk", factors["w1"], w2)
    scale = 1.0 if whole else float(module.alpha) / module.lora_dim
    return scale * delta.reshape(module.org_module.weight.shape)


@pytest.mark.parametrize(
    ("dimension", "factor", "parts"),
    [
        (127, -1, (1, 127)),
        (128, -1, (8, 16)),
        (128, 2, (2, 64)),
        (128, 16, (8, 16)),
        (250, 4, (2, 125)),
        (250, 8, (5, 50)),
        (360, -1, (18, 20)),
        (360, 16, (15, 24)),
        (512, 4, (4, 128)),
        (1024, -1, (32, 32)),
        (12, 5, (3, 4)),
        (7, 3, (1, 7)),
    ],
)
def test_factorisation(dimension, factor, parts):
    assert lokr.factorise(dimension, factor) == parts


def test_factorisation_is_that_of_lycoris():
    reference = importlib.import_module("lycoris.functional").factorization
    for dimension in (*range(1, 130), 320, 640, 768, 1280, 1536, 3072, 5120, 8960):
        for factor in (-1, 1, 2, 3, 4, 5, 8, 16, 64):
            assert lokr.factorise(dimension, factor) == tuple(reference(dimension, factor)), (dimension, factor)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("kind", LAYERS)
def test_the_first_step_is_the_base(kind, rank):
    base = LAYERS[kind]()
    x = input_of(base)
    before = base(x)
    LoKrModule("layer", base, lora_dim=rank).apply_to()
    assert torch.equal(base(x), before)


@pytest.mark.parametrize("multiplier", [1.0, -0.4])
@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("kind", LAYERS)
def test_forward_delta_and_merge_are_the_formula(kind, rank, multiplier):
    base = LAYERS[kind]().double()
    module = built(base, LoKrInfModule, rank).double()
    module.multiplier = multiplier
    x = input_of(base).double()
    runtime = base(x)
    expected = multiplier * oracle(module)
    assert torch.allclose(module.get_weight(), expected, rtol=1e-12)
    before = base.weight.clone()
    module.merge_to(module.state_dict())
    assert torch.allclose(base.weight, before + expected, rtol=1e-12)
    assert torch.allclose(base(x), runtime, rtol=1e-12)


@pytest.mark.parametrize("factor", [-1, 4])
@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("kind", LAYERS)
def test_lycoris_makes_the_same_of_the_same_factors(kind, rank, factor):
    lycoris = importlib.import_module("lycoris.modules.lokr")
    base, other = LAYERS[kind](), LAYERS[kind]()
    other.load_state_dict(base.state_dict())
    module = built(base, rank=rank, factor=factor)
    theirs = lycoris.LokrModule("layer", other.requires_grad_(False), 1.0, rank, 3.0, factor=factor)
    assert {key: tensor.shape for key, tensor in theirs.state_dict().items()} == {
        key: tensor.shape for key, tensor in module.state_dict().items()
    }
    assert theirs.scale == module.scale
    assert float(theirs.alpha) == float(module.alpha)
    theirs.load_state_dict(module.state_dict(), strict=True)
    theirs.apply_to()
    x = input_of(base)
    ours, reference = base(x), other(x)
    assert torch.allclose(ours, reference, rtol=1e-4, atol=1e-5 * reference.abs().max().item())


def test_keys_and_shapes_are_those_of_musubi_and_lycoris():
    def shapes(rank):
        state = LoKrModule("layer", nn.Conv2d(12, 24, 3), lora_dim=rank, alpha=1).state_dict()
        return {key: tuple(tensor.shape) for key, tensor in state.items()}

    assert shapes(2) == {"alpha": (), "lokr_w1": (4, 3), "lokr_w2_a": (6, 2), "lokr_w2_b": (2, 36)}
    assert shapes(64) == {"alpha": (), "lokr_w1": (4, 3), "lokr_w2": (6, 4, 3, 3)}


def test_two_whole_factors_have_scale_1_and_store_the_rank_as_alpha():
    module = LoKrModule("layer", nn.Linear(8, 8), lora_dim=64, alpha=1.0)
    assert (module.scale, float(module.alpha)) == (1.0, 64.0)
    # Whatever a file says: other programs store the alpha that was asked.
    module.load_state_dict({**module.state_dict(), "alpha": torch.tensor(5.0)}, strict=True)
    assert (module.scale, float(module.alpha)) == (1.0, 64.0)
    assert LoKrModule("layer", nn.Linear(48, 64), lora_dim=2, alpha=1.0).scale == 0.5


def test_half_precision_base():
    base = LAYERS["linear"]().to(torch.bfloat16)
    module = built(base)
    x = input_of(base).to(torch.bfloat16)
    output = base(x)
    assert output.dtype == torch.bfloat16
    expected = x.double() @ (base.weight.double() + oracle(module)).t() + base.bias.double()
    assert (output.double() - expected).abs().max() < 2**-7 * expected.abs().max()


def test_max_norm_shrinks_the_delta_to_the_limit():
    for rank in RANKS:
        module = built(LAYERS["conv"](), rank=rank)
        norm = oracle(module).norm()
        assert math.isclose(module.change_norm(), norm, rel_tol=1e-5)
        module.shrink(torch.tensor(0.25))
        assert math.isclose(oracle(module).norm(), norm / 4, rel_tol=1e-5)


def test_factors_of_another_weight_are_an_error():
    module = built(LAYERS["linear"](), LoKrInfModule)
    with pytest.raises(ValueError, match="layer: either w2 or both w2_a and w2_b are needed"):
        module.merge_to({**module.state_dict(), "lokr_w2": torch.zeros(8, 8)})
    with pytest.raises(ValueError, match=r"layer: its factors change a weight of .*, but the base's is"):
        module.merge_to({**module.state_dict(), "lokr_w1": torch.zeros(3, 3)})


def test_a_network_with_another_factor_cannot_load(make_model, tmp_path):
    def network(factor):
        kwargs = {"module_class": LoKrModule, "module_kwargs": {"factor": factor}}
        return LoRANetwork(["Block"], "lora_unet", None, make_model(), 1.0, 1, 1, **kwargs)

    file = str(tmp_path / "adapter.safetensors")
    network(2).save_weights(file, None, None)
    network(2).load_weights(file)
    with pytest.raises(ValueError, match=r"lokr_w1 has shape \[2, 2\], but the network has \[3, 3\]"):
        network(-1).load_weights(file)


def test_one_weight_at_a_time():
    """The call of musubi-tuner's loader: keys that were used leave the set, other weights come back as they are."""
    module = built(LAYERS["conv"](), LoKrInfModule, alpha=0.75)
    weight, before = module.org_module.weight, module.org_module.weight.clone()
    weights = {f"layer.{key}": tensor for key, tensor in module.state_dict().items()}
    weights["layer_1.alpha"] = torch.tensor(1.0)
    left = set(weights)
    assert merge_weights_to_tensor(weight, "other", weights, left, 1.0, "cpu") is weight
    assert left == set(weights)
    merged = merge_weights_to_tensor(weight, "layer", weights, left, 0.5, "cpu")
    assert left == {"layer_1.alpha"}
    module.multiplier = 0.5
    module.merge_to(module.state_dict())
    assert torch.equal(merged, module.org_module.weight)
    assert torch.allclose(merged - before, 0.5 * oracle(module).view(before.shape).float(), atol=1e-6)
    half = merge_weights_to_tensor(before.bfloat16(), "layer", weights, set(weights), 0.5, "cpu")
    assert half.dtype == torch.bfloat16


def test_factors_without_dimensions_are_named():
    whole = {"w1": (2, 2), "w2": (3, 3)}
    thin = {"w1": (2, 2), "w2_a": (3, 2), "w2_b": (2, 3)}
    assert lokr.check(whole) is None
    assert lokr.check(thin) is None
    assert lokr.check({**whole, "w2": (3,)}) == "w2 [3] has fewer than two dimensions"
    for shape in ((), (2,), (3, 3)):
        assert lokr.check({**thin, "w2_b": shape}) == f"w2_a [3, 2] and w2_b {list(shape)} make no product"
