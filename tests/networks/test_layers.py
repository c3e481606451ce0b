import copy
import logging

import pytest
import torch
from torch import nn

from networks.lora import LoRAInfModule, LoRAModule
from networks.modules.masks import drop_ranks


def applied(base=None, cls=LoRAModule, **options):
    base = (base or nn.Linear(6, 8)).requires_grad_(False)
    module = cls("lora_unet_x", base, **options)
    module.apply_to()
    for factor in module.factors:
        nn.init.normal_(factor.up.weight)
    return base, module


def test_state_dict():
    module = LoRAModule("x", nn.Linear(6, 8), 1.0, 4, 2.0, use_dora=True)
    shapes = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    assert shapes == {
        "alpha": (),
        "lora_down.weight": (4, 6),
        "lora_up.weight": (8, 4),
        "dora_layer.weight": (8,),
    }
    assert {tensor.dtype for tensor in module.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize("alpha", [0, None, 0.0])
@pytest.mark.parametrize(("rslora", "stored"), [(False, 9.0), (True, 3.0)])
def test_an_alpha_of_0_is_scale_1(alpha, rslora, stored):
    module = LoRAModule("x", nn.Linear(2, 2), 1.0, 9, alpha, use_rslora=rslora)
    assert module.scale == 1.0
    assert module.alpha.item() == stored


@pytest.mark.parametrize("alpha", [4, 4.0, torch.tensor(4)])
def test_the_scale_is_a_python_float(alpha):
    module = LoRAModule("x", nn.Linear(2, 2), 1.0, 16, alpha)
    assert type(module.scale) is float
    assert module.scale == 0.25
    assert LoRAModule("x", nn.Linear(2, 2), 1.0, 16, alpha, use_rslora=True).scale == 1.0


def test_alpha_stays_float32_when_the_module_is_cast():
    module = LoRAModule("x", nn.Linear(2, 2), 1.0, 16, 5.656854).to(torch.bfloat16)
    assert module.lora_up.weight.dtype == torch.bfloat16
    assert module.alpha.dtype == torch.float32
    assert module.alpha.item() == pytest.approx(5.656854, rel=1e-7)


def test_a_loaded_alpha_changes_the_scale():
    module = LoRAModule("x", nn.Linear(2, 2), 1.0, 4, 1.0)
    state = module.state_dict() | {"alpha": torch.tensor([4], dtype=torch.int64)}
    module.load_state_dict(state)
    assert module.scale == 1.0
    del state["alpha"]
    module.load_state_dict(state)
    assert module.scale == 1.0
    with pytest.raises(ValueError, match="alpha is 0"):
        module.load_state_dict(state | {"alpha": torch.tensor(0.0)})


def test_the_base_and_the_adapter_stay_apart():
    base, module = applied()
    assert set(base.state_dict()) == {"weight", "bias"}
    assert list(base.children()) == []
    assert not any("org" in key for key in module.state_dict())
    assert module.org_module is base


@pytest.mark.parametrize("name", ["dropout", "rank_dropout", "module_dropout"])
@pytest.mark.parametrize("value", [1.0, -0.1, 2])
def test_a_dropout_that_is_no_probability(name, value):
    with pytest.raises(ValueError, match=name):
        LoRAModule("x", nn.Linear(2, 2), **{name: value})


@pytest.mark.parametrize(
    ("base", "options", "message"),
    [
        (nn.Embedding(3, 3), {}, "Embedding"),
        (nn.ConvTranspose2d(2, 2, 3), {}, "ConvTranspose2d"),
        (nn.Linear(2, 4), {"split_dims": [1, 2]}, "add up to 4"),
        (nn.Conv2d(2, 4, 1), {"split_dims": [2, 2]}, "Conv2d"),
        (nn.Linear(2, 4), {"lora_dim": 0}, "rank"),
    ],
)
def test_what_cannot_be_adapted_is_named(base, options, message):
    with pytest.raises(ValueError, match=message):
        LoRAModule("x", base, **options)


@pytest.mark.parametrize(
    ("base", "options", "reason"),
    [
        (nn.Linear(2, 4), {}, None),
        (nn.Linear(2, 4), {"dropout": 0.0, "rank_dropout": 0.0, "module_dropout": 0.5}, None),
        (nn.Linear(2, 4), {"dropout": 0.1}, "dropout"),
        (nn.Linear(2, 4), {"rank_dropout": 0.1}, "rank_dropout"),
        (nn.Linear(2, 4), {"split_dims": [2, 2]}, "split_dims"),
        (nn.Conv2d(2, 4, 1), {}, "non-Linear"),
    ],
)
def test_where_dora_is_disabled(base, options, reason):
    module = LoRAModule("x", base, use_dora=True, **options)
    assert module.dora_disabled_reason == reason
    assert module.use_dora == (reason is None)
    assert hasattr(module, "dora_layer") == (reason is None)


@pytest.mark.parametrize(("shape", "axis"), [((5, 4), -1), ((5, 3, 4), -1), ((5, 4, 3, 4), -1), ((5, 4, 3, 2), -3)])
def test_rank_dropout_is_per_sample_and_per_rank(shape, axis):
    hidden = torch.ones(shape)
    dropped = (
        drop_ranks(hidden, 0.5, axis).movedim(axis, 1).flatten(2) if len(shape) > 2 else drop_ranks(hidden, 0.5, axis)
    )
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    if len(shape) > 2:
        assert (dropped == dropped[:, :, :1]).all()
        assert not (dropped == dropped[:1]).all()


def test_dropouts_are_for_training_only_and_keep_the_mean():
    base, module = applied(dropout=0.3, rank_dropout=0.4, lora_dim=4)
    x = torch.randn(1, 6)
    module.eval()
    exact = base(x)
    assert torch.equal(base(x), exact)
    module.train()
    mean = base(x.expand(40000, 6)).mean(0)
    assert (mean - exact[0]).abs().max() < 0.05 * exact.abs().max()
    assert not torch.equal(base(x), base(x))


def test_rank_dropout_of_split_layers():
    base, module = applied(split_dims=[3, 5], rank_dropout=0.5)
    assert base(torch.randn(2, 3, 6)).shape == (2, 3, 8)
    assert module.training


def test_module_dropout_is_all_or_nothing():
    base, module = applied(module_dropout=0.4, use_dora=True)
    x = torch.randn(3, 6)
    module.enabled = False
    off = base(x)
    module.enabled = True
    module.eval()
    on = base(x)
    module.train()
    outcomes = [base(x) for _ in range(300)]
    skipped = sum(torch.equal(outcome, off) for outcome in outcomes)
    assert skipped + sum(torch.equal(outcome, on) for outcome in outcomes) == 300
    assert 80 < skipped < 160


@pytest.mark.parametrize("dora", [False, True])
def test_networks_stack(dora):
    base = nn.Linear(6, 8).requires_grad_(False)
    x = torch.randn(5, 6)
    weight = base.weight.double()
    _, first = applied(base)
    scaled = {}
    _, second = applied(base, use_dora=dora)
    for module in (first, second):
        scaled[module] = module.scale * module.lora_up.weight.double() @ module.lora_down.weight.double()
    plain = x.double() @ (weight + scaled[first]).t()
    if dora:
        # The second one knows the base's own weight; its gain acts on all that comes through.
        gain = second.dora_layer.weight.double() / (weight + scaled[second]).norm(dim=1)
        expected = gain * (plain + x.double() @ scaled[second].t()) + base.bias.double()
    else:
        expected = plain + x.double() @ scaled[second].t() + base.bias.double()
    assert (base(x).double() - expected).abs().max() < 1e-5


def test_apply_to_twice_adapts_once():
    base, module = applied()
    x = torch.randn(2, 6)
    once = base(x)
    module.apply_to()
    assert torch.equal(base(x), once)


def test_a_replaced_forward_is_called_and_not_computed():
    base = nn.Linear(6, 8)
    base.forward = lambda input: nn.functional.linear(input, base.weight, base.bias) + 100
    _, module = applied(base)
    nn.init.zeros_(module.lora_up.weight)
    assert base(torch.zeros(1, 6)).min() > 90


def test_loaded_magnitudes_survive_apply_to():
    base = nn.Linear(6, 8)
    module = LoRAModule("x", base, use_dora=True)
    module.load_state_dict(module.state_dict() | {"dora_layer.weight": torch.full((8,), 3.0)})
    module.apply_to()
    assert (module.dora_layer.weight == 3).all()


def test_meta_bases_are_refused_where_their_norm_is_needed():
    with pytest.raises(ValueError, match="meta"):
        LoRAModule("x", nn.Linear(2, 2, device="meta"), use_dora=True).apply_to()


def test_get_weight_before_loading_warns(caplog):
    module = LoRAInfModule("x", nn.Linear(6, 8), use_dora=True)
    with caplog.at_level(logging.WARNING):
        module.get_weight()
    assert "DoRA magnitude appears uninitialized" in caplog.text


@pytest.mark.parametrize("dora", [False, True])
def test_backup_fold_restore_is_bit_exact(dora):
    base, module = applied(nn.Linear(6, 8).bfloat16(), LoRAInfModule, use_dora=dora)
    weight, x = base.weight.clone(), torch.randn(3, 6).bfloat16()
    runtime = base(x)
    module.backup_weights()
    module.pre_calculation()
    assert not torch.equal(base.weight, weight)
    assert torch.allclose(base(x), runtime, atol=0.05)
    module.restore_weights()
    assert torch.equal(base.weight, weight)
    assert torch.equal(base(x), runtime)


def test_restoring_does_not_switch_on_what_was_off():
    _, module = applied(cls=LoRAInfModule)
    module.enabled = False
    module.backup_weights()
    module.pre_calculation()
    module.restore_weights()
    assert not module.enabled


def test_merge_refusals():
    base = nn.Linear(6, 8).requires_grad_(False)
    module = LoRAInfModule("x", base, use_dora=True)
    state = module.state_dict()
    with pytest.raises(ValueError, match=r"x\.dora_layer\.weight is missing"):
        module.merge_to({key: tensor for key, tensor in state.items() if "dora" not in key})
    with pytest.raises(ValueError, match="not finite"):
        module.merge_to(state | {"lora_up.weight": torch.full((8, 4), torch.inf)}, safe_merge=True)
    with pytest.raises(ValueError, match=r"x: its factors change a weight of \[8, 5\], but the base's is \[8, 6\]"):
        module.merge_to(state | {"lora_down.weight": torch.ones(4, 5)})
    assert torch.isfinite(base.weight).all()


def test_merge_rounds_to_the_asked_dtype_and_keeps_the_base_s_own():
    base, module = applied(cls=LoRAInfModule)
    exact = base.weight + module.get_weight()
    module.merge_to(module.state_dict(), dtype=torch.bfloat16)
    assert base.weight.dtype == torch.float32
    assert torch.equal(base.weight, exact.bfloat16().float())


@pytest.mark.parametrize("dora", [False, True])
def test_compiled_without_a_graph_break(dora):
    base, module = applied(use_dora=dora)
    x = torch.randn(3, 6)
    assert torch.allclose(torch.compile(base, backend="eager", fullgraph=True)(x), base(x), atol=1e-6)
    assert type(module.scale) is float


def test_an_adapted_layer_can_be_copied_with_its_adapter():
    base, module = applied(use_dora=True)
    x = torch.randn(3, 6)
    assert torch.equal(copy.deepcopy(module).org_module.weight, base.weight)
    assert torch.equal(copy.deepcopy(base)(x), base(x))


def test_an_empty_batch():
    base, _ = applied(use_dora=True)
    assert base(torch.empty(0, 3, 6)).shape == (0, 3, 8)
