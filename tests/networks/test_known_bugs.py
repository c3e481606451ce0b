"""Bugs of other implementations, each by its id in the list of what the sources do wrong.

U-1 to U-33 are musubi-tuner's, D-1 to D-22 DustyL's blissful-tuner's, SD, SA and LY those of sd-scripts, of Sarania's
blissful-tuner and of LyCORIS. These cannot exist here:

- U-15: `--dim_from_weights` is a flag that the trainer opens as a file; no network sees it.
- U-18: the trainer splits `network_args` at every `=`, before a network sees them.
- D-16: there is no bridge to LyCORIS, so no preset of its to change.
- D-21: no version of this package had other parameter groups, so no optimiser state of them exists.
- LY, bypass: there is no bypass mode that a merge or DoRA could forget.

U-33, dropouts while a trainer samples, is in test_dropout.py.
"""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lora_inspect.ops import merge as merge_command
from networks import (
    loha,
    lokr,
    lora,
    lora_flux,
    lora_hidream_o1,
    lora_hv_1_5,
    lora_ideogram4,
    lora_kandinsky,
    lora_krea2,
    lora_qwen_image,
)
from networks.kernels import half_precision
from networks.lora import LoRAInfModule, LoRANetwork
from networks.modules.lora_module import LoRAModule
from networks.modules.masks import drop_ranks


def applied(base, cls=LoRAModule, **options):
    """(base, its module) with factors as after some training."""
    base.requires_grad_(False)
    module = cls("x", base, **options)
    module.apply_to()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return base, module


def add(root, path, leaf):
    """Puts `leaf` at a path whose parts `__` separates."""
    *parents, last = path.split("__")
    for part in parents:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = getattr(root, part)
    root.add_module(last, leaf)


def block(name, model="Model", at="blocks", **leaves):
    """A model of a class called `model`, with one block of a class called `name` in the list `at`."""
    root, made = type(name, (nn.Module,), {})(), type(model, (nn.Module,), {})()
    for path, leaf in leaves.items():
        add(root, path, leaf)
    add(made, at, nn.ModuleList([root]))
    return made


def linears(*paths):
    return {path: nn.Linear(8, 8) for path in paths}


def paths(network):
    return {module.lora_name.removeprefix("lora_unet_blocks_0_") for module in network.unet_loras}


def make(module, model, **options):
    network = module.create_arch_network(1.0, 4, 2.0, None, None, model, **options)
    network.apply_to(None, model)
    return network


def of_sequential(model, **options):
    network = lora.create_network(["Sequential"], "lora_unet", 1.0, 4, 2.0, None, None, model, **options)
    network.apply_to(None, model)
    return network


# --- musubi-tuner


def test_u1_qwen_image_leaves_modulation_out():
    leaves = linears("img_mod__1", "txt_mod__1", "attn__to_q")
    assert paths(make(lora_qwen_image, block("QwenImageTransformerBlock", **leaves))) == {"attn_to_q"}


@pytest.mark.parametrize("features", [[4, 2, 3], [3, 3, 3]])
def test_u2_d1_sd_split_layers_merge_into_their_rows(features):
    base, module = applied(nn.Linear(6, 9), LoRAInfModule, split_dims=features)
    x = torch.randn(5, 6)
    output = base(x)
    module.merge_to(module.state_dict())
    assert torch.allclose(base(x), output, atol=1e-5)


def test_u3_sd_split_layers_with_rank_dropout():
    base, module = applied(nn.Linear(6, 9), split_dims=[4, 5], rank_dropout=0.5)
    assert module.training
    assert torch.isfinite(base(torch.randn(2, 3, 6))).all()


def test_u4_d2_split_files_are_rebuilt_for_inference():
    _, module = applied(nn.Linear(6, 9), split_dims=[4, 5])
    weights = {f"lora_unet_0.{key}": tensor for key, tensor in module.state_dict().items()}
    model = nn.Sequential(nn.Linear(6, 9))
    network = lora.create_arch_network_from_weights(1.0, weights, unet=model, for_inference=True)
    assert network.unet_loras[0].split_dims == [4, 5]
    network.apply_to(None, model)
    network.load_state_dict(weights, strict=True)


