"""PiSSA: the base is never touched, the first step is the base, and the file is a plain LoRA on it."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.maths.residual import principal_factors
from lora_inspect.ops import merge as merge_command
from lora_inspect.reading.adapter import read_adapter
from networks import lora
from networks.modules.lora_module import LoRAModule
from networks.modules.pissa import PissaModule
from networks.network_args import read_init

pytestmark = pytest.mark.numeric

EXCLUDED = "['.*(conv|point)']"
STARTS = ("pissa", "pissa_niter_4")


def with_a_gap(weight, rank):
    """The weight with its singular values beyond `rank` at a tenth of the last one before, or below it.

    Power iterations find the first ones from any start, as each leaves a hundredth of the others. Without a gap, some
    starts end a tenth above the least error.
    """
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    values[rank:] *= values[rank - 1] / (10 * values[rank])
    return (left * values) @ right


def create(model, start="pissa", rslora=False, dim=4, alpha=2.0, **options):
    options = {"exclude_patterns": EXCLUDED, "use_rslora": rslora, "init_lora_weights": start} | options
    network = lora.create_network(["Block"], "lora_unet", 1.0, dim, alpha, None, None, model, **options)
    network.apply_to(None, model)
    return network


def train(network, model, x, steps=4):
    optimizer = torch.optim.AdamW(network.prepare_optimizer_params(unet_lr=2e-3)[0])
    network.on_epoch_start(None)
    target = torch.randn_like(x)
    for _ in range(steps):
        nn.functional.mse_loss(model(x), target).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("start", ["kaiming", *STARTS])
def test_a_limit_of_norms_is_refused_before_the_first_step(make_model, start):
    network = create(make_model(), start)
    network.prepare_network(SimpleNamespace(scale_weight_norms=None))
    if start == "kaiming":
        network.prepare_network(SimpleNamespace(scale_weight_norms=1.0))
    else:
        with pytest.raises(ValueError, match="cannot be combined with scale_weight_norms"):
            network.prepare_network(SimpleNamespace(scale_weight_norms=1.0))


@pytest.mark.parametrize("iterations", [None, 8])
def test_the_factors_are_the_best_approximation(iterations):
    weight = with_a_gap(torch.randn(12, 20, dtype=torch.float64), 5)
    up, down = principal_factors(weight, 5, iterations)
    left, values, right = (part.numpy() for part in torch.linalg.svd(weight, full_matrices=False))
    best = torch.from_numpy((left[:, :5] * values[:5]) @ right[:5])
    error, least = (weight - up @ down).norm(), (weight - best).norm()
    assert error <= (1 + (1e-12 if iterations is None else 1e-6)) * least
    assert torch.allclose(up.norm(dim=0), down.norm(dim=1))


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("start", STARTS)
def test_the_first_step_is_the_base_and_the_base_is_left_alone(make_model, start, rslora):
    model, x = make_model(), torch.randn(3, 8, 12)
    adapted = model.blocks[0].attn["to_q"]
    adapted.weight.data = with_a_gap(adapted.weight.data, 4)
    weights = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    before = model(x)
    network = create(model, start, rslora)
    assert torch.equal(model(x), before)
    module = network.unet_loras[0]
    # Trained factors and scale are the components of the weight, in the scale's rule.
    scale = 2.0 / math.sqrt(4) if rslora else 2.0 / 4
    values = torch.linalg.svdvals(adapted.weight.double())
    found = torch.linalg.svdvals(scale * (module.lora_up.weight @ module.lora_down.weight).double())
    assert torch.allclose(found[:4], values[:4], rtol=1e-3)
    train(network, model, x)
    assert not torch.equal(model(x), before)
    for off in (lambda: network.set_multiplier(0), lambda: network.set_enabled(False)):
        off()
        assert torch.equal(model(x), before)
        network.set_multiplier(1.0)
    assert all(torch.equal(tensor, weights[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_forward_is_that_of_the_residual_base(dtype):
    """y = (W - s·up₀ down₀) x + s·up down x, in float64."""
    base = nn.Linear(24, 16).to(dtype).requires_grad_(False)
    module = PissaModule("x", base, 1.0, 4, 8.0)
    module.apply_to()
    first = module.lora_up.weight.detach().double() @ module.lora_down.weight.detach().double()
    with torch.no_grad():
        for factor in (module.lora_up, module.lora_down):
            factor.weight.add_(0.03 * torch.randn_like(factor.weight))
    x = torch.randn(5, 24).to(dtype)
    trained = module.lora_up.weight.double() @ module.lora_down.weight.double()
    expected = x.double() @ (base.weight.double() - 2 * first + 2 * trained).t() + base.bias.double()
    assert (base(x).double() - expected).abs().max() < 4 * torch.finfo(dtype).eps * expected.abs().max()
    (base(x).float().square().sum()).backward()
    towards_output = 2 * 2 * expected.detach()
    gradients = (
        (module.lora_up, towards_output.t() @ (x.double() @ module.lora_down.weight.double().t())),
        (module.lora_down, module.lora_up.weight.double().t() @ towards_output.t() @ x.double()),
    )
    for factor, gradient in gradients:
        close = 3 * torch.finfo(dtype).eps * gradient.abs().max()
        assert (factor.weight.grad.double() - gradient).abs().max() < close


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("alpha", [0, 2.0])
@pytest.mark.parametrize("rslora", [False, True])
def test_the_file_merges_into_the_original_base(make_model, tmp_path, rslora, alpha, dtype):
    model, x = make_model(), torch.randn(3, 8, 12)
    save_file(model.state_dict(), tmp_path / "base.safetensors")
    base = model(x)
    network = create(model, rslora=rslora, alpha=alpha)
    train(network, model, x)
    runtime = model(x).detach()
    file = str(tmp_path / "adapter.safetensors")
    metadata = {
        "ss_network_dim": "4",
        "ss_network_alpha": str(float(alpha)),
        "ss_network_args": json.dumps({"use_rslora": str(rslora), "init_lora_weights": "pissa"}),
    }
    network.save_weights(file, dtype, metadata)
    adapter = read_adapter(open_checkpoint(file))
    assert not [problem for problem in adapter.problems if problem.severity != "note"]
    assert {contribution.rank for contribution in adapter.contributions} == {8}
    scale = (alpha / 2 if rslora else alpha / 4) or 1.0
    assert {round(contribution.scale, 5) for contribution in adapter.contributions} == {scale}
    plan = merge_command.plan_merge(str(tmp_path / "base.safetensors"), [(file, 1.0)], merge_command.MergeOptions())
    merge_command.merge(plan, str(tmp_path / "merged.safetensors"))
    merged = make_model(3)
    merged.load_state_dict(load_file(tmp_path / "merged.safetensors"))
    # In half precision it is the change that is rounded, not the components that it is the difference of.
    change = (runtime - base).abs().max()
    assert (merged(x) - runtime).abs().max() <= (1e-5 if dtype == torch.float32 else 2.0**-6) * change

    with safe_open(file, "pt") as opened:
        stored = opened.metadata()
    assert stored["lora_inspect.init_lora_weights"] == "pissa"
    assert "ss_init_lora_weights" not in stored
    assert stored["lora_inspect.initial_factors"] == "included"
    assert float(stored["ss_network_dim"]) == 8


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
@pytest.mark.parametrize("rslora", [False, True])
def test_resuming_from_the_file(make_model, tmp_path, rslora, ending):
    model, x = make_model(), torch.randn(3, 8, 12)
    network = create(model, rslora=rslora)
    train(network, model, x)
    file = str(tmp_path / f"adapter.{ending}")
    network.save_weights(file, torch.float32, None)
    other = make_model()
    resumed = create(other, rslora=rslora, alpha=1.0)
    assert resumed.load_weights(file).missing_keys == []
    assert torch.allclose(other(x), model(x), atol=1e-6)
    for key, tensor in network.state_dict().items():
        assert torch.allclose(resumed.state_dict()[key], tensor, atol=1e-6), key
    # As plain LoRA, it is one of twice the rank.
    plain = lora.create_arch_network_from_weights(1.0, resumed._file_tensors(), unet=make_model())
    assert {module.lora_dim for module in plain.unet_loras} == {8}
    assert {type(module) for module in plain.unet_loras} == {LoRAModule}


def test_strict_state_dicts_need_no_base(make_model):
    model, other, x = make_model(), make_model(), torch.randn(3, 8, 12)
    network = create(model)
    train(network, model, x)
    restored = create(other)
    restored.load_state_dict(network.state_dict(), strict=True)
    assert torch.equal(other(x), model(x))


def test_a_loaded_state_is_not_overwritten_by_apply_to():
    module = PissaModule("x", nn.Linear(8, 8), 1.0, 2, 2.0)
    state = {key: torch.ones_like(tensor) for key, tensor in module.state_dict().items()}
    module.load_state_dict(state)
    module.apply_to()
    assert (module.initial_up == 1).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_dora": True}, "pissa cannot be combined with use_dora"),
        ({"exclude_patterns": "[]"}, r"conv: init_lora_weights=pissa is for Linear layers, not for Conv2d"),
        ({"split_dims": "{'.*to_q': [6, 6]}"}, "pissa cannot be combined with split_dims"),
        ({"alpha": -2}, "network_alpha=-2: a number of at least 0 was expected"),
        ({"module_class": lora.LoRAInfModule}, "is for training LoRA, not for LoRAInfModule"),
    ],
)
def test_what_pissa_cannot_do(make_model, options, message):
    with pytest.raises(ValueError, match=message):
        create(make_model(), **options)


def test_pissa_refuses_an_alpha_of_weights_below_0():
    with pytest.raises(ValueError, match="needs an alpha above 0"):
        PissaModule("x", nn.Linear(4, 4), 1.0, 2, -2.0)


def test_pissa_refuses_meta_bases_and_max_norm(make_model):
    with pytest.raises(ValueError, match="not loaded yet"):
        PissaModule("x", nn.Linear(4, 4, device="meta"), 1.0, 2).apply_to()
    with pytest.raises(ValueError, match="scale_weight_norms"):
        create(make_model()).apply_max_norm_regularization(1.0, "cpu")


@pytest.mark.parametrize(
    ("options", "metadata", "message"),
    [
        # The components of one base mean nothing without that base.
        ({}, {"ss_init_lora_weights": "pissa"}, "residual base"),
        ({"start": "kaiming"}, {"ss_init_lora_weights": "pissa_niter_4"}, "residual base"),
        ({}, {"ss_network_dim": "8"}, "do not hold its initial factors"),
        ({"dim": 2}, {"lora_inspect.initial_factors": "included"}, "has rank 4, but the network has rank 2; set"),
    ],
)
def test_files_that_do_not_fit(make_model, tmp_path, options, metadata, message):
    plain = create(make_model(), "kaiming", dim=8)
    file = str(tmp_path / "plain.safetensors")
    save_file(plain.state_dict(), file, metadata)
    with pytest.raises(ValueError, match=message):
        create(make_model(), **options).load_weights(file)


@pytest.mark.parametrize("dropouts", [{"neuron_dropout": 0.5}, {"rank_dropout": 0.5}, {"module_dropout": 0.5}])
def test_dropouts_add_no_noise_to_the_base(make_model, dropouts):
    model, x = make_model(), torch.randn(3, 8, 12)
    before = model(x)
    network = create(model, **dropouts)
    network.train()
    assert torch.equal(model(x), before)


def test_fp8_bases_have_components_too():
    base = nn.Linear(8, 8).requires_grad_(False)
    values = base.weight.to(torch.float8_e4m3fn).float() * 0.5
    base.weight = nn.Parameter(base.weight.to(torch.float8_e4m3fn), requires_grad=False)
    base.register_buffer("scale_weight", torch.tensor(0.5))
    base.forward = lambda input: nn.functional.linear(input, values, base.bias)
    module = PissaModule("x", base, 1.0, 8, 8.0)
    x = torch.randn(3, 8)
    before = base(x)
    module.apply_to()
    assert torch.allclose(module.lora_up.weight @ module.lora_down.weight, values, atol=1e-6)
    assert torch.equal(base(x), before)


def test_orthogonal(make_model, caplog):
    model, x = make_model(), torch.randn(3, 8, 12)
    before = model(x)
    network = create(model, "orthogonal", exclude_patterns="[]")
    assert torch.allclose(model(x), before, atol=1e-6)
    assert "4 convolutions are kaiming" in caplog.text
    for module in network.unet_loras:
        down, up = (factor.weight.flatten(1) for factor in module.factors[0])
        assert (up @ down).abs().max() < 1e-7
        assert down.abs().min() > 0
        assert (up.abs().max() > 0) == isinstance(module.org_module, nn.Linear)


def test_orthogonal_names_the_layer_and_where_its_rank_comes_from(make_model):
    with pytest.raises(ValueError, match=r"blocks.0.attn.to_q: .*even rank, but network_dim gives it 3"):
        create(make_model(), "orthogonal", dim=3)
    with pytest.raises(ValueError, match=r"blocks.0.img_mod: .*rank_pattern '\.\*mod' gives it 5"):
        create(make_model(), "orthogonal", rank_pattern={".*mod": 5})


def test_slices_start_orthogonal_each(make_model):
    network = create(make_model(), "orthogonal", split_dims={".*to_q": [4, 8]})
    split = next(module for module in network.unet_loras if module.split_dims)
    assert all((up.weight @ down.weight).abs().max() < 1e-7 < up.weight.abs().max() for down, up in split.factors)


@pytest.mark.parametrize(
    ("value", "expected"),
    [("Kaiming", "kaiming"), (" true ", "kaiming"), (True, "kaiming"), ("PISSA_niter_16", "pissa_niter_16")],
)
def test_spellings(value, expected):
    assert read_init("init_lora_weights", value) == expected


@pytest.mark.parametrize("value", ["false", False, "pissa_niter_0", "pissa_niter_", "gaussian", 1])
def test_what_is_no_start(value):
    with pytest.raises(ValueError, match="init_lora_weights="):
        read_init("init_lora_weights", value)


class Narrow(nn.Module):
    """A block with a layer of one output, as the text fusion of Krea 2 has it."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.projector = nn.Linear(12, 12), nn.Linear(12, 1)

    def forward(self, x):
        return self.wide(x) + self.projector(x)


