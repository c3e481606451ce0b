"""The calls that trainers make, in their order and spelling, from a trainer's folder in each way to start it."""

import argparse
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import lora_inspect
from networks import lora, lora_flux, lora_wan
from networks.lora import LoRANetwork

ROOT = Path(lora_inspect.__file__).parents[1]
NET_ARGS = {"use_rslora": "True", "use_dora": "True", "loraplus_lr_ratio": "8"}


class WanAttentionBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn = nn.ModuleDict({name: nn.Linear(8, 8) for name in "qkvo"})
        self.norm3 = nn.Linear(8, 8)
        self.ffn = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x):
        attn = self.self_attn
        return x + self.ffn(attn["o"](torch.tanh(attn["q"](x) + attn["k"](x)) * attn["v"](x)))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch_embedding = nn.Linear(8, 8)
        self.blocks = nn.ModuleList(WanAttentionBlock() for _ in range(2))

    def forward(self, x):
        x = self.patch_embedding(x)
        for block in self.blocks:
            x = block(x)
        return x


@pytest.fixture
def transformer():
    torch.manual_seed(0)
    return Transformer().eval().requires_grad_(False)


def train(accelerator, module, network_args, transformer, folder, base_weights=None, network_weights=None, steps=4):
    """The calls of a musubi-tuner run, in its order: (network, losses, the file of the last save)."""
    args = argparse.Namespace(network_dim=4, network_alpha=2.0, network_dropout=None, learning_rate=5e-3)
    if base_weights:
        weights = load_file(base_weights)
        base = module.create_arch_network_from_weights(1.0, weights, unet=transformer, for_inference=True)
        base.merge_to(None, transformer, weights, torch.float32, "cpu")
    network = module.create_arch_network(
        1.0, args.network_dim, args.network_alpha, None, None, transformer, neuron_dropout=None, **network_args
    )
    if hasattr(module, "prepare_network"):
        network.prepare_network(args)
    network.apply_to(None, transformer, apply_text_encoder=False, apply_unet=True)
    if network_weights:
        assert network.load_weights(network_weights).missing_keys == []
    network.enable_gradient_checkpointing()
    groups, descriptions = network.prepare_optimizer_params(unet_lr=args.learning_rate)
    assert len(groups) == len(descriptions)
    assert all(group["lr"] and list(group["params"]) for group in groups)
    optimizer = torch.optim.AdamW(groups)
    prepared = accelerator.prepare(transformer)
    training_model, optimizer = accelerator.prepare(network, optimizer)
    transformer.eval()
    unwrapped = accelerator.unwrap_model(training_model)
    assert type(unwrapped).__name__ == "LoRANetwork"
    unwrapped.prepare_grad_etc(prepared)
    losses = []
    torch.manual_seed(1)
    x, target = torch.randn(2, 6, 8), torch.randn(2, 6, 8)
    unwrapped.on_epoch_start(prepared)
    assert unwrapped.training
    for _ in range(steps):
        with accelerator.accumulate(training_model):
            unwrapped.on_step_start()
            with accelerator.autocast():
                prediction = prepared(x)
            loss = nn.functional.mse_loss(prediction.float(), target)
            accelerator.backward(loss)
            assert all(parameter.grad is not None for parameter in training_model.parameters())
            accelerator.clip_grad_norm_(unwrapped.get_trainable_params(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        scaled, mean, largest = unwrapped.apply_max_norm_regularization(50.0, accelerator.device)
        assert (scaled, mean > 0, largest >= mean) == (0, True, True)
        losses.append(loss.item())
    folder.mkdir(exist_ok=True)
    file = str(folder / "adapter.safetensors")
    unwrapped.save_weights(file, torch.bfloat16, {"ss_network_module": module.__name__, "ss_seed": "None"})
    return unwrapped, losses, file


@pytest.mark.parametrize("options", [{}, NET_ARGS], ids=["lora", "all"])
def test_a_run_of_musubi_tuner(transformer, tmp_path, options):
    accelerator = importlib.import_module("accelerate").Accelerator(cpu=True)
    before = {key: tensor.clone() for key, tensor in transformer.state_dict().items()}
    network, losses, file = train(accelerator, lora_wan, options, transformer, tmp_path)
    assert losses[-1] < losses[0]
    assert all(torch.equal(tensor, before[key]) for key, tensor in transformer.state_dict().items())
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert all(parameter.grad is None for parameter in transformer.parameters())
    # The next run goes on from the file, and another merges it before it starts.
    model = Transformer().requires_grad_(False)
    model.load_state_dict(before)
    _, resumed, _ = train(accelerator, lora_wan, options, model, tmp_path / "resumed", network_weights=file)
    assert resumed[0] == pytest.approx(losses[-1], rel=0.05)
    merged = Transformer().requires_grad_(False)
    merged.load_state_dict(before)
    _, onward, _ = train(accelerator, lora_wan, {}, merged, tmp_path / "onward", base_weights=file, steps=1)
    assert onward[0] == pytest.approx(resumed[0], rel=1e-4)


@pytest.mark.parametrize("module", [lora_wan, lora], ids=["lora_wan", "lora"])
def test_a_run_of_sd_scripts(transformer, tmp_path, module):
    """`create_network`, a second argument in hooks, and (network, weights) from a file."""
    if module is lora:
        WanAttentionBlock.__name__ = "MMDoubleStreamBlock"
    try:
        network = module.create_network(
            1.0, 4, 2.0, None, [None], transformer, neuron_dropout=0.0, **{"use_rslora": "True"}
        )
    finally:
        WanAttentionBlock.__name__ = "WanAttentionBlock"
    network.apply_to(None, transformer, False, True)
    groups, descriptions = network.prepare_optimizer_params_with_multiple_te_lrs(None, 1e-3, 1e-4)
    assert (descriptions, groups[0]["lr"]) == (["unet"], 1e-3)
    network.prepare_grad_etc([None], transformer)
    network.on_epoch_start([None], transformer)
    x = torch.randn(2, 8)
    network.set_multiplier(0.0)
    base = transformer(x)
    network.set_multiplier(1.0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05)
    trained = transformer(x)
    file = str(tmp_path / "a.safetensors")
    network.save_weights(file, None, {})
    fresh = Transformer().requires_grad_(False)
    fresh.load_state_dict(transformer.state_dict())
    assert torch.equal(fresh(x), base)
    merging, weights = module.create_network_from_weights(1, file, None, None, fresh, for_inference=True)
    assert isinstance(merging, LoRANetwork)
    merging.merge_to(None, fresh, weights, torch.float32, "cpu")
    assert torch.allclose(fresh(x), trained, atol=1e-5)
    again, weights = module.create_network_from_weights(1.0, None, None, None, fresh, weights_sd=weights)
    assert again.use_rslora
    with pytest.raises(ValueError, match="file"):
        module.create_network_from_weights(1.0, None, None, None, fresh)


class DoubleStreamBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.img_attn = nn.ModuleDict({"qkv": nn.Linear(8, 24), "proj": nn.Linear(8, 8)})
        self.img_mlp = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))

    def forward(self, x):
        query, key, value = self.img_attn["qkv"](x).chunk(3, dim=-1)
        return x + self.img_mlp(self.img_attn["proj"](torch.tanh(query + key) * value))