@pytest.mark.parametrize("options", [{}, {"split_dims": [4, 5]}])
def test_u5_sd_get_weight_uses_its_multiplier(options):
    _, module = applied(nn.Linear(6, 9), LoRAInfModule, **options)
    assert torch.allclose(module.get_weight(0.25), module.get_weight(1.0) / 4)
    assert module.get_weight().shape == (9, 6)


@pytest.mark.parametrize("shape", [(2, 3, 5, 8), (2, 4, 5, 8), (2, 4, 4, 4, 8)])
def test_u6_rank_dropout_of_a_linear_is_on_its_last_axis(shape):
    base, module = applied(nn.Linear(8, 8), lora_dim=4, rank_dropout=0.5)
    with torch.no_grad():
        module.lora_up.weight.zero_()
        module.lora_up.weight[:4] = 1e3 * torch.eye(4)
    x = torch.randn(*shape)
    change = (base(x) - F.linear(x, base.weight, base.bias))[..., :4]
    dropped = change.abs() < 1e-3
    # Whole ranks of a sample, at all of its positions.
    assert torch.equal(dropped.flatten(1, -2).all(1), dropped.flatten(1, -2).any(1))


@pytest.mark.parametrize("option", ["rank_dropout", "module_dropout", "neuron_dropout"])
def test_u7_a_dropout_of_1_is_an_error(option):
    with pytest.raises(ValueError, match=option):
        of_sequential(nn.Sequential(nn.Linear(2, 2)), **{option: "1.0" if option != "neuron_dropout" else 1.0})


def test_u8_training_modules_can_be_disabled():
    model, x = nn.Sequential(nn.Linear(4, 4)), torch.randn(2, 4)
    before = model(x)
    network = of_sequential(model)
    with torch.no_grad():
        network.unet_loras[0].lora_up.weight.normal_()
    assert network.training
    network.set_enabled(False)
    assert torch.equal(model(x), before)
    network.set_enabled(True)
    assert not torch.equal(model(x), before)


@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv2d(4, 6, 3, dilation=2),
        nn.Conv2d(4, 6, 3, groups=2, padding=1),
        nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"),
    ],
    ids=["dilation", "groups", "circular"],
)
def test_u9_convolutions_move_as_their_base_does(convolution):
    base, module = applied(copy.deepcopy(convolution), LoRAInfModule)
    x = torch.randn(2, 4, 9, 9)
    output = base(x)
    module.merge_to(module.state_dict())
    assert torch.allclose(base(x), output, atol=1e-5)


@pytest.mark.parametrize(
    "layer", [nn.Conv3d(4, 6, (1, 3, 3)), nn.Conv2d(4, 6, 5), nn.Conv1d(4, 6, 2)], ids=["3d", "k=5", "1d"]
)
def test_u10_max_norm_of_any_kernel(layer):
    _, module = applied(copy.deepcopy(layer), alpha=4.0)
    delta = torch.einsum("or,r...->o...", module.lora_up.weight.flatten(1), module.lora_down.weight)
    assert module.change_norm().item() == pytest.approx(delta.norm().item(), rel=1e-5)


def test_u11_max_norm_of_split_layers():
    _, module = applied(nn.Linear(6, 9), split_dims=[4, 5], alpha=8.0, lora_dim=4)
    delta = torch.cat([2.0 * up.weight @ down.weight for down, up in module.factors])
    assert module.change_norm().item() == pytest.approx(delta.norm().item(), rel=1e-5)
    module.shrink(torch.tensor(0.5))
    assert module.change_norm().item() == pytest.approx(delta.norm().item() / 2, rel=1e-5)


def test_u12_a_loaded_alpha_is_the_scale():
    _, module = applied(nn.Linear(4, 4), alpha=1.0, lora_dim=4)
    module.load_state_dict(module.state_dict() | {"alpha": torch.tensor(4.0)})
    assert (module.scale, module.alpha.item()) == (1.0, 4.0)