def narrow():
    torch.manual_seed(4)
    return nn.Sequential(Narrow(), Narrow()).requires_grad_(False)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("pattern", [None, "{'.*wide': 6, '.*projector': 3}"])
def test_pissa_does_not_stop_at_a_layer_of_fewer_components_than_the_rank(tmp_path, caplog, rslora, pattern):
    model, x = narrow(), torch.randn(3, 12)
    base = model(x)
    options = {"use_rslora": rslora, "init_lora_weights": "pissa", "rank_pattern": pattern}
    network = lora.create_network(["Narrow"], "lora_unet", 1.0, 8, 2.0, None, None, model, **options)
    with caplog.at_level("INFO"):
        network.apply_to(None, model)
    wide = 6 if pattern else 8
    assert [module.lora_dim for module in network.unet_loras] == [wide, 1, wide, 1]
    assert torch.equal(model(x), base)
    for module in network.unet_loras:
        found = module.scale * module.lora_up.weight @ module.lora_down.weight
        left, values, right = torch.linalg.svd(module.org_module.weight, full_matrices=False)
        kept = module.lora_dim
        assert torch.allclose(found, (left[:, :kept] * values[:kept]) @ right[:kept], atol=1e-5)
    train(network, model, torch.randn(3, 12))
    file = str(tmp_path / "a.safetensors")
    network.save_weights(file, torch.float32, None)
    other = narrow()
    resumed = lora.create_network(["Narrow"], "lora_unet", 1.0, 8, 2.0, None, None, other, **options)
    resumed.apply_to(None, other)
    assert resumed.load_weights(file).missing_keys == []
    assert torch.allclose(other(x), model(x), atol=1e-6)
    third = narrow()
    plain = lora.create_arch_network_from_weights(1.0, load_file(file), unet=third)
    plain.apply_to(None, third)
    plain.load_state_dict(load_file(file), strict=True)
    assert [module.lora_dim for module in plain.unet_loras] == [2 * wide, 2, 2 * wide, 2]
    assert torch.allclose(third(x), model(x), atol=1e-6)


def test_pissa_says_once_which_ranks_it_lowers(caplog):
    with caplog.at_level("INFO"):
        lora.create_network(["Narrow"], "lora_unet", 1.0, 8, 2.0, None, None, narrow(), init_lora_weights="pissa")
    lines = [line for line in caplog.messages if "fewer components" in line]
    assert len(lines) == 1
    assert "0.projector 1, 1.projector 1" in lines[0]
