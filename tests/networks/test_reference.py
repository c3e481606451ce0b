"""The literals, numbers and defaults that users of these trainers know from the reference of `network_args`."""

import logging
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from networks import lora, lora_qwen_image, lora_wan
from networks.lora import LoRAInfModule
from networks.modules.lora_module import LoRAModule
from networks.network_args import parse


def network_args(*strings):
    """`key=value` strings as a trainer splits them."""
    pairs = [item.split("=") for item in strings]
    assert all(len(pair) == 2 for pair in pairs)
    return dict(pairs)


class MMDoubleStreamBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.img_mod = nn.ModuleDict({"linear": nn.Linear(16, 16)})
        self.img_attn_qkv = nn.Linear(16, 48)
        self.attn = nn.ModuleDict({name: nn.Linear(16, 16) for name in ("to_q", "to_k", "to_v", "to_out")})

    def forward(self, x):
        x = x + self.img_attn_qkv(x)[..., :16] * self.img_mod["linear"](x)
        return self.attn["to_out"](self.attn["to_q"](x) * self.attn["to_k"](x) + self.attn["to_v"](x))


class MMSingleStreamBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.modulation = nn.ModuleDict({"linear": nn.Linear(16, 16)})
        self.linear1 = nn.Linear(16, 16)

    def forward(self, x):
        return x + self.linear1(x) * self.modulation["linear"](x)


