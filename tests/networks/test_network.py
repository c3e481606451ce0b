"""The calls of a trainer and of a generator, on a small model and on diffusers' Wan."""

import hashlib
import json
import logging
import math
import struct

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file

import lora_inspect
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.ops import merge as merge_command
from lora_inspect.reading.adapter import read_adapter
from networks import lora, lora_wan
from networks.network.network import LoRANetwork

KINDS = ("lora", "rslora", "dora", "rslora+dora")


def create(model, kind="lora", dim=4, alpha=2.0, classes=("Block",), **options):
    flags = {"use_rslora": str("rslora" in kind), "use_dora": str("dora" in kind.split("+"))}
    network = lora.create_network(list(classes), "lora_unet", 1.0, dim, alpha, None, None, model, **flags | options)
    network.apply_to(None, model, apply_text_encoder=False, apply_unet=True)
    return network


def train(network, run, steps=6, lr=2e-2):
    """Losses of a few steps towards a fixed random target, as a trainer takes them."""
    network.prepare_grad_etc(None)
    groups, descriptions = network.prepare_optimizer_params(unet_lr=lr)
    assert len(groups) == len(descriptions)
    optimizer = torch.optim.AdamW(groups)
    target = torch.randn_like(run())
    losses = []
    network.on_epoch_start(None)
    for _ in range(steps):
        network.on_step_start()
        loss = torch.nn.functional.mse_loss(run(), target)
        loss.backward()
        assert all(torch.isfinite(p.grad).all() for p in network.get_trainable_params())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("kind", KINDS)
def test_wan_from_training_to_merging(wan, wan_input, tmp_path, kind):
    model = wan()
    assert isinstance(model.state_dict(), dict)
    save_file(model.state_dict(), tmp_path / "base.safetensors")
    before = model(**wan_input).sample
    options = {"use_rslora": str("rslora" in kind), "use_dora": str("dora" in kind.split("+"))}
    network = lora_wan.create_arch_network(1.0, 4, 2.0, None, None, model, neuron_dropout=None, **options)
    network.apply_to(None, model, apply_text_encoder=False, apply_unet=True)
    # diffusers' block: eight projections of two attentions, two of the feed-forward
    assert len(network.unet_loras) == 2 * 10
    assert network.text_encoder_loras == []
    assert torch.allclose(model(**wan_input).sample, before, atol=1e-5)

    losses = train(network, lambda: model(**wan_input).sample)
    assert losses[-1] < losses[0]
    assert all(parameter.grad is None for parameter in model.parameters())
    runtime = model(**wan_input).sample.detach()
    network.set_multiplier(0)
    assert torch.equal(model(**wan_input).sample, before)
    network.set_multiplier(1.0)
    network.set_enabled(False)
    assert torch.equal(model(**wan_input).sample, before)

    file = str(tmp_path / "adapter.safetensors")
    network.save_weights(file, torch.float32, {"ss_network_module": "networks.lora_wan"})
    weights = load_file(file)
    fresh = wan()
    merging = lora_wan.create_arch_network_from_weights(1.0, weights, unet=fresh, for_inference=True)
    merging.merge_to(None, fresh, weights, device="cpu", non_blocking=True, safe_merge=True)
    assert (fresh(**wan_input).sample - runtime).abs().max() <= 1e-5 * runtime.abs().max()

    adapter = read_adapter(open_checkpoint(file))
    assert not adapter.problems
    assert not adapter.unclaimed
    assert adapter.trainer == "lora-inspect networks"
    assert adapter.rslora.value is ("rslora" in kind)
    assert adapter.dora.value is ("dora" in kind.split("+"))
    expected = 2.0 / math.sqrt(4) if "rslora" in kind else 2.0 / 4
    assert {contribution.scale for contribution in adapter.contributions} == {expected}

    plan = merge_command.plan_merge(str(tmp_path / "base.safetensors"), [(file, 1.0)], merge_command.MergeOptions())
    merge_command.merge(plan, str(tmp_path / "merged.safetensors"))
    merged = load_file(tmp_path / "merged.safetensors")
    for name, tensor in fresh.state_dict().items():
        assert (tensor - merged[name]).abs().max() <= 1e-6 * max(1.0, tensor.abs().max().item()), name