def test_u13_a_missing_alpha_is_scale_1():
    weights = {"lora_unet_0.lora_down.weight": torch.ones(3, 4), "lora_unet_0.lora_up.weight": torch.ones(4, 3)}
    network = lora.create_arch_network_from_weights(1.0, weights, unet=nn.Sequential(nn.Linear(4, 4)))
    assert [(module.scale, module.alpha.item()) for module in network.unet_loras] == [(1.0, 3.0)]


@pytest.mark.parametrize("alpha", [torch.tensor(2.0), torch.tensor(2, dtype=torch.bfloat16), 2])
def test_u14_the_scale_is_a_python_float(alpha):
    base, module = applied(nn.Linear(4, 4), alpha=alpha)
    assert type(module.scale) is float
    torch.compile(base, backend="eager", fullgraph=True)(torch.randn(2, 4))


def test_u16_from_weights_returns_the_network_alone():
    _, module = applied(nn.Linear(4, 4))
    weights = {f"lora_unet_0.{key}": tensor for key, tensor in module.state_dict().items()}
    found = lora.create_arch_network_from_weights(1, weights, unet=nn.Sequential(nn.Linear(4, 4)))
    assert isinstance(found, LoRANetwork)


def test_u17_prepare_network_is_a_method():
    assert of_sequential(nn.Sequential(nn.Linear(4, 4))).prepare_network(object()) is None


def test_u19_module_1_does_not_collect_the_keys_of_module_10():
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(11))).requires_grad_(False)
    network = of_sequential(model)
    weights = network.state_dict()
    weights |= {key: torch.randn_like(tensor) for key, tensor in weights.items() if key.endswith(".weight")}
    fresh = nn.Sequential(*(nn.Linear(4, 4) for _ in range(11))).requires_grad_(False)
    before = fresh[1].weight.clone()
    merging = lora.create_arch_network_from_weights(1.0, weights, unet=fresh, for_inference=True)
    merging.merge_to(None, fresh, weights)
    delta = 0.5 * weights["lora_unet_1.lora_up.weight"] @ weights["lora_unet_1.lora_down.weight"]
    assert torch.allclose(fresh[1].weight, before + delta, atol=1e-5)


def test_u20_layers_may_be_called_alpha_and_lora_down():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.alpha_proj, self.lora_down_proj = nn.Linear(4, 4), nn.Linear(4, 4)

    network = lora.create_network(["Block"], "lora_unet", 1.0, 2, 3.0, None, None, nn.Sequential(Block()))
    found = lora.create_arch_network_from_weights(1.0, network.state_dict(), unet=nn.Sequential(Block()))
    assert {(m.lora_name, m.lora_dim, m.scale) for m in found.unet_loras} == {
        ("lora_unet_0_alpha_proj", 2, 1.5),
        ("lora_unet_0_lora_down_proj", 2, 1.5),
    }


def test_u21_adapters_outside_the_blocks_are_kept_and_unknown_ones_are_an_error():
    model = block("QwenImageTransformerBlock", **linears("attn__to_q"))
    model.time_text_embed = nn.Linear(8, 8)
    _, module = applied(nn.Linear(8, 8))
    weights = {f"lora_unet_time_text_embed.{key}": tensor for key, tensor in module.state_dict().items()}
    found = lora_qwen_image.create_arch_network_from_weights(1.0, weights, unet=model)
    assert [module.lora_name for module in found.unet_loras] == ["lora_unet_time_text_embed"]
    unknown = {key.replace("time_text", "no_such"): tensor for key, tensor in weights.items()}
    with pytest.raises(ValueError, match="lora_unet_no_such_embed"):
        lora_qwen_image.create_arch_network_from_weights(1.0, weights | unknown, unet=model)


def test_u22_an_invalid_regular_expression_is_an_error():
    with pytest.raises(ValueError, match="exclude_patterns: '\\*' is no regular expression"):
        of_sequential(nn.Sequential(nn.Linear(2, 2)), exclude_patterns="['*']")