class Hunyuan(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.double_blocks = nn.ModuleList([MMDoubleStreamBlock()])
        self.single_blocks = nn.ModuleList([MMSingleStreamBlock()])

    def forward(self, x):
        return self.single_blocks[0](self.double_blocks[0](x))


@pytest.fixture
def hunyuan():
    torch.manual_seed(1)
    return Hunyuan().requires_grad_(False)


def create(model, *strings, dim=4, alpha=2.0, dropout=None):
    network = lora.create_arch_network(1.0, dim, alpha, None, None, model, dropout, **network_args(*strings))
    network.apply_to(None, model, apply_text_encoder=False, apply_unet=True)
    return network


def paths(network):
    return [module.lora_name.removeprefix("lora_unet_") for module in network.unet_loras]


def steps(network, run, count=4, lr=5e-3):
    """The losses of a few steps towards a fixed target."""
    groups, _ = network.prepare_optimizer_params(unet_lr=lr)
    optimizer = torch.optim.AdamW(groups)
    target = torch.randn_like(run())
    losses = []
    network.on_epoch_start(None)
    for _ in range(count):
        loss = nn.functional.mse_loss(run(), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.fixture
def save(tmp_path, hunyuan):
    """Writes the file of a network with these options, its tensors changed by `change`."""

    def write(*strings, change=None, **settings):
        file = str(tmp_path / "saved.safetensors")
        torch.manual_seed(1)
        create(Hunyuan(), *strings, **settings).save_weights(file, torch.float32, None)
        if change:
            save_file(change(load_file(file)), file)
        return file

    return write


# --- Quick reference table


@pytest.mark.parametrize(
    ("option", "default"),
    [
        ("use_rslora", False),
        ("use_dora", False),
        ("loraplus_lr_ratio", None),
        ("rank_dropout", None),
        ("module_dropout", None),
        ("exclude_patterns", ()),
        ("include_patterns", ()),
        ("verbose", False),
    ],
)
def test_defaults_of_the_quick_reference_table(option, default):
    assert getattr(parse({}), option) == default


def test_default_of_exclude_mod_is_true(qwen):
    assert len(qwen_network(qwen, "exclude_mod=True").unet_loras) == len(qwen_network(qwen).unet_loras)


@pytest.mark.parametrize(
    ("strings", "rank", "alpha"),
    [
        ([], 8, 3.0),
        (["conv_dim=32"], 32, 3.0),
        (["conv_dim=32", "conv_alpha=16"], 32, 16.0),
        (["conv_alpha=16"], 8, 16.0),
    ],
)
def test_conv_dim_and_conv_alpha_are_those_of_the_network_by_default(strings, rank, alpha):
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Linear(4, 4))
    options = network_args(*strings)
    network = lora.create_network(["Sequential"], "lora_unet", 1.0, 8, 3.0, None, None, model, **options)
    assert [(module.lora_dim, module.alpha.item()) for module in network.unet_loras] == [(rank, alpha), (8, 3.0)]


# --- RS-LoRA


@pytest.mark.parametrize(
    ("strings", "alpha", "scale"),
    [([], 64, 0.5), (["use_rslora=True"], 64, 5.66), ([], 0, 1.0), (["use_rslora=True"], 0, 1.0)],
)
def test_scaling_comparison_at_dim_128(hunyuan, strings, alpha, scale):
    network = create(hunyuan, *strings, dim=128, alpha=alpha)
    assert {round(module.scale, 2) for module in network.unet_loras} == {scale}
    exact = 64 / math.sqrt(128) if scale == 5.66 else scale
    assert network.unet_loras[0].scale == pytest.approx(exact, rel=1e-12)


def test_alpha_0_persistence(save):
    """The saved alpha becomes sqrt(r), so that alpha/sqrt(r) = 1; plain files have r."""
    for strings, saved in ((["use_rslora=True"], math.sqrt(8)), ([], 8.0)):
        weights = load_file(save(*strings, dim=8, alpha=0))
        alphas = [tensor.item() for key, tensor in weights.items() if key.endswith(".alpha")]
        assert alphas == [pytest.approx(saved, rel=1e-7)] * 6


def test_scale_weight_norms_uses_the_rslora_scale(hunyuan):
    network = create(hunyuan, "use_rslora=True")
    with torch.no_grad():
        for module in network.unet_loras:
            module.lora_up.weight.normal_()
    up, down = network.unet_loras[0].lora_up.weight.clone(), network.unet_loras[0].lora_down.weight.clone()
    norm = torch.linalg.matrix_norm(2.0 / math.sqrt(4) * up @ down)
    _, _, largest = network.apply_max_norm_regularization(0.5, "cpu")
    assert largest == pytest.approx(0.5, rel=1e-5)
    shrunk = network.unet_loras[0].lora_up.weight @ network.unet_loras[0].lora_down.weight
    assert torch.allclose(shrunk, up @ down * (0.5 / norm), atol=1e-6)


def test_use_rslora_flag_is_a_network_level_buffer(hunyuan, save):
    assert dict(create(hunyuan, "use_rslora=True").named_buffers())["use_rslora_flag"].item() is True
    assert load_file(save("use_rslora=True"))["use_rslora_flag"].item() is True


@pytest.mark.parametrize(("network", "file"), [([], ["use_rslora=True"]), (["use_rslora=True"], [])])
def test_rslora_flag_mismatch_is_a_hard_error(hunyuan, save, network, file):
    with pytest.raises(ValueError, match="RS-LoRA flag mismatch"):
        create(hunyuan, *network).load_weights(save(*file))


@pytest.mark.parametrize(("matching", "hint"), [(3, False), (4, True)])
def test_suspicious_alpha_hint_above_half(hunyuan, save, matching, hint):
    """Of the six alphas, more than 50% have to equal sqrt(dim)."""

    def change(weights):
        weights = {key: tensor for key, tensor in weights.items() if "flag" not in key}
        keys = sorted(key for key in weights if key.endswith(".alpha"))
        assert len(keys) == 6
        return weights | {key: torch.tensor(2.0 if i < matching else 3.0) for i, key in enumerate(keys)}

    with pytest.raises(ValueError, match="RS-LoRA flag mismatch") as error:
        create(hunyuan, "use_rslora=True").load_weights(save(change=change))
    assert ("67% of the alphas equal sqrt(rank)" in str(error.value)) == hint
    assert ("RS-LoRA networks" in str(error.value)) == hint


# --- DoRA


@pytest.mark.parametrize("bias", [True, False])
def test_the_dora_formula(bias):
    base = nn.Linear(6, 5, bias=bias).requires_grad_(False).double()
    module = LoRAModule("x", base, 1.0, 3, 6.0, use_dora=True).double()
    module.apply_to()
    with torch.no_grad():
        module.lora_up.weight.normal_()
        module.dora_layer.weight.mul_(1.5)
    x = torch.randn(4, 6, dtype=torch.float64)
    scaling = 6.0 / 3
    up, down, magnitude = module.lora_up.weight, module.lora_down.weight, module.dora_layer.weight

    weight_norm = (base.weight + scaling * (up @ down)).norm(dim=1).detach()
    mag_norm_scale = magnitude / weight_norm
    base_wo_bias, lora_out = x @ base.weight.t(), x @ down.t() @ up.t()
    delta = (mag_norm_scale - 1) * base_wo_bias + mag_norm_scale * lora_out * scaling
    expected = nn.functional.linear(x, base.weight, base.bias) + delta

    assert torch.allclose(base(x), expected, rtol=1e-12)
    found = torch.autograd.grad(base(x).square().sum(), [up, down, magnitude])
    gradients = torch.autograd.grad(expected.square().sum(), [up, down, magnitude])
    assert all(torch.allclose(*pair, rtol=1e-10) for pair in zip(found, gradients, strict=True))


def test_the_norm_does_not_build_up_times_down():
    base = nn.Linear(64, 48).requires_grad_(False)
    module = LoRAModule("x", base, 1.0, 4, 4.0, use_dora=True)
    module.apply_to()
    sizes = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.data_ptr() != base.weight.data_ptr():
                sizes.append(result.numel())
            return result

    with torch.no_grad():
        base(torch.randn(1, 64))
        with Sizes():
            base(torch.randn(1, 64))
    assert sizes
    assert max(sizes) <= 64 * 4


@pytest.mark.parametrize(
    ("layer", "options", "enabled"),
    [
        (nn.Linear(4, 6), {}, True),
        (nn.Conv2d(4, 6, 3), {}, False),
        (nn.Conv2d(4, 6, 1), {}, False),
        (nn.Conv3d(4, 6, 1), {}, False),
        (nn.Linear(4, 6), {"split_dims": [2, 2, 2]}, False),
        (nn.Linear(4, 6), {"dropout": 0.1}, False),
        (nn.Linear(4, 6), {"rank_dropout": 0.1}, False),
        (nn.Linear(4, 6), {"module_dropout": 0.1}, True),
        (nn.Linear(4, 6), {"dropout": 0.0, "rank_dropout": 0.0}, True),
    ],
)
def test_supported_layers(layer, options, enabled):
    module = LoRAModule("x", layer, use_dora=True, **options)
    assert module.use_dora is enabled
    assert any("dora_layer" in key for key in module.state_dict()) is enabled
    # What is disabled falls back to standard LoRA.
    module.apply_to()


def test_summary_and_info_of_disabled_modules(caplog):
    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.ModuleList(nn.Linear(2, 2) for _ in range(45))
            self.dropped = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
            self.conv = nn.ModuleList(nn.Conv2d(2, 2, size) for size in (1, 3) for _ in range(6))

    class SomeDropped(LoRAModule):
        def __init__(self, name, *args, **keywords) -> None:
            super().__init__(name, *args, **keywords | {"dropout": 0.1 if "dropped" in name else None})

    with caplog.at_level(logging.INFO):
        lora.create_network(
            ["Layers"], "lora_unet", 1.0, 2, 1.0, None, None, Layers(), module_class=SomeDropped, use_dora="True"
        )
    assert "DoRA enabled on 45 modules, disabled on: 12 non-Linear, 3 dropout" in caplog.messages
    info = next(record for record in caplog.records if record.getMessage().startswith("DoRA disabled for 15 modules"))
    assert info.levelno == logging.INFO


def test_saved_weights_of_dora(save):
    weights = load_file(save("use_dora=True"))
    assert weights["use_dora_flag"].item() is True
    assert sum(key.endswith(".dora_layer.weight") for key in weights) == 6


def test_dora_is_found_by_its_keys_where_the_flag_is_not(hunyuan, save):
    weights = load_file(save("use_dora=True", change=lambda w: {k: t for k, t in w.items() if "flag" not in k}))
    network = lora.create_arch_network_from_weights(1.0, weights, unet=hunyuan)
    assert network.use_dora


def test_merging_takes_the_magnitude_from_the_weights(hunyuan, save):
    base = hunyuan.single_blocks[0].linear1
    weights = load_file(save("use_dora=True"))
    network = lora.create_arch_network_from_weights(1.0, weights, unet=hunyuan, for_inference=True)
    key = "lora_unet_single_blocks_0_linear1.dora_layer.weight"
    before = base.weight.clone()
    network.merge_to(None, hunyuan, weights | {key: 2 * weights[key]})
    assert torch.allclose(base.weight, 2 * before, atol=1e-6)
    partial = {name: tensor for name, tensor in weights.items() if name != key}
    with pytest.raises(ValueError, match=r"lora_unet_single_blocks_0_linear1\.dora_layer\.weight"):
        network.merge_to(None, hunyuan, partial)


def test_dora_expected_but_not_in_the_weights_is_a_hard_error(hunyuan, save):
    message = "DoRA flag mismatch: network expects DoRA but weights lack it"
    with pytest.raises(ValueError, match=message):
        create(hunyuan, "use_dora=True").load_weights(save())


def test_dora_in_the_weights_but_not_expected_is_a_warning(hunyuan, save, caplog):
    network = create(hunyuan, "use_rslora=True")
    network.load_weights(save("use_dora=True", "use_rslora=True"))
    message = "DoRA flag mismatch: weights contain DoRA but network doesn't expect it"
    warning = next(record for record in caplog.records if record.getMessage().startswith(message))
    assert warning.levelno == logging.WARNING
    # It is standard LoRA, and use_dora_flag is not allowed to flip to True.
    assert not network.state_dict()["use_dora_flag"]
    assert not any("dora_layer" in key for key in network.state_dict())


def test_get_weight_before_loading_warns(caplog):
    LoRAInfModule("x", nn.Linear(4, 4), use_dora=True).get_weight()
    warning = next(r for r in caplog.records if "DoRA magnitude appears uninitialized" in r.getMessage())
    assert warning.levelno == logging.WARNING


def test_lora_multiplier_0_is_a_no_op(hunyuan, save):
    x = torch.randn(3, 16)
    before, weight = hunyuan(x), hunyuan.single_blocks[0].linear1.weight.clone()
    weights = load_file(save("use_dora=True"))
    merging = lora.create_arch_network_from_weights(0.0, weights, unet=hunyuan, for_inference=True)
    merging.merge_to(None, hunyuan, weights)
    assert torch.equal(hunyuan.single_blocks[0].linear1.weight, weight)
    network = create(hunyuan, "use_dora=True")
    steps(network, lambda: hunyuan(x))
    assert not torch.equal(hunyuan(x), before)
    network.set_multiplier(0)
    assert torch.equal(hunyuan(x), before)


# --- LoRA+


def test_learning_rates_of_loraplus(hunyuan):
    network = create(hunyuan, "loraplus_lr_ratio=8", "use_dora=True")
    groups, descriptions = network.prepare_optimizer_params(unet_lr=5e-5)
    rates = dict(zip(descriptions, (group["lr"] for group in groups), strict=True))
    assert rates == {"unet": pytest.approx(5e-5), "unet plus": pytest.approx(4e-4), "unet dora": pytest.approx(5e-5)}
    names = {parameter: name for name, parameter in network.named_parameters()}
    plus = {names[parameter].split(".")[1] for parameter in groups[descriptions.index("unet plus")]["params"]}
    assert plus == {"lora_up"}
    network.set_loraplus_lr_ratio(None)
    assert network.prepare_optimizer_params(unet_lr=5e-5)[1] == ["unet", "unet dora"]


# --- Dropouts


def test_rank_dropout_zeroes_whole_ranks():
    base = nn.Linear(4, 6).requires_grad_(False)
    module = LoRAModule("x", base, 1.0, 3, 3.0, **network_args_as_numbers("rank_dropout=0.5"))
    module.apply_to()
    with torch.no_grad():
        module.lora_up.weight.zero_()
        module.lora_up.weight[:3] = torch.eye(3)
    x = torch.randn(200, 7, 4)
    ranks = (base(x) - nn.functional.linear(x, base.weight, base.bias))[..., :3]
    zero = (ranks.abs() < 1e-6).all(1)
    assert 0.4 < zero.float().mean() < 0.6
    assert ((ranks.abs() < 1e-6).any(1) == zero).float().mean() > 0.99


def network_args_as_numbers(*strings):
    return {name: float(value) for name, value in network_args(*strings).items()}


def test_module_dropout_leaves_the_base_output():
    base = nn.Linear(4, 6).requires_grad_(False)
    x = torch.randn(2, 4)
    before = base(x)
    module = LoRAModule("x", base, use_dora=True, **network_args_as_numbers("module_dropout=0.1"))
    module.apply_to()
    nn.init.normal_(module.lora_up.weight)
    skipped = sum(torch.equal(base(x), before) for _ in range(1000))
    assert 60 < skipped < 150
    assert module.use_dora


# --- Module selection


@pytest.mark.parametrize(
    ("strings", "left_out", "kept"),
    [
        # Default exclusions: .*(img_mod|txt_mod|modulation).*
        ([], ["img_mod", "modulation"], ["img_attn_qkv", "linear1", "attn_to_q"]),
        (["exclude_patterns=['.*(img_mod|txt_mod|modulation).*']"], ["img_mod", "modulation"], ["linear1"]),
        (
            [
                "exclude_patterns=['.*attn.*']",
                r"include_patterns=['.*attn\.to_q.*', '.*attn\.to_k.*', '.*attn\.to_v.*']",
            ],
            ["attn_qkv", "to_out", "img_mod"],
            ["attn_to_q", "attn_to_k", "attn_to_v", "linear1"],
        ),
        # An include overrides, the default exclusions too.
        (["include_patterns=['.*img_mod.*']"], ["modulation"], ["img_mod", "linear1"]),
    ],
)
def test_selection_patterns(hunyuan, strings, left_out, kept):
    found = paths(create(hunyuan, *strings))
    assert not [path for path in found for part in left_out if part in path]
    assert all(any(part in path for path in found) for part in kept)


def test_verbose_lists_modules_reasons_and_parameter_counts(hunyuan, caplog):
    with caplog.at_level(logging.INFO):
        create(hunyuan, "verbose=True")
    text = caplog.text
    assert "single_blocks.0.linear1: lora_unet_single_blocks_0_linear1, rank 4, 128 parameters" in text
    assert "single_blocks.0.modulation.linear: not adapted, because it matches the default exclude pattern" in text
    caplog.clear()
    with caplog.at_level(logging.INFO):
        create(hunyuan, "verbose=False")
    assert "not adapted" not in caplog.text


# --- Qwen-Image and the known-good combinations


@pytest.fixture
def qwen():
    import diffusers

    torch.manual_seed(2)
    model = diffusers.QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        guidance_embeds=False,
        axes_dims_rope=(4, 6, 6),
    )
    return model.requires_grad_(False).eval()