@pytest.mark.parametrize("kind", KINDS)
def test_convolutions_train_and_merge_too(make_model, tmp_path, kind):
    model, x = make_model(), torch.randn(3, 8, 12)
    network = create(model, kind)
    losses = train(network, lambda: model(x))
    assert losses[-1] < losses[0]
    file = str(tmp_path / "adapter.safetensors")
    network.save_weights(file, None, None)
    runtime, fresh = model(x).detach(), make_model()
    merging = lora.create_arch_network_from_weights(1.0, load_file(file), unet=fresh, for_inference=True)
    merging.merge_to(None, fresh, load_file(file))
    assert (fresh(x) - runtime).abs().max() <= 1e-5 * runtime.abs().max()
    adapter = read_adapter(open_checkpoint(file))
    assert not adapter.problems
    assert adapter.dora.modules == (6 if "dora" in kind.split("+") else 0)


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_what_a_file_holds(make_model, tmp_path, kind, dtype):
    network = create(make_model(), kind, alpha=0)
    metadata = {"ss_network_dim": "4", "note": "kept"}
    file = str(tmp_path / "adapter.safetensors")
    network.save_weights(file, dtype, metadata)
    assert metadata == {"ss_network_dim": "4", "note": "kept"}
    with safe_open(file, "pt") as opened:
        tensors, stored = {key: opened.get_tensor(key) for key in opened.keys()}, opened.metadata()  # noqa: SIM118
    flags = {"use_rslora_flag", "use_dora_flag"}
    alphas = {key for key in tensors if key.endswith(".alpha")}
    assert {key for key in tensors if "." not in key} == (set() if kind == "lora" else flags)
    assert len(alphas) == 10
    for key in alphas:
        assert (tensors[key].dtype, tensors[key].shape) == (torch.float32, ())
        assert tensors[key].item() == (2.0 if "rslora" in kind else 4.0)
    for key in set(tensors) - alphas - flags:
        is_factor = not key.endswith(".dora_layer.weight")
        assert tensors[key].dtype == ((dtype or torch.float32) if is_factor else torch.float32)
        assert key.endswith((".lora_down.weight", ".lora_up.weight", ".dora_layer.weight"))
    if kind != "lora":
        assert (tensors["use_rslora_flag"].dtype, tensors["use_rslora_flag"].shape) == (torch.bool, ())
        assert tensors["use_rslora_flag"].item() == ("rslora" in kind)
        assert tensors["use_dora_flag"].item() == ("dora" in kind.split("+"))
    assert stored["note"] == "kept"
    assert stored["lora_inspect.scale"] == ("alpha/sqrt(rank)" if "rslora" in kind else "alpha/rank")
    assert stored["lora_inspect.network"] == lora_inspect.__version__

    # The ecosystem's definition: of the bytes that the safetensors library makes of it with the ss_ metadata alone.
    data = save(tensors, {"ss_network_dim": "4"})
    start = 8 + struct.unpack("<Q", data[:8])[0]
    assert stored["sshs_model_hash"] == hashlib.sha256(data[start:]).hexdigest()
    assert stored["sshs_legacy_hash"] == hashlib.sha256(data[0x100000:0x110000]).hexdigest()[:8]


def test_any_other_ending_is_torch_save(make_model, tmp_path):
    network = create(make_model(), "rslora+dora")
    network.save_weights(str(tmp_path / "adapter.pt"), torch.bfloat16, {"ss_note": "lost"})
    weights = torch.load(tmp_path / "adapter.pt", weights_only=True)
    assert weights["use_rslora_flag"].dtype == torch.bool
    assert create(make_model(3), "rslora+dora").load_weights(str(tmp_path / "adapter.pt")).missing_keys == []


@pytest.mark.parametrize("kind", KINDS)
def test_state_dicts_are_strictly_symmetric(make_model, kind):
    model, other = make_model(), make_model()
    network, copy = create(model, kind), create(other, kind)
    x = torch.randn(2, 8, 12)
    train(network, lambda: model(x), steps=2)
    copy.load_state_dict(network.state_dict(), strict=True)
    assert torch.equal(other(x), model(x))
    assert copy.state_dict().keys() == network.state_dict().keys()


@pytest.mark.parametrize("kind", KINDS)
def test_runtime_inference_as_generators_do_it(make_model, kind):
    model, fresh = make_model(), make_model()
    network = create(model, kind)
    x = torch.randn(2, 8, 12)
    train(network, lambda: model(x), steps=2)
    weights = network.state_dict()
    # Files of other programs have no flags, but DoRA shows itself, and alpha/sqrt(rank) has to be told.
    unflagged = {key: tensor for key, tensor in weights.items() if "." in key}
    told = {"use_rslora": True} if "rslora" in kind else {}
    runtime = lora.create_arch_network_from_weights(1.0, unflagged, unet=fresh, for_inference=True, **told)
    runtime.apply_to(None, fresh, apply_text_encoder=False, apply_unet=True)
    runtime.load_state_dict(unflagged, strict=True)
    runtime.eval()
    assert torch.equal(fresh(x), model(x))