@pytest.mark.parametrize("value", ["true", "1", True])
def test_u23_verbose_in_any_spelling(value, caplog):
    with caplog.at_level("INFO"):
        of_sequential(nn.Sequential(nn.Linear(2, 2)), verbose=value)
    assert "1 modules adapted" in caplog.text


@pytest.mark.parametrize("module", [lora, lora_flux, lora_kandinsky, lora_hidream_o1])
def test_u24_lists_are_taken_as_lists_and_left_alone(module):
    model = block(
        {
            lora: "MMDoubleStreamBlock",
            lora_flux: "DoubleStreamBlock",
            lora_kandinsky: "TransformerDecoderBlock",
            lora_hidream_o1: "Qwen3VLTextDecoderLayer",
        }[module],
        **linears("self_attn__q_proj", "feed_forward__in_layer"),
    )
    model.hidream_o1_task = "t2i"
    patterns = [".*q_proj"]
    network = make(module, model, exclude_patterns=patterns)
    assert patterns == [".*q_proj"]
    assert not any("q_proj" in path for path in paths(network))


def test_u25_default_includes_do_not_outrank_the_user_s_excludes():
    leaves = linears("cross_attention__to_query", "self_attention__to_query")
    network = make(
        lora_kandinsky, block("TransformerDecoderBlock", **leaves), exclude_patterns="['.*cross_attention.*']"
    )
    assert paths(network) == {"self_attention_to_query"}


def test_u26_hunyuan_video_1_5_leaves_modulation_out():
    leaves = linears("img_mod__linear", "txt_mod__linear", "img_attn_q")
    assert paths(make(lora_hv_1_5, block("MMDoubleStreamBlock", **leaves))) == {"img_attn_q"}


@pytest.mark.parametrize("cls", [loha.LoHaModule, lokr.LoKrModule])
def test_u27_loha_and_lokr_bridge_dtypes_and_have_dropout(cls):
    base, module = applied(nn.Linear(8, 8).bfloat16(), cls, dropout=0.5)
    x = torch.randn(3, 8).bfloat16()
    assert base(x).dtype == torch.bfloat16
    assert not torch.equal(base(x), base(x))
    module.eval()
    assert torch.equal(base(x), base(x))


def test_u28_lokr_files_say_their_factor():
    model = nn.Sequential(nn.Linear(8, 8)).requires_grad_(False)
    options = {"module_class": lokr.LoKrModule, "module_kwargs": {"factor": 4}}
    weights = of_sequential(model, **options).state_dict()
    found = lora.create_network_from_weights(
        None, 1.0, weights, unet=nn.Sequential(nn.Linear(8, 8)), module_class=lokr.LoKrInfModule
    )
    found.load_state_dict(weights, strict=True)


@pytest.mark.parametrize("algorithm", [loha, lokr])
@pytest.mark.parametrize(
    ("module", "names", "at", "leaves"),
    [
        (
            lora_kandinsky,
            ("TransformerDecoderBlock", "DiffusionTransformer3D"),
            "visual_transformer_blocks",
            ("self_attention__to_query", "feed_forward__in_layer"),
        ),
        (
            lora_ideogram4,
            ("Ideogram4TransformerBlock", "Ideogram4Transformer"),
            "layers",
            ("attention__qkv", "feed_forward__w1"),
        ),
        (lora_krea2, ("SingleStreamBlock", "SingleStreamDiT"), "blocks", ("attn__wq", "attn__wk", "mlp__gate")),
        (
            lora_hidream_o1,
            ("Qwen3VLTextDecoderLayer", "Qwen3VLModel"),
            "language_model__layers",
            ("self_attn__q_proj", "mlp__gate_proj"),
        ),
    ],
    ids=["kandinsky", "ideogram4", "krea2", "hidream_o1"],
)
def test_u29_d12_loha_and_lokr_find_every_architecture(algorithm, module, names, at, leaves):
    model = block(*names, at, **linears(*leaves))
    model.hidream_o1_task = "t2i"
    expected = make(module, copy.deepcopy(model))
    found = make(algorithm, model)
    assert {m.lora_name for m in found.unet_loras} == {m.lora_name for m in expected.unet_loras}