def qwen_network(model, *strings):
    return lora_qwen_image.create_arch_network(1.0, 4, 2.0, None, None, model, None, **network_args(*strings))


@pytest.mark.parametrize(("strings", "leaves"), [([], 12), (["exclude_mod=True"], 12), (["exclude_mod=False"], 14)])
def test_exclude_mod_of_qwen_image(qwen, strings, leaves):
    network = qwen_network(qwen, *strings)
    assert len(network.unet_loras) == leaves
    assert any("img_mod" in path or "txt_mod" in path for path in paths(network)) == (leaves == 14)


COMBINATIONS = {
    "RS-LoRA only": ["use_rslora=True"],
    "DoRA only": ["use_dora=True"],
    "RS-LoRA + DoRA": ["use_rslora=True", "use_dora=True"],
    "LoRA+ + RS-LoRA": ["use_rslora=True", "loraplus_lr_ratio=8"],
    "Full combo": ["use_rslora=True", "use_dora=True", "loraplus_lr_ratio=8"],
    "Style training with module dropout": ["use_dora=True", "module_dropout=0.1"],
    "Selective layer training": ["exclude_patterns=['.*single_blocks.*']", "use_rslora=True"],
}


@pytest.mark.parametrize("strings", COMBINATIONS.values(), ids=COMBINATIONS)
def test_known_good_combinations_train(hunyuan, tmp_path, strings):
    x = torch.randn(8, 16)
    before = hunyuan(x)
    network = create(hunyuan, *strings)
    assert torch.allclose(hunyuan(x), before, atol=1e-5)
    assert len(network.unet_loras) == (5 if "single_blocks" in strings[0] else 6)
    losses = steps(network, lambda: hunyuan(x), count=8)
    assert losses[-1] < losses[0]
    network.save_weights(str(tmp_path / "a.safetensors"), torch.bfloat16, {})
    assert create(Hunyuan(), *strings).load_weights(str(tmp_path / "a.safetensors")).missing_keys == []


@pytest.mark.parametrize("strings", COMBINATIONS.values(), ids=COMBINATIONS)
def test_known_good_combinations_train_wan(wan, wan_input, strings):
    model = wan()
    network = lora_wan.create_arch_network(1.0, 4, 2.0, None, None, model, None, **network_args(*strings))
    network.apply_to(None, model)
    assert len(network.unet_loras) == 20
    losses = steps(network, lambda: model(**wan_input).sample)
    assert losses[-1] < losses[0]


def test_persona_and_identity_on_qwen_image_trains(qwen):
    network = qwen_network(qwen, "use_rslora=True", "loraplus_lr_ratio=8", "exclude_mod=False")
    network.apply_to(None, qwen)
    given = {
        "hidden_states": torch.randn(1, 16, 16),
        "encoder_hidden_states": torch.randn(1, 5, 16),
        "encoder_hidden_states_mask": torch.ones(1, 5, dtype=torch.long),
        "timestep": torch.tensor([0.5]),
        "img_shapes": [[(1, 4, 4)]],
    }
    losses = steps(network, lambda: qwen(**given).sample)
    assert losses[-1] < losses[0]
    assert any("mod" in path for path in paths(network))
