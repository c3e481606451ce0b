"""What each option does to a network; the options of the reference itself are in test_reference.py."""

import json
import logging
from itertools import product

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.ops import merge as merge_command
from lora_inspect.reading.adapter import read_adapter
from networks import loha, lora
from networks.loha import LoHaModule
from networks.lokr import LoKrModule
from networks.modules.adapter_module import AdapterModule
from networks.modules.lora_module import LoRAModule

LEAF = "blocks.0.img_mod"


def create(model, dim=4, alpha=2.0, classes=("Block",), **options):
    return lora.create_network(list(classes), "lora_unet", 1.0, dim, alpha, None, None, model, **options)


def modules_of(network):
    return {module.lora_name.removeprefix("lora_unet_"): module for module in network.unet_loras}


def perturbed(network):
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network


@pytest.mark.parametrize(
    ("exclude", "include", "default_exclude", "default_include"), list(product([False, True], repeat=4))
)
def test_selection_order(make_model, caplog, exclude, include, default_exclude, default_include):
    """The user's exclude, then the user's include, then the defaults, of which the include rescues from the exclude."""
    pattern = [".*img_mod"]
    with caplog.at_level(logging.INFO):
        network = create(
            make_model(),
            exclude_patterns=str(pattern) if exclude else None,
            include_patterns=str(pattern) if include else None,
            default_exclude_patterns=pattern if default_exclude else (),
            default_include_patterns=pattern if default_include else (),
        )
    by_the_user = not exclude or include
    by_default = not default_exclude or default_include
    expected = by_the_user if include or exclude else by_default
    assert ("blocks_0_img_mod" in modules_of(network)) == expected
    assert len(network.unet_loras) == (10 if expected else 8)
    rescued = include and (exclude or (default_exclude and not default_include))
    line = "include_patterns keeps 2 excluded layers: blocks.0.img_mod, blocks.1.img_mod"
    assert (line in caplog.messages) == rescued


def test_includes_do_not_reach_beyond_the_blocks_and_say_so(make_model, caplog):
    network = create(make_model(), include_patterns=["embed", ".*to_q"])
    assert "embed" not in modules_of(network)
    assert "include_patterns: 'embed' matches no layer that could be adapted" in caplog.text
    assert "include_patterns: '.*to_q' has no effect, as none of the layers that it matches is excluded" in caplog.text
    caplog.clear()
    create(make_model(), exclude_patterns=[".*attn.*"], include_patterns=[".*to_q"])
    assert "no effect" not in caplog.text


@pytest.mark.parametrize(
    "options",
    [
        {"exclude_patterns": ["attn"]},
        {"rank_pattern": {"to_q": 2}},
        {"alpha_pattern": {"to_q": 2}},
        {"lr_pattern": {"to_q": 2}},
        {"split_dims": {"to_q": [6, 6]}},
        {"split_qkv": True},
    ],
)
def test_a_pattern_that_matches_nothing_is_a_warning(make_model, caplog, options):
    assert len(create(make_model(), **options).unet_loras) == 10
    assert f"{next(iter(options))}: " in caplog.text
    assert "has to match the whole dotted name" in caplog.text


@pytest.mark.parametrize("option", ["rank_pattern", "alpha_pattern", "lr_pattern"])
def test_a_pattern_behind_one_that_matches_all_of_its_layers_is_a_warning(make_model, caplog, option):
    create(make_model(), **{option: {".*to_q": 2, ".*attn.*": 4, "blocks.0.attn.to_.*": 6}})
    expected = f"{option}: 'blocks.0.attn.to_.*' has no effect, as a pattern before it matches all of its layers"
    assert [message for message in caplog.messages if "no effect" in message] == [expected]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"conv_dim": 3, "conv_alpha": 5}, "conv_dim, conv_alpha: no effect, as no convolution with a kernel above 1"),
        ({"conv_alpha": 5, "exclude_patterns": None}, None),
        ({"conv_dim": 3, "enable_conv2d": "False", "exclude_patterns": None}, "conv_dim: no effect, as no convolution"),
        ({"conv_dim": 0}, None),
        ({"use_dora": True, "dora_conv": True}, None),
        ({"use_dora": True, "dora_conv": True, "enable_conv2d": False}, "dora_conv: no effect, as no convolution is"),
    ],
)
def test_an_option_of_convolutions_without_any_is_a_warning(make_model, caplog, options, expected):
    create(make_model(), **{"exclude_patterns": [".*conv"]} | options)
    told = [message for message in caplog.messages if "no effect" in message]
    assert [message.startswith(expected or "-") for message in told] == ([True] if expected else [])