def test_u30_pre_calculation_rounds_once():
    base = nn.Linear(64, 64).bfloat16()
    base, module = applied(base, LoRAInfModule, alpha=4.0)
    exact = base.weight.double() + module.lora_up.weight.double() @ module.lora_down.weight.double()
    module.pre_calculation()
    # The nearest bfloat16, but for ties that float32 cannot tell.
    assert (base.weight != exact.bfloat16()).float().mean() < 1e-3


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"use_rslora": True, "use_dora": True}])
def test_u31_files_merge_in_float32_with_every_rule_and_shape(tmp_path, options):
    torch.manual_seed(3)
    layers = [nn.Linear(16, 16), nn.Conv3d(4, 4, (1, 2, 2)), nn.Linear(16, 12)]
    model = nn.Sequential(*(layer.bfloat16() for layer in layers)).requires_grad_(False)
    save_file(model.state_dict(), tmp_path / "base.safetensors")
    network = of_sequential(model, split_dims={"2": [6, 6]}, **options)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    file = str(tmp_path / "a.safetensors")
    network.save_weights(file, None, None)
    plan = merge_command.plan_merge(str(tmp_path / "base.safetensors"), [(file, 1.0)], merge_command.MergeOptions())
    merge_command.merge(plan, str(tmp_path / "merged.safetensors"))
    merged = load_file(tmp_path / "merged.safetensors")
    for module, layer, name in zip(network.unet_loras, layers, ("0", "1", "2"), strict=True):
        scale = 2.0 / math.sqrt(4) if "use_rslora" in options else 0.5
        deltas = [
            scale * torch.einsum("or,r...->o...", up.weight.double().flatten(1), down.weight.double())
            for down, up in module.factors
        ]
        expected = layer.weight.double() + torch.cat(deltas)
        if module.use_dora:
            expected *= (module.dora_layer.weight.double() / expected.norm(dim=1))[:, None]
        assert (merged[f"{name}.weight"] != expected.bfloat16()).float().mean() < 0.01
    assert torch.equal(merged["0.bias"], layers[0].bias)


def test_u32_d15_alphas_and_flags_are_never_rounded(tmp_path):
    model = nn.Sequential(nn.Linear(64, 64)).requires_grad_(False)
    network = lora.create_network(
        ["Sequential"], "lora_unet", 1.0, 32, 0, None, None, model, use_rslora="True", use_dora="True"
    )
    network.apply_to(None, model)
    network.save_weights(str(tmp_path / "a.safetensors"), torch.bfloat16, {})
    weights = load_file(tmp_path / "a.safetensors")
    assert weights["lora_unet_0.lora_up.weight"].dtype == torch.bfloat16
    assert weights["lora_unet_0.alpha"].item() == pytest.approx(math.sqrt(32), rel=1e-7)
    assert {weights[flag].dtype for flag in ("use_rslora_flag", "use_dora_flag")} == {torch.bool}


# --- DustyL's blissful-tuner


def test_d3_dora_norms_are_float32_under_autocast():
    base, module = applied(nn.Linear(64, 64), use_dora=True)
    exact = base.weight.double() + module.scale * module.lora_up.weight.double() @ module.lora_down.weight.double()
    with torch.autocast("cpu", torch.bfloat16):
        gain = module._gain()
    expected = module.dora_layer.weight.double() / exact.norm(dim=1)
    assert (gain.double() / expected - 1).abs().max() < 1e-6


@pytest.mark.parametrize("size", [1e-2, 1e-4, 1e-8, 0.0])
def test_d4_forward_and_merge_agree_on_tiny_rows(size):
    base = nn.Linear(8, 4, bias=False).double()
    with torch.no_grad():
        base.weight[1] *= size / base.weight[1].norm()
    base.requires_grad_(False)
    module = LoRAInfModule("x", base, use_dora=True).double()
    module.apply_to()
    nn.init.ones_(module.dora_layer.weight)
    x = torch.randn(3, 8, dtype=torch.float64)
    expected = F.linear(x, base.weight / base.weight.norm(dim=1, keepdim=True).clamp(min=1e-6))
    assert torch.allclose(base(x), expected, rtol=1e-9, atol=1e-20)
    module.merge_to(module.state_dict())
    assert torch.allclose(base(x), expected, rtol=1e-9, atol=1e-20)