class Flux(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.double_blocks = nn.ModuleList(DoubleStreamBlock() for _ in range(2))

    def forward(self, x):
        for block in self.double_blocks:
            x = block(x)
        return x


def sd_scripts_run(module, model, folder, weights=None, dim_from_weights=False, post_process=None, **network_args):
    """The calls of sd-scripts' `NetworkTrainer.train`, in its order: (network, losses, the saved file)."""
    vae, text_encoders = nn.Linear(2, 2), [nn.Linear(2, 2), nn.Linear(2, 2)]
    args = argparse.Namespace(cache_text_encoder_outputs=True, scale_weight_norms=1.0, learning_rate=1e-2)
    if dim_from_weights:
        network, _ = module.create_network_from_weights(1, weights, vae, text_encoders, model, **network_args)
    else:
        network_args["dropout"] = None
        network = module.create_network(1.0, 4, 2.0, vae, text_encoders, model, neuron_dropout=None, **network_args)
    assert hasattr(network, "set_multiplier")
    if hasattr(network, "prepare_network"):
        network.prepare_network(args)
    assert hasattr(network, "apply_max_norm_regularization")
    if post_process:
        post_process(args, network)
    network.apply_to(text_encoders, model, False, True)
    if weights is not None:
        network.load_weights(weights)
    network.enable_gradient_checkpointing()
    results = network.prepare_optimizer_params_with_multiple_te_lrs([1e-4, 1e-4], 5e-3, args.learning_rate)
    assert type(results) is tuple
    groups, descriptions = results
    assert len(groups) == len(descriptions)
    optimizer = torch.optim.AdamW(groups)
    accelerator = importlib.import_module("accelerate").Accelerator(cpu=True)
    network, optimizer = accelerator.prepare(network, optimizer)
    unwrapped = accelerator.unwrap_model(network)
    unwrapped.prepare_grad_etc(text_encoders, model)
    on_step_start = unwrapped.on_step_start if hasattr(unwrapped, "on_step_start") else None
    torch.manual_seed(2)
    x, target = torch.randn(3, 8), torch.randn(3, 8)
    losses = []
    for _ in range(2):
        unwrapped.on_epoch_start(text_encoders, model)
        assert unwrapped.training
        for _ in range(2):
            on_step_start(text_encoders, model)
            # The prediction of the base, for samples that are to stay as they are.
            network.set_multiplier(0.0)
            with torch.no_grad():
                base = model(x)
            network.set_multiplier(1.0)
            loss = nn.functional.mse_loss(model(x), target) + nn.functional.mse_loss(model(x), base)
            losses.append(loss.item())
            accelerator.backward(loss)
            for parameter in network.parameters():
                assert parameter.grad is not None
            accelerator.clip_grad_norm_(unwrapped.get_trainable_params(), 1.0)
            network.update_grad_norms()
            network.update_norms()
            norms = (network.weight_norms(), network.grad_norms(), network.combined_weight_norms())
            assert all((norm is not None) == ("ggpo_sigma" in network_args) for norm in norms)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            keys_scaled, mean_norm, maximum_norm = unwrapped.apply_max_norm_regularization(
                args.scale_weight_norms, accelerator.device
            )
            assert (keys_scaled >= 0, mean_norm > 0, maximum_norm >= mean_norm) == (True, True, True)
        unwrapped.eval()
        assert not unwrapped.training
        unwrapped.train()
    file = str(folder / "sd_scripts.safetensors")
    unwrapped.save_weights(file, torch.float32, {"ss_network_module": module.__name__, "ss_network_dim": 4})
    return unwrapped, losses, file


def encoder_of_t5(args, network):
    """`post_process_network` of sd-scripts' FLUX and SD3 trainers."""
    if network.train_t5xxl and args.cache_text_encoder_outputs:
        raise ValueError("T5XXL is trained, so cache_text_encoder_outputs cannot be used")


# Lumina, Anima and HunyuanImage do nothing there.
@pytest.mark.slow
@pytest.mark.parametrize("post_process", [encoder_of_t5, None], ids=["FLUX and SD3", "the others"])
@pytest.mark.parametrize("algorithm", ["lora_flux", "loha", "lokr", "oft"])
def test_sd_scripts_stops_at_an_attribute_of_the_network(tmp_path, post_process, algorithm):
    module = importlib.import_module(f"networks.{algorithm}")
    torch.manual_seed(0)
    model = Flux().eval().requires_grad_(False)
    start = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    options = {} if algorithm == "lora_flux" else {"architecture": "flux"}
    network, losses, file = sd_scripts_run(module, model, tmp_path, post_process=post_process, **options)
    assert len(network.unet_loras) == 8
    assert all(torch.equal(tensor, start[key]) for key, tensor in model.state_dict().items())
    x = torch.randn(3, 8)
    trained = model(x)
    # --base_weights
    merged = Flux().eval().requires_grad_(False)
    merged.load_state_dict(start)
    base, weights = module.create_network_from_weights(1.0, file, None, None, merged, for_inference=True, **options)
    base.merge_to(None, merged, weights, torch.float32, "cpu")
    assert torch.allclose(merged(x), trained, atol=1e-5)
    # --dim_from_weights, which loads the same file again
    other = Flux().eval().requires_grad_(False)
    other.load_state_dict(start)
    resumed, onward, _ = sd_scripts_run(module, other, tmp_path, file, True, post_process, **options)
    assert [lora.lora_dim for lora in resumed.unet_loras] == [lora.lora_dim for lora in network.unet_loras]
    assert onward[0] < losses[0]


@pytest.mark.slow
def test_sd_scripts_trains_with_ggpo(tmp_path):
    torch.manual_seed(0)
    model = Flux().eval().requires_grad_(False)
    network, losses, _ = sd_scripts_run(lora_flux, model, tmp_path, ggpo_sigma="0.1", ggpo_beta="0.1")
    assert all(module.perturbation.gradient_norms is not None for module in network.unet_loras)
    assert losses[-1] < losses[0]


def test_text_encoders_that_a_trainer_passes_are_not_adapted_in_silence(transformer, caplog):
    network = lora_wan.create_network(1.0, 4, 2.0, None, [nn.Linear(2, 2)], transformer)
    network.apply_to([nn.Linear(2, 2)], transformer, True, True)
    assert "does not adapt text encoders" in caplog.text


def test_network_modules_of_others_can_build_on_ours(transformer):
    network = lora.create_network(
        ["WanAttentionBlock"],
        "lora_unet",
        1.0,
        4,
        1.0,
        None,
        None,
        transformer,
        neuron_dropout=None,
        exclude_patterns="['.*norm.*']",
        verbose="True",
    )
    assert len(network.unet_loras) == 12
    network.apply_to(None, transformer)
    again = lora.create_network_from_weights(["WanAttentionBlock"], 1.0, network.state_dict(), unet=Transformer())
    assert len(again.unet_loras) == 12


TRAINER = """
import argparse, importlib, logging, os, sys

def main():
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    sys.path.append(os.path.dirname(os.path.abspath(__file__)))
    parser = argparse.ArgumentParser()
    parser.add_argument("--network_module", nargs="+")
    parser.add_argument("--network_args", nargs="*")
    args = parser.parse_args()
    import torch
    from torch import nn

    class WanAttentionBlock(nn.Module):
        def __init__(self):
            super().__init__()
            self.q = nn.Linear(4, 4)

    for name in args.network_module:
        module = importlib.import_module(name)
        print("module", name, getattr(module, "FOREIGN", "ours"))
        if hasattr(module, "FOREIGN"):
            continue
        transformer = nn.Sequential(WanAttentionBlock())
        net_kwargs = dict(item.split("=") for item in args.network_args)
        network = module.create_arch_network(1.0, 4, 1.0, None, None, transformer, neuron_dropout=None, **net_kwargs)
        network.apply_to(None, transformer, apply_text_encoder=False, apply_unet=True)
        print("adapted", len(network.unet_loras))

if __name__ == "__main__":
    main()
"""


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    """A trainer's checkout: `src/tuner` with a `networks` folder of its own, and a script at the root."""
    root = tmp_path_factory.mktemp("trainer")
    package = root / "src" / "tuner"
    (package / "networks").mkdir(parents=True)
    for init in (package, package / "networks"):
        (init / "__init__.py").write_text("")
    (package / "networks" / "lora_wan.py").write_text("FOREIGN = 'the trainer'\n")
    (package / "wan_train_network.py").write_text(TRAINER)
    (root / "wan_train_network.py").write_text("from tuner.wan_train_network import main\nmain()\n")
    return root


@pytest.mark.parametrize(
    ("start", "short_name"),
    [
        (["src/tuner/wan_train_network.py"], "the trainer"),
        (["wan_train_network.py"], "ours"),
        (["-m", "tuner.wan_train_network"], "ours"),
    ],
    ids=["script in the source folder", "script at the root", "-m"],
)
@pytest.mark.slow
def test_launch_forms(trainer, start, short_name):
    """Only the long name is ours in every one: a script's own folder comes first on the path, and so its `networks`."""
    # Both are installed: the trainer, and this package.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(trainer / "src"), str(ROOT)])}
    command = [sys.executable, *start, "--network_module", "lora_inspect.networks.lora_wan", "networks.lora_wan"]
    command += ["--network_args", "use_rslora=True", "use_dora=True"]
    ended = subprocess.run(command, cwd=trainer, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    version = lora_inspect.__version__
    assert lines[:2] == [
        "module lora_inspect.networks.lora_wan ours",
        f"lora_inspect.networks {version} from {ROOT / 'networks'}",
    ]
    assert "adapted 1" in lines
    second = lines.index(f"module networks.lora_wan {short_name}")
    if short_name == "ours":
        assert lines[second + 1] == f"networks {version} from {ROOT / 'networks'}"
        assert lines.count("adapted 1") == 2