def test_two_networks_on_one_model(make_model):
    model = make_model()
    x = torch.randn(2, 8, 12)
    first = create(model, "lora")
    train(first, lambda: model(x), steps=2)
    one = model(x)
    second = create(model, "rslora")
    assert torch.equal(model(x), one)
    train(second, lambda: model(x), steps=2)
    both = model(x)
    assert not torch.equal(both, one)
    second.set_enabled(False)
    assert torch.equal(model(x), one)
    second.set_enabled(True)
    first.set_multiplier(0)
    assert not torch.equal(model(x), both)


def test_nothing_to_train(make_model):
    with pytest.raises(RuntimeError, match="No LoRA modules found"):
        lora.create_arch_network(1.0, 4, 1.0, None, None, make_model())
    network = LoRANetwork(["Other"], "lora_unet", None, make_model())
    with pytest.raises(RuntimeError, match="No LoRA modules found"):
        network.apply_to(None, None)
    network = lora.create_network(["Block"], "lora_unet", 1.0, 4, 1.0, None, None, make_model())
    with pytest.raises(RuntimeError, match="No LoRA modules found"):
        network.apply_to(None, None, apply_unet=False)


def test_options_reach_the_modules(make_model):
    network = create(
        make_model(),
        exclude_patterns="['.*img_mod']",
        rank_dropout="0.1",
        module_dropout="0.2",
        conv_dim="2",
        conv_alpha="8",
        neuron_dropout=0.3,
    )
    modules = {module.lora_name: module for module in network.unet_loras}
    assert "lora_unet_blocks_0_img_mod" not in modules
    linear, conv = modules["lora_unet_blocks_0_attn_to_q"], modules["lora_unet_blocks_0_conv"]
    assert (linear.dropout, linear.rank_dropout, linear.module_dropout) == (0.3, 0.1, 0.2)
    assert (linear.lora_dim, linear.scale, conv.lora_dim, conv.scale) == (4, 0.5, 2, 4.0)
    network = create(make_model(), dim=None, alpha=None)
    assert {(module.lora_dim, module.scale) for module in network.unet_loras} == {(4, 1.0)}


def test_dora_summary(make_model, caplog):
    with caplog.at_level(logging.INFO):
        create(make_model(), "dora")
    assert "DoRA enabled on 6 modules, disabled on: 4 non-Linear" in caplog.messages
    caplog.clear()
    with caplog.at_level(logging.INFO):
        network = create(make_model(), "dora", neuron_dropout=0.1)
    assert "DoRA enabled on 0 modules, disabled on: 4 non-Linear, 6 dropout" in caplog.messages
    assert not network.use_dora
    assert "use_dora_flag" not in network.state_dict()
    caplog.clear()
    with caplog.at_level(logging.INFO):
        create(make_model(), "dora", exclude_patterns=[".*(conv|point)"])
    assert "DoRA enabled on 6 modules" in caplog.messages


def test_verbose_says_what_is_adapted_and_what_is_not(make_model, caplog):
    with caplog.at_level(logging.INFO):
        create(make_model(), exclude_patterns=[".*img_mod"], verbose="true")
    assert "blocks.0.attn.to_q: lora_unet_blocks_0_attn_to_q, rank 4, 96 parameters" in caplog.messages
    assert any(message.startswith("blocks.1.img_mod: not adapted, because it matches") for message in caplog.messages)