def test_d5_the_first_step_on_a_bfloat16_base_is_the_base():
    base = nn.Linear(64, 64).bfloat16().requires_grad_(False)
    x = torch.randn(32, 64).bfloat16()
    before = base(x)
    module = LoRAModule("x", base, use_dora=True)
    module.apply_to()
    assert torch.equal(module._gain(), torch.ones(64))
    assert (base(x) != before).float().mean() < 0.01


def test_d6_dora_stacks_on_another_network_and_on_hooks():
    base, _ = applied(nn.Linear(8, 8))
    base.forward = lambda input, forward=base.forward: forward(input)  # as an accelerate hook does
    before = base(torch.ones(1, 8))
    module = LoRAModule("y", base, use_dora=True)
    module.apply_to()
    assert torch.allclose(base(torch.ones(1, 8)), before, atol=1e-5)


def test_d7_a_base_cast_to_fp8_after_apply_to():
    base = nn.Linear(8, 8).requires_grad_(False)
    module = LoRAModule("x", base, use_dora=True)
    base.forward = lambda x: F.linear(x, base.weight.to(x.dtype), base.bias)
    module.apply_to()
    base.weight.data = base.weight.data.to(torch.float8_e4m3fn)
    values, x = base.weight.float(), torch.randn(3, 8)
    assert torch.allclose(base(x), F.linear(x, values, base.bias), atol=1e-5)


def test_d8_the_norm_makes_no_float32_copy_of_the_base(monkeypatch):
    monkeypatch.setattr(half_precision, "_CACHED", 4 * 64)
    base, module = applied(nn.Linear(64, 48).bfloat16(), use_dora=True)
    sizes = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.dtype == torch.float32:
                sizes.append(result.numel())
            return result

    with Sizes():
        module._gain()
    assert max(sizes) == 4 * 64
    assert module.use_dora
    assert base.weight.dtype == torch.bfloat16


def test_d9_sa_float32_adapters_beside_a_bfloat16_base():
    x = torch.randn(3, 8).bfloat16()
    for cls in (LoRAModule, LoRAInfModule):
        base, _ = applied(nn.Linear(8, 8).bfloat16(), cls)
        assert base(x).dtype == torch.bfloat16


@pytest.mark.parametrize("algorithm", [loha, lokr])
def test_d10_dora_with_other_algorithms_is_on_and_rslora_a_named_error(algorithm):
    model = block("WanAttentionBlock", **linears("self_attn__q"))
    assert all(module.use_dora for module in make(algorithm, model, architecture="wan", use_dora="1").unet_loras)
    with pytest.raises(ValueError, match="use_rslora"):
        make(algorithm, model, architecture="wan", use_rslora="1")


def test_d11_sa_conv3d_is_adapted():
    network = of_sequential(nn.Sequential(nn.Conv3d(4, 4, (1, 3, 3))))
    assert network.unet_loras[0].lora_down.weight.shape == (4, 4, 1, 3, 3)


@pytest.mark.parametrize(
    ("features", "factor", "shape"),
    [(128, -1, (8, 16)), (512, -1, (16, 32)), (1024, -1, (32, 32)), (512, 4, (4, 128)), (12, 5, (3, 4))],
)
def test_d13_lokr_factors_are_those_of_lycoris(features, factor, shape):
    module = lokr.LoKrModule("x", nn.Linear(features, features), 1.0, 10000, 3.0, factor=factor)
    assert tuple(module.lokr_w1.shape) == (shape[0], shape[0])
    assert tuple(module.lokr_w2.shape) == (shape[1], shape[1])
    # Whole factors have scale 1, whatever alpha is.
    assert module.scale == 1.0