def test_rank_and_alpha_patterns(make_model):
    found = modules_of(
        create(
            make_model(),
            alpha=3.0,
            conv_dim="2",
            conv_alpha="5",
            rank_pattern=r"{'blocks\\.0\\..*to_q': 8, '.*to_q': 16, '.*conv': 6}",
            alpha_pattern='{".*to_.*": 7, ".*to_q": 9.0}',
        )
    )
    settings = {name: (module.lora_dim, module._alpha_value) for name, module in found.items()}
    assert settings["blocks_0_attn_to_q"] == (8, 7.0)
    assert settings["blocks_1_attn_to_q"] == (16, 7.0)
    assert settings["blocks_0_attn_to_out"] == (4, 7.0)
    assert settings["blocks_0_img_mod"] == (4, 3.0)
    # A rank pattern does not change alpha.
    assert settings["blocks_0_conv"] == (6, 5.0)
    assert settings["blocks_0_point"] == (4, 3.0)


def test_a_rank_pattern_reaches_convolutions_that_conv_dim_leaves_alone(make_model):
    found = modules_of(create(make_model(), conv_dim=0, rank_pattern={"blocks.1.conv": 3}))
    assert "blocks_0_conv" not in found
    assert found["blocks_1_conv"].lora_dim == 3


def test_without_enable_conv2d_no_convolution_is_adapted(make_model):
    found = modules_of(create(make_model(), enable_conv2d="False", rank_pattern={".*conv": 3}))
    assert not [name for name in found if name.endswith(("_conv", "_point"))]
    assert "blocks_0_attn_to_q" in found


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize(
    "pattern",
    [
        {".*": 3.0},
        # by chance the asked alpha times sqrt(rank), which a converter would have stored
        {".*": 4.0},
        {".*to_q": 7.0},
        {".*to_q": 4.0},
    ],
)
def test_files_of_patterns_say_them_and_are_read_back(make_model, tmp_path, rslora, pattern):
    network = create(make_model(), use_rslora=rslora, alpha_pattern=pattern, rank_pattern={".*to_out": 9})
    file = str(tmp_path / "a.safetensors")
    metadata = {"ss_network_alpha": "2.0", "ss_network_args": json.dumps({"use_rslora": str(rslora)})}
    network.apply_to(None, None)
    network.save_weights(file, None, metadata)
    with safe_open(file, "pt") as opened:
        stored = opened.metadata()
    assert json.loads(stored["ss_alpha_pattern"]) == pattern
    assert json.loads(stored["ss_rank_pattern"]) == {".*to_out": 9}
    assert stored["ss_rank_pattern_match_semantics"] == "original_name_fullmatch_first_match"
    assert stored["ss_init_lora_weights"] == "kaiming"
    adapter = read_adapter(open_checkpoint(file))
    assert not [problem for problem in adapter.problems if problem.severity != "note"]
    scales = {c.module.key.removeprefix("lora_unet_"): c.scale for c in adapter.contributions}
    assert scales == pytest.approx({name: module.scale for name, module in modules_of(network).items()})
    again = create(make_model(), use_rslora=rslora, rank_pattern={".*to_out": 9})
    again.apply_to(None, None)
    again.load_weights(file)
    assert {m.lora_name: m.scale for m in again.unet_loras} == {m.lora_name: m.scale for m in network.unet_loras}


class QkvBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 12)
        self.linear1 = nn.Linear(8, 20)
        self.conv_qkv = nn.Conv2d(8, 12, 1)

    def forward(self, x):
        return torch.cat([self.qkv(x), self.linear1(x)], -1)


def test_split_layers_train_save_and_merge(tmp_path):
    model = nn.Sequential(QkvBlock()).requires_grad_(False)
    base, x = {key: tensor.clone() for key, tensor in model.state_dict().items()}, torch.randn(2, 3, 8)
    save_file(base, tmp_path / "base.safetensors")
    options = {"split_qkv": "True", "split_dims": "{'.*linear1': [4, 4, 4, 8]}", "use_dora": True, "use_rslora": True}
    network = create(model, classes=["QkvBlock"], exclude_patterns=[".*conv.*"], **options)
    assert {name: module.split_dims for name, module in modules_of(network).items()} == {
        "0_qkv": [4, 4, 4],
        "0_linear1": [4, 4, 4, 8],
    }
    network.apply_to(None, model)
    perturbed(network)
    file = str(tmp_path / "split.safetensors")
    network.save_weights(file, None, None)
    plan = merge_command.plan_merge(str(tmp_path / "base.safetensors"), [(file, 1.0)], merge_command.MergeOptions())
    merge_command.merge(plan, str(tmp_path / "merged.safetensors"))
    runtime, merged = model(x).detach(), nn.Sequential(QkvBlock())
    merged.load_state_dict(load_file(tmp_path / "merged.safetensors"))
    assert (merged(x) - runtime).abs().max() <= 1e-5 * runtime.abs().max()
    fresh = nn.Sequential(QkvBlock())
    fresh.load_state_dict(base)
    merging, weights = lora.create_network_from_weights(1.0, file, None, None, fresh, for_inference=True)
    merging.merge_to(None, fresh, weights)
    assert (fresh(x) - runtime).abs().max() <= 1e-5 * runtime.abs().max()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split_qkv": True}, "split_qkv: the 13 outputs of 0.qkv are no three equal slices"),
        ({"split_dims": {"0.qkv": [6, 6]}}, r"0_qkv: split_dims \[6, 6\] do not add up to 13"),
        ({"split_dims": {"0.conv_qkv": [6, 6]}}, "0_conv_qkv: split_dims are for Linear layers"),
        ({"split_dims": {".*": [6]}}, r"split_dims\['\.\*'\]"),
        ({"split_dims": "[6, 6]"}, "split_dims"),
        ({"rank_pattern": {".*": True}}, "rank_pattern"),
        ({"rank_pattern": {".*": 0}}, "rank_pattern"),
        ({"rank_pattern": {".*": 2.0}}, "rank_pattern"),
        ({"rank_pattern": "{'(': 2}"}, r"rank_pattern: '\(' is no regular expression"),
        ({"rank_pattern": "{'.*': 2"}, "rank_pattern"),
        ({"rank_pattern": ".*=2"}, "rank_pattern"),
        ({"alpha_pattern": {".*": 0}}, "alpha_pattern"),
        ({"alpha_pattern": {".*": True}}, "alpha_pattern"),
        ({"alpha_pattern": {".*": float("inf")}}, "alpha_pattern"),
        ({"alpha_pattern": {1: 2.0}}, "alpha_pattern"),
        ({"lr_pattern": {".*": -1e-4}}, "lr_pattern"),
        ({"lr_pattern": {".*": True}}, "lr_pattern"),
        ({"lr_pattern": {".*": float("nan")}}, "lr_pattern"),
        ({"lr_pattern": ".*=1e-4"}, "lr_pattern"),
        ({"split_qkv": "ture"}, "split_qkv"),
        ({"dora_conv": "True"}, "dora_conv=True has no meaning without use_dora=True"),
        ({"init_lora_weights": "pissa", "module_class": AdapterModule}, "is not for AdapterModule"),
        ({"module_kwargs": "[1]"}, "module_kwargs"),
        ({"arguments": "x"}, "unknown network_args option 'arguments'"),
    ],
)
def test_values_that_cannot_be_used(options, message):
    class QkvBlock(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(8, 13)
            self.conv_qkv = nn.Conv2d(8, 12, 1)

    with pytest.raises(ValueError, match=message):
        create(nn.Sequential(QkvBlock()), classes=["QkvBlock"], **options)


@pytest.mark.parametrize(
    "options",
    [
        {"use_rslora": True},
        {"use_tlora": True},
        {"loraplus_lr_ratio": 4},
        {"split_qkv": True},
        {"split_dims": {".*": [4, 8]}},
    ],
)
def test_options_of_lora_are_refused_however_a_network_is_made(make_model, options):
    (name,) = options
    message = f"{name} is not for LoHa; leave it out"
    with pytest.raises(ValueError, match=message):
        create(make_model(), module_class=LoHaModule, **options)
    network = create(make_model(), module_class=LoHaModule)
    network.set_loraplus_lr_ratio(None)
    if name == "loraplus_lr_ratio":
        with pytest.raises(ValueError, match=message):
            network.set_loraplus_lr_ratio(4)
        with pytest.raises(ValueError, match=message):
            loha.create_network_from_weights(
                1.0, None, None, None, make_model(), network.state_dict(), architecture="wan", **options
            )


def test_whole_factors_say_that_rank_and_alpha_have_no_effect(make_model, caplog):
    caplog.set_level("INFO")
    create(make_model(), module_class=LoKrModule, dim=1)
    assert "rank and alpha have no effect" not in caplog.text
    create(make_model(), module_class=LoKrModule, dim=100)
    assert "rank and alpha have no effect on 10 of 10 modules, whose factors are whole" in caplog.text


def test_module_class_and_its_keywords(make_model):
    class Loud(LoRAModule):
        def __init__(self, *args, volume=1, **kwargs) -> None:
            super().__init__(*args, **kwargs)
            self.volume = volume

    network = create(make_model(), module_class=Loud, module_kwargs="{'volume': 11}")
    assert {(type(module), module.volume) for module in network.unet_loras} == {(Loud, 11)}
    assert network.module_kwargs == {"volume": 11}
    with pytest.raises(TypeError, match="module_class"):
        create(make_model(), module_class="LoRAModule")


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("rslora", [False, True])
def test_dora_on_convolutions(tmp_path, rslora, groups):
    """Norms are over all dimensions but the output channels; forward, merge and the file agree with the formula."""
    torch.manual_seed(4)
    model = nn.Sequential(nn.Conv2d(6, 9, 3, stride=2, padding=1, groups=groups), nn.Conv2d(9, 4, 1, bias=False))
    model.requires_grad_(False)
    base = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    save_file(base, tmp_path / "base.safetensors")
    x = torch.randn(2, 6, 5, 7)
    before = model(x)
    network = create(model, classes=["Sequential"], use_dora="True", dora_conv="True", use_rslora=rslora)
    network.apply_to(None, model)
    assert torch.allclose(model(x), before, atol=1e-6)
    magnitude = network.unet_loras[0].dora_layer.weight
    assert magnitude.shape == (9,)
    assert torch.allclose(magnitude, torch.linalg.vector_norm(base["0.weight"], dim=(1, 2, 3)))
    perturbed(network)
    runtime = model(x)
    nn.functional.mse_loss(runtime, torch.zeros_like(runtime)).backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in network.parameters())

    expected = {}
    for index, module in enumerate(network.unet_loras):
        up, down = module.lora_up.weight.double().flatten(1), module.lora_down.weight.double()
        scale = 2.0 / 2 if rslora else 2.0 / 4
        combined = base[f"{index}.weight"].double() + scale * torch.einsum("or,rikl->oikl", up, down)
        norms = combined.flatten(1).norm(dim=1)
        expected[index] = combined * (module.dora_layer.weight.double() / norms)[:, None, None, None]
    first = nn.functional.conv2d(x.double(), expected[0], base["0.bias"].double(), 2, 1, groups=groups)
    output = nn.functional.conv2d(first, expected[1])
    assert (runtime.double() - output).abs().max() <= 1e-5 * output.abs().max()

    file = str(tmp_path / "conv.safetensors")
    network.save_weights(file, torch.bfloat16, None)
    network.save_weights(file, None, None)
    adapter = read_adapter(open_checkpoint(file))
    assert not [problem for problem in adapter.problems if problem.severity != "note"]
    assert (adapter.dora.modules, adapter.dora.axis) == (2, "output")
    plan = merge_command.plan_merge(str(tmp_path / "base.safetensors"), [(file, 1.0)], merge_command.MergeOptions())
    merge_command.merge(plan, str(tmp_path / "merged.safetensors"))
    merged = load_file(tmp_path / "merged.safetensors")
    for index, weight in expected.items():
        assert (merged[f"{index}.weight"].double() - weight).abs().max() < 1e-5
    network.set_multiplier(0)
    assert torch.equal(model(x), before)

    fresh = nn.Sequential(nn.Conv2d(6, 9, 3, stride=2, padding=1, groups=groups), nn.Conv2d(9, 4, 1, bias=False))
    fresh.load_state_dict(base)
    weights = load_file(file)
    merging = lora.create_arch_network_from_weights(1.0, weights, unet=fresh, for_inference=True)
    assert all(module.use_dora for module in merging.unet_loras)
    merging.merge_to(None, fresh, weights)
    assert (fresh(x) - runtime).abs().max() <= 1e-5 * runtime.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dora_on_half_precision_convolutions_starts_at_the_base(dtype):
    model = nn.Sequential(nn.Conv2d(6, 9, 3)).to(dtype).requires_grad_(False)
    x = torch.randn(2, 6, 5, 7).to(dtype)
    before = model(x)
    network = create(model, classes=["Sequential"], use_dora="True", dora_conv="True")
    network.apply_to(None, model)
    assert model(x).dtype == dtype
    assert torch.equal(model(x), before)


