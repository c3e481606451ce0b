"""`adapt`: any model, in a loop of one's own."""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lora_inspect.networks
from networks import adapt, lora_wan
from networks.network.network import LoRANetwork

ALGORITHMS = ("lora", "loha", "lokr", "oft")
KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"rslora": True},
    "dora": {"dora": True},
    "loha": {"algorithm": "loha"},
    "lokr": {"algorithm": "lokr", "factor": 2},
    "oft": {"algorithm": "oft"},
}


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        return self.out(nn.functional.scaled_dot_product_attention(query, key, value))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.attn = nn.LayerNorm(width), Attention(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm(x))
        return x + self.mlp(x)


class Toy(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width) for _ in range(2))
        self.head = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def toy(dtype: torch.dtype = torch.float32) -> Toy:
    torch.manual_seed(1)
    return Toy().to(dtype)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(5))


def train(network: LoRANetwork, model: nn.Module, x: Tensor, steps: int = 4) -> list[float]:
    optimizer = torch.optim.AdamW(network.get_trainable_params(), lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = nn.functional.mse_loss(model(x), torch.ones_like(x))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def names(network: LoRANetwork) -> list[str]:
    return [lora.lora_name.removeprefix("lora_unet_") for lora in network.unet_loras]


def is_untouched(model: nn.Module) -> bool:
    return not any("forward" in vars(module) or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("options", "scale"),
    [
        ({"alpha": 6.0}, 6 / 3),
        ({"alpha": 6.0, "rslora": True}, 6 / math.sqrt(3)),
        ({"alpha": 6.0, "use_rslora": "True"}, 6 / math.sqrt(3)),
        ({"alpha": 6.0, "multiplier": -0.5}, -0.5 * 6 / 3),
        ({}, 1.0),
        ({"rslora": True}, 1.0),
        ({"alpha": 0, "rslora": True}, 1.0),
    ],
)
def test_an_adapted_layer_is_the_formula(options, scale):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6))
    network = adapt(model, rank=3, **options)
    down, up = torch.randn(3, 8), torch.randn(6, 3)
    [lora] = network.unet_loras
    with torch.no_grad():
        lora.lora_down.weight.copy_(down)
        lora.lora_up.weight.copy_(up)
    x = torch.randn(5, 8)
    weight, bias = model[0].weight, model[0].bias
    torch.testing.assert_close(model(x), x @ weight.T + bias + scale * (x @ down.T) @ up.T)


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_step_and_a_multiplier_of_0_are_the_base(kind, x):
    model = toy()
    base = model(x)
    network = adapt(model, "Block", rank=2, **KINDS[kind])
    torch.testing.assert_close(model(x), base, atol=1e-6, rtol=1e-5)
    train(network, model, x)
    assert (model(x) - base).abs().max() > 0.01
    network.set_multiplier(0)
    assert torch.equal(model(x), base)