def test_d14_flags_are_there_only_where_they_say_something_and_optional():
    model = nn.Sequential(nn.Linear(4, 4)).requires_grad_(False)
    plain = of_sequential(model)
    assert not [key for key in plain.state_dict() if "flag" in key]
    plain.load_state_dict(plain.state_dict() | {"use_rslora_flag": torch.tensor(False)}, strict=True)
    stabilised = of_sequential(nn.Sequential(nn.Linear(4, 4)), use_rslora=True)
    state = stabilised.state_dict()
    assert "use_rslora_flag" in state
    stabilised.load_state_dict({key: tensor for key, tensor in state.items() if "flag" not in key}, strict=True)


@pytest.mark.parametrize("multiplier", [1e-3, 0.5, 1.7, -0.4])
def test_d17_a_multiplier_means_the_same_in_forward_merge_and_get_weight(multiplier):
    base, module = applied(nn.Linear(8, 8), LoRAInfModule, use_dora=True, multiplier=multiplier)
    x, weight = torch.randn(3, 8), base.weight.clone()
    delta = multiplier * module.scale * module.lora_up.weight.double() @ module.lora_down.weight.double()
    combined = weight.double() + delta
    expected = combined * (module.dora_layer.weight.double() / combined.norm(dim=1))[:, None]
    output, change = base(x), module.get_weight()
    assert torch.allclose(weight.double() + change, expected, atol=1e-6)
    assert torch.allclose(output.double(), F.linear(x.double(), expected, base.bias.double()), atol=1e-5)
    module.merge_to(module.state_dict())
    assert torch.allclose(base.weight.double(), expected, atol=1e-6)


def test_d18_max_norm_limits_the_low_rank_change_and_leaves_the_magnitude():
    _, module = applied(nn.Linear(8, 8), use_dora=True)
    magnitude, norm = module.dora_layer.weight.clone(), module.change_norm()
    module.shrink(torch.tensor(0.5))
    assert torch.equal(module.dora_layer.weight, magnitude)
    assert module.change_norm().item() == pytest.approx(norm.item() / 2, rel=1e-5)


def test_d19_pissa_does_not_touch_the_base_and_resumes_from_weights():
    model = nn.Sequential(nn.Linear(8, 8)).requires_grad_(False)
    weight = model[0].weight.clone()
    network = of_sequential(model, init_lora_weights="pissa")
    assert torch.equal(model[0].weight, weight)
    resumed = of_sequential(nn.Sequential(nn.Linear(8, 8)), init_lora_weights="pissa")
    resumed.load_state_dict(network.state_dict(), strict=True)


@pytest.mark.parametrize("value", ["Ture", "yess", "2", ""])
def test_d20_a_typo_in_a_bool_is_an_error(value):
    with pytest.raises(ValueError, match="use_dora"):
        of_sequential(nn.Sequential(nn.Linear(2, 2)), use_dora=value)


def test_d22_loha_merges_in_the_asked_dtype_and_leaves_multiplier_0_and_groups_right():
    base, module = applied(nn.Linear(8, 8), loha.LoHaInfModule)
    exact = base.weight + module.get_weight()
    module.multiplier = 0
    before = base.weight.clone()
    module.merge_to(module.state_dict())
    assert torch.equal(base.weight, before)
    module.multiplier = 1.0
    module.merge_to(module.state_dict(), dtype=torch.bfloat16)
    assert torch.equal(base.weight, exact.bfloat16().float())
    base, module = applied(nn.Conv2d(4, 6, 3, groups=2), loha.LoHaInfModule)
    x = torch.randn(2, 4, 5, 5)
    output = base(x)
    module.merge_to(module.state_dict())
    assert torch.allclose(base(x), output, atol=1e-4)


# --- sd-scripts, LyCORIS


def test_sd_split_qkv_of_the_double_blocks_of_flux():
    leaves = {"img_attn__qkv": nn.Linear(8, 24), "img_attn__proj": nn.Linear(8, 8)}
    network = make(lora_flux, block("DoubleStreamBlock", **leaves), split_qkv="True")
    assert [module.split_dims for module in network.unet_loras] == [[8, 8, 8], None]


def test_ly_masks_are_made_where_the_activations_are():
    assert drop_ranks(torch.ones(2, 4, device="meta"), 0.5, -1).device.type == "meta"