def test_some_convolutions_without_a_magnitude_are_refused(make_model):
    network = create(make_model(), use_dora=True, dora_conv=True)
    network.apply_to(None, None)
    weights = network.state_dict()
    del weights["lora_unet_blocks_0_conv.dora_layer.weight"]
    with pytest.raises(ValueError, match="there for 9 modules, but 1 are missing: lora_unet_blocks_0_conv"):
        lora.create_arch_network_from_weights(1.0, weights, unet=make_model())


@pytest.mark.parametrize("strict", [False, True])
def test_a_state_dict_cannot_lose_magnitudes(make_model, strict, caplog):
    network = create(make_model(), use_dora=True)
    network.apply_to(None, None)
    state = network.state_dict()
    plain = {key: tensor for key, tensor in state.items() if "dora_layer" not in key}
    with pytest.raises(RuntimeError, match="DoRA flag mismatch: network expects DoRA but weights lack it"):
        network.load_state_dict(plain, strict=strict)
    partial = {key: tensor for key, tensor in state.items() if "blocks_0_img_mod.dora_layer" not in key}
    with pytest.raises(RuntimeError, match=r"1 DoRA magnitude missing: lora_unet_blocks_0_img_mod\.dora_layer\.weight"):
        network.load_state_dict(partial, strict=strict)
    assert "DoRA" not in caplog.text
    other = create(make_model())
    other.apply_to(None, None)
    if strict:
        with pytest.raises(RuntimeError, match="Unexpected"):
            other.load_state_dict(state, strict=True)
    else:
        other.load_state_dict(state, strict=False)
        assert "weights contain DoRA but network doesn't expect it" in caplog.text