@pytest.mark.parametrize(
    ("kind", "ratio", "expected"),
    [
        ("lora", None, {"unet": 1e-3}),
        ("lora", "8", {"unet": 1e-3, "unet plus": 8e-3}),
        ("dora", None, {"unet": 1e-3, "unet dora": 1e-3}),
        ("rslora+dora", "16", {"unet": 1e-3, "unet plus": 16e-3, "unet dora": 1e-3}),
    ],
)
def test_parameter_groups(make_model, kind, ratio, expected):
    network = create(make_model(), kind, **({"loraplus_lr_ratio": ratio} if ratio else {}))
    network.requires_grad_(False)
    groups, descriptions = network.prepare_optimizer_params(unet_lr=1e-3)
    assert {d: g["lr"] for d, g in zip(descriptions, groups, strict=True)} == pytest.approx(expected)
    names = {parameter: name for name, parameter in network.named_parameters()}
    members = {d: {names[p].rsplit(".", 2)[1] for p in g["params"]} for d, g in zip(descriptions, groups, strict=True)}
    assert members.get("unet plus", {"lora_up"}) == {"lora_up"}
    assert members.get("unet dora", {"dora_layer"}) == {"dora_layer"}
    assert members["unet"] == ({"lora_down"} if ratio else {"lora_down", "lora_up"})
    assert sum(len(group["params"]) for group in groups) == len(list(network.parameters()))
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_a_group_without_a_rate_is_left_out(make_model):
    assert create(make_model()).prepare_optimizer_params(unet_lr=0) == ([], [])
    groups, descriptions = create(make_model()).prepare_optimizer_params_with_multiple_te_lrs(None, None, 1e-4)
    assert (descriptions, groups[0]["lr"]) == (["unet"], 1e-4)


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
def test_max_norm(make_model, kind):
    model = make_model()
    network = create(model, kind, alpha=8)

    def norms():
        scale = 8 / math.sqrt(4) if kind == "rslora" else 8 / 4
        return [
            scale * torch.linalg.matrix_norm(m.lora_up.weight.flatten(1) @ m.lora_down.weight.flatten(1)).item()
            for m in network.unet_loras
        ]

    with torch.no_grad():
        for module in network.unet_loras:
            module.lora_up.weight.normal_()
        for number, (module, norm) in enumerate(zip(network.unet_loras, norms(), strict=True), 1):
            module.lora_up.weight.mul_(number / norm)
    before = [module.lora_up.weight.clone() for module in network.unet_loras]
    limit = len(before) - 4.5
    scaled, mean, largest = network.apply_max_norm_regularization(limit, "cpu")
    after = norms()
    assert scaled == 5
    assert max(after) == pytest.approx(limit, rel=1e-5)
    assert (mean, largest) == (pytest.approx(sum(after) / len(after), rel=1e-5), pytest.approx(limit, rel=1e-5))
    for module, weight in zip(network.unet_loras[:-5], before[:-5], strict=True):
        assert torch.equal(module.lora_up.weight, weight)


def test_backup_and_restore_of_a_whole_network(make_model):
    model = make_model()
    x = torch.randn(2, 8, 12)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    trained = create(make_model(), "rslora+dora")
    with torch.no_grad():
        for module in trained.unet_loras:
            module.lora_up.weight.normal_(std=0.1)
    weights = trained.state_dict()
    network = lora.create_network_from_weights(None, 0.5, weights, unet=model, for_inference=True)
    network.apply_to(None, model)
    network.load_state_dict(weights)
    runtime = model(x)
    network.backup_weights()
    network.pre_calculation()
    assert torch.allclose(model(x), runtime, atol=1e-5)
    network.restore_weights()
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert torch.equal(model(x), runtime)


def test_accelerate_saves_and_loads_its_state(make_model, tmp_path):
    import accelerate

    accelerator = accelerate.Accelerator(cpu=True)
    model = make_model()
    x = torch.randn(2, 8, 12)
    network = create(model, "rslora+dora")
    train(network, lambda: model(x), steps=2)
    optimizer = torch.optim.AdamW(network.prepare_optimizer_params(unet_lr=1e-3)[0])
    network, optimizer = accelerator.prepare(network, optimizer)
    trained = model(x)
    accelerator.save_state(str(tmp_path / "state"))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    accelerator.load_state(str(tmp_path / "state"))
    assert torch.equal(model(x), trained)


def test_the_options_in_metadata_agree_with_the_file(make_model, tmp_path):
    """As a trainer writes them: the evidence of options and tensors is one."""
    network = create(make_model(), "rslora+dora", alpha=2.0)
    metadata = {
        "ss_network_module": "networks.lora_wan",
        "ss_network_alpha": "2.0",
        "ss_network_args": json.dumps({"use_rslora": "True", "use_dora": "True"}),
    }
    network.save_weights(str(tmp_path / "a.safetensors"), torch.bfloat16, metadata)
    adapter = read_adapter(open_checkpoint(str(tmp_path / "a.safetensors")))
    assert not [problem for problem in adapter.problems if problem.severity != "note"]
    assert adapter.rslora.value is True