@pytest.mark.parametrize("kind", KINDS)
def test_training_changes_the_adapters_alone(kind, x):
    model = toy()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    network = adapt(model, "Block", rank=2, **KINDS[kind])
    factors = [parameter.detach().clone() for parameter in network.parameters()]
    losses = train(network, model, x, steps=8)
    assert losses[-1] < losses[0]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.state_dict().keys() == before.keys()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert any(not torch.equal(*pair) for pair in zip(factors, network.parameters(), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_read_again_is_the_same_model(kind, x, tmp_path):
    model = toy()
    network = adapt(model, "Block", rank=2, alpha=3, **KINDS[kind])
    train(network, model, x)
    network.save_weights(tmp_path / "toy.safetensors")
    again = toy()
    torch.manual_seed(9)
    adapt(again, "Block", rank=2, alpha=3, **KINDS[kind]).load_weights(tmp_path / "toy.safetensors")
    torch.testing.assert_close(again(x), model(x), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "rslora", "dora", "scale"),
    [
        ({"alpha": 6}, False, False, 6 / 4),
        ({"alpha": 6, "rslora": True}, True, False, 6 / 2),
        ({"alpha": 6, "rslora": True, "dora": True}, True, True, 6 / 2),
    ],
)
def test_info_reads_what_was_trained(options, rslora, dora, scale, run, tmp_path):
    network = adapt(toy(), "Attention", rank=4, **options)
    network.save_weights(tmp_path / "toy.safetensors")
    told = run("info", tmp_path / "toy.safetensors", "--json", "--modules").json
    assert (told["rslora"]["value"], told["dora"]["value"]) == (rslora, dora)
    assert told["ranks"] == {"4": 4}
    assert told["alphas"] == {"6": 4}
    assert told["scales"] == {f"{scale:g}": 4}
    assert sorted(one["module"] for one in told["module_list"]) == [
        f"lora_unet_blocks_{block}_attn_{layer}" for block in (0, 1) for layer in ("out", "qkv")
    ]


def test_a_merge_of_the_file_is_the_adapted_model(x, run, tmp_path):
    model = toy()
    save_file(model.state_dict(), tmp_path / "base.safetensors")
    network = adapt(model, "Block", rank=3, rslora=True)
    train(network, model, x)
    network.save_weights(tmp_path / "toy.safetensors")
    merged = tmp_path / "merged.safetensors"
    assert run("merge", tmp_path / "base.safetensors", tmp_path / "toy.safetensors", "-o", merged).status == 0
    plain = toy()
    plain.load_state_dict(load_file(merged))
    torch.testing.assert_close(plain(x), model(x), atol=1e-5, rtol=1e-4)


ATTENTION = [f"blocks_{block}_attn_{layer}" for block in (0, 1) for layer in ("qkv", "out")]
MLP = [f"blocks_{block}_mlp_{layer}" for block in (0, 1) for layer in (0, 2)]


@pytest.mark.parametrize(
    ("targets", "adapted"),
    [
        ("Attention", ATTENTION),
        (["Attention"], ATTENTION),
        (("Attention", r".*\.mlp"), sorted([*ATTENTION, *MLP])),
        (r".*\.attn", ATTENTION),
        (r"blocks\.1", [name for name in sorted([*ATTENTION, *MLP]) if name.startswith("blocks_1")]),
        (".*qkv", [name for name in ATTENTION if name.endswith("qkv")]),
        ("head", ["head"]),
        ("Linear", [*sorted([*ATTENTION, *MLP]), "head"]),
        (None, [*sorted([*ATTENTION, *MLP]), "head"]),
    ],
)
def test_targets_are_classes_or_paths(targets, adapted):
    assert sorted(names(adapt(toy(), targets))) == sorted(adapted)


def test_other_options_are_those_of_the_network():
    network = adapt(
        toy(), "Block", 4, exclude_patterns=[".*mlp.*"], include_patterns=[r".*mlp\.2"], rank_pattern={".*qkv": 2}
    )
    assert {name: lora.lora_dim for name, lora in zip(names(network), network.unet_loras, strict=True)} == {
        f"blocks_{block}_{name}": rank
        for block in (0, 1)
        for name, rank in (("attn_qkv", 2), ("attn_out", 4), ("mlp_2", 4))
    }
    groups, told = adapt(toy(), "Block", loraplus_lr_ratio=8).prepare_optimizer_params(1e-3)
    assert (told, [group["lr"] for group in groups]) == (["unet", "unet plus"], [1e-3, 8e-3])


def test_rank_and_alpha_are_read_from_text_as_the_options_of_trainers_are():
    [lora] = adapt(nn.Sequential(nn.Linear(8, 8)), rank="2", alpha="6").unet_loras
    assert (lora.lora_dim, lora.scale) == (2, 3.0)


def test_includes_reach_no_layer_outside_of_the_targets():
    assert names(adapt(toy(), "Attention", include_patterns=[".*"])) == ATTENTION


def test_a_file_of_other_layers_is_refused(tmp_path):
    adapt(toy(), "Block", 4).save_weights(tmp_path / "toy.safetensors")
    with pytest.raises(ValueError, match=r"toy\.safetensors: "):
        adapt(toy(), "Attention", 4).load_weights(tmp_path / "toy.safetensors")


# The classes of the toy that are or hold a layer, in the order of the alphabet.
CLASSES = ["Attention", "Block", "Linear", "ModuleList", "Sequential", "Toy"]


@pytest.mark.parametrize(
    ("targets", "sought", "first"),
    [
        ("Atention", ["'Atention'"], "Attention"),
        (["attention", "Blocks"], ["'attention'", "'Blocks'"], "Attention"),
        (["Attention", "Blok"], ["'Blok'"], "Block"),
        ("ToyModel", ["'ToyModel'"], "Toy"),
        ("LayerNorm", ["'LayerNorm'"], "Attention"),
        (r"blocks\.7", [r"'blocks\\.7'"], "Block"),
        ("", ["''"], "Attention"),
        ("zzz", ["'zzz'"], "Attention"),
    ],
)
def test_an_error_lists_the_targets_without_layers_and_the_classes_with_some(targets, sought, first):
    model = toy()
    with pytest.raises(ValueError, match=r"^targets: no module of the class or path ") as error:
        adapt(model, targets)
    looked_for, found = str(error.value).split("the classes that have one are ")
    assert all(name in looked_for for name in sought)
    assert "'Attention'" not in looked_for
    classes = found.split(", ")
    assert (classes[0], sorted(classes)) == (first, CLASSES)
    assert is_untouched(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_last_part_of_a_path_is_answered_with_the_pattern():
    with pytest.raises(ValueError, match=r"; for paths such as blocks\.0\.attn\.qkv write '\.\*qkv'$"):
        adapt(toy(), ["qkv"])
    assert names(adapt(toy(), ".*qkv")) == ["blocks_0_attn_qkv", "blocks_1_attn_qkv"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"targets": "("}, "targets: '\\(' is no regular expression"),
        ({"targets": []}, "targets is empty; leave it out to adapt every layer of the model"),
        ({"rank": 0}, "^rank=0: a whole number above 0"),
        ({"alpha": -1}, "^alpha=-1: a number of at least 0"),
        ({"algorithm": "ia3"}, "algorithm='ia3': one of lora, loha, lokr, oft was expected"),
        ({"network_dim": 8}, "unknown option 'network_dim'; it is 'rank' here"),
        ({"r": 8}, "unknown option 'r'; it is 'rank' here"),
        ({"lora_alpha": 8}, "unknown option 'lora_alpha'; it is 'alpha' here"),
        ({"lr": 1e-4}, "unknown option 'lr'; give it to the optimizer"),
        ({"rank_dropuot": 0.1}, "did you mean 'rank_dropout'"),
        ({"rslora": True, "use_rslora": False}, "use_rslora is given twice"),
        ({"factor": 4}, "unknown network_args option 'factor'"),
        ({"algorithm": "loha", "rslora": True}, "use_rslora is not for LoHa"),
    ],
)
def test_an_option_that_cannot_be_used_changes_nothing(options, says):
    model = toy()
    with pytest.raises(ValueError, match=says):
        adapt(model, **options)
    assert is_untouched(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_model_without_layers_and_no_model_are_told():
    with pytest.raises(RuntimeError, match="the model has no Linear layer and no convolution"):
        adapt(nn.Sequential(nn.Embedding(4, 4)))
    with pytest.raises(ValueError, match="'Block' has no layer, as the model has no Linear layer and no convolution"):
        adapt(nn.Sequential(nn.Embedding(4, 4)), "Block")
    with pytest.raises(ValueError, match=r"model is a dict, but a torch\.nn\.Module was expected"):
        adapt({})


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_that_is_removed_leaves_the_base(kind, x):
    model = toy()
    base = model(x)
    network = adapt(model, "Block", rank=2, **KINDS[kind])
    train(network, model, x)
    adapted = model(x)
    network.remove()
    assert is_untouched(model)
    assert torch.equal(model(x), base)
    network.remove()
    network.apply_to(None, model)
    assert torch.equal(model(x), adapted)


def test_networks_are_removed_in_the_order_of_a_stack(x):
    model = toy()
    first = adapt(model, "Block", 2)
    train(first, model, x)
    one = model(x)
    second = adapt(model, "Attention", 2)
    train(second, model, x)
    both = model(x)
    with pytest.raises(
        RuntimeError, match=r"blocks_0_attn_qkv: something else has been put around .* remove that first"
    ):
        first.remove()
    assert torch.equal(model(x), both)
    second.remove()
    assert torch.equal(model(x), one)
    first.remove()
    assert is_untouched(model)


def test_a_forward_that_was_patched_before_comes_back(x):
    model = nn.Sequential(nn.Linear(16, 16))
    patched = lambda input: 2 * nn.Linear.forward(model[0], input)  # noqa: E731
    model[0].forward = patched
    network = adapt(model, rank=2)
    network.remove()
    assert model[0].forward is patched


def test_a_half_precision_model_trains_float32_adapters(x):
    model = toy(torch.bfloat16)
    network = adapt(model, "Block", rank=2, rslora=True)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    half = x.bfloat16()
    assert model(half).dtype == torch.bfloat16
    losses = train(network, model, half, steps=8)
    assert losses[-1] < losses[0]


def test_a_model_without_weights_gets_adapters_that_have_some():
    with torch.device("meta"):
        model = Toy()
        network = adapt(model, "Block", rank=2)
    assert {parameter.device.type for parameter in network.parameters()} == {"cpu"}
    other = Toy(16).to("meta")
    with pytest.raises(ValueError, match="DoRA needs the weights of the base"):
        adapt(other, "Block", dora=True)
    assert is_untouched(other)


def test_a_call_in_another_thread_is_the_same(x):
    model = toy()
    network = adapt(model, "Block", rank=2)
    train(network, model, x)
    with ThreadPoolExecutor(2) as pool, torch.no_grad():
        found = list(pool.map(model, [x] * 4))
    assert all(torch.equal(one, found[0]) for one in found)
    torch.testing.assert_close(found[0], model(x))


def test_a_model_of_a_known_family_has_the_names_of_its_network_module(wan, tmp_path):
    model = wan()
    adapt(model, "WanTransformerBlock", 2).save_weights(tmp_path / "ours.safetensors")
    network = lora_wan.create_arch_network(1.0, 2, None, None, None, wan())
    network.save_weights(tmp_path / "module.safetensors", None, None)
    ours, theirs = load_file(tmp_path / "ours.safetensors"), load_file(tmp_path / "module.safetensors")
    assert "lora_unet_blocks_0_self_attn_q.lora_down.weight" in ours
    assert ours.keys() >= theirs.keys()


def test_both_names_of_the_package_have_it(run_process: Callable[..., Any], tmp_path: Path):
    assert callable(lora_inspect.networks.adapt)
    with pytest.raises(AttributeError, match="has no attribute 'adopt'"):
        _ = lora_inspect.networks.adopt
    (tmp_path / "networks").mkdir()
    (tmp_path / "networks" / "__init__.py").write_text("FOREIGN = True\n")
    told = run_process("-c", "from lora_inspect.networks import adapt; print(adapt.__module__)")
    assert (told.status, told.stdout.strip()) == (0, "lora_inspect.networks.adapting")
