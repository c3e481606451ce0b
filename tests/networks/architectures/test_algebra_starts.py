"""Files of combine and resize as the start of a training, and from the training network's own reader."""

from importlib import import_module

import pytest
import torch
from architecture_models import MODULES, make, outputs, outputs_at, train
from safetensors.torch import load_file

import lora_inspect

pytestmark = [pytest.mark.numeric, pytest.mark.slow]

MULTIPLIERS = (0.7, -0.3)
SAME = 1e-5
# Those of which both layouts have layers of one name for one weight.
ARCHITECTURES = ("wan", "flux", "qwen_image", "z_image", "hunyuan_video")


def module_of(name):
    return import_module(f"networks.{MODULES[name]}")


def new_network(name, rank, alpha, **options):
    """(a network over a new model, the model)."""
    model = make(name, "original")
    network = module_of(name).create_arch_network(1.0, rank, alpha, None, None, model, **options)
    network.apply_to(None, model, apply_text_encoder=False, apply_unet=True)
    return network.eval(), model


def saved(name, rank, alpha, file, seed, **options):
    """A file of a network after some training."""
    network, _ = new_network(name, rank, alpha, **options)
    torch.manual_seed(seed)
    train(network)
    network.save_weights(str(file), None, None)
    return file


def applied(name, files, multipliers):
    """A model with the networks of files at multipliers."""
    model = make(name, "original")
    for file, multiplier in zip(files, multipliers, strict=True):
        weights = load_file(file)
        network = module_of(name).create_arch_network_from_weights(multiplier, weights, unet=model)
        network.apply_to(None, model, apply_text_encoder=False, apply_unet=True)
        assert network.load_weights(str(file)).missing_keys == []
        network.eval()
    return model


def error(found, meant, before):
    """The largest difference of an output, relative to the largest change of it."""
    assert found.keys() == meant.keys() <= before.keys()
    return max(
        float((found[path] - value).abs().max() / (value - before[path]).abs().max()) for path, value in meant.items()
    )


@pytest.mark.parametrize("kinds", [({}, {}), ({"use_rslora": "True"}, {}), ({}, {"use_rslora": "True"})])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_training_goes_on_from_both_adapters(name, kinds, tmp_path):
    first = saved(name, 4, 3.0, tmp_path / "first.safetensors", 1, **kinds[0])
    other = saved(name, 2, 5.0, tmp_path / "other.safetensors", 2, **kinds[1])
    out = tmp_path / "out.safetensors"
    lora_inspect.combine(list(zip((first, other), MULTIPLIERS, strict=True)), out)
    network, model = new_network(name, 6, 6.0)
    loaded = network.load_weights(str(out))
    assert (loaded.missing_keys, loaded.unexpected_keys) == ([], [])
    found = outputs(network, model)
    meant = outputs_at(list(found), applied(name, (first, other), MULTIPLIERS))
    before = outputs_at(list(found), make(name, "original"))
    assert error(found, meant, before) < SAME


# The products of LoHa's two ranks, and of LoKr's.
RANKS = {"loha": 2 * 2, "lokr": 4 * 2}


@pytest.mark.parametrize("algorithm", RANKS)
def test_training_goes_on_from_another_algorithm(algorithm, tmp_path):
    model = make("wan", "original")
    of_other = import_module(f"networks.{algorithm}")
    options = {"factor": "4"} if algorithm == "lokr" else {}
    network = of_other.create_arch_network(1.0, 2, 3.0, None, None, model, **options)
    network.apply_to(None, model, apply_text_encoder=False, apply_unet=True)
    torch.manual_seed(3)
    train(network)
    network.eval().save_weights(str(tmp_path / "other.safetensors"), None, None)
    first, out = saved("wan", 4, 3.0, tmp_path / "first.safetensors", 1), tmp_path / "out.safetensors"
    rank = 4 + RANKS[algorithm]
    lora_inspect.combine([(first, 0.7), (tmp_path / "other.safetensors", -0.3)], out, rank=rank)
    start, started = new_network("wan", rank, float(rank))
    found_keys = start.load_weights(str(out))
    assert (found_keys.missing_keys, found_keys.unexpected_keys) == ([], [])
    found = outputs(start, started)
    before = outputs_at(list(found), make("wan", "original"))
    of_first = outputs_at(list(found), applied("wan", (first,), (0.7,)))
    network.set_multiplier(-0.3)
    of_second = outputs_at(list(found), model)
    meant = {path: of_first[path] + of_second[path] - before[path] for path in found}
    assert error(found, meant, before) < SAME


RESIZED = {"plain": ({}, 9.0), "RS-LoRA": ({"use_rslora": "True"}, 3.0)}


@pytest.mark.parametrize("kind", RESIZED)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_higher_rank_begins_as_the_file(name, kind, tmp_path):
    options, alpha = RESIZED[kind]
    first, out = saved(name, 4, 3.0, tmp_path / "first.safetensors", 1, **options), tmp_path / "out.safetensors"
    lora_inspect.resize(first, out, rank=9)
    network, model = new_network(name, 9, alpha, **options)
    loaded = network.load_weights(str(out))
    assert (loaded.missing_keys, loaded.unexpected_keys) == ([], [])
    found = outputs(network, model)
    meant = outputs_at(list(found), applied(name, (first,), (1.0,)))
    assert error(found, meant, outputs_at(list(found), make(name, "original"))) < SAME


@pytest.mark.parametrize("kind", RESIZED)
def test_new_directions_are_trained(kind, tmp_path):
    options, alpha = RESIZED[kind]
    first, out = saved("wan", 4, 3.0, tmp_path / "first.safetensors", 1, **options), tmp_path / "out.safetensors"
    lora_inspect.resize(first, out, rank=9)
    network, _ = new_network("wan", 9, alpha, **options)
    network.load_weights(str(out))
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    for _ in range(2):
        optimizer.zero_grad()
        torch.manual_seed(5)
        modules = network.unet_loras
        losses = [
            module.org_module(torch.randn(40, module.org_module.in_features)).square().mean() for module in modules
        ]
        sum(losses).backward()
        optimizer.step()
    for module in modules:
        down, up = module.lora_down.weight, module.lora_up.weight
        assert len(down) == 9
        assert bool(up.grad[:, 4:].abs().amax(0).all())
        assert bool(down.grad[4:].abs().amax(1).all())
        assert torch.linalg.matrix_rank((up @ down).double().detach(), rtol=1e-6) == min(9, *down.shape[1:], len(up))


def test_a_sum_of_adapters_of_other_layers_begins_after_resize(tmp_path):
    """Layers of one adapter alone have its rank, and a network has one rank."""
    first = saved("wan", 4, 3.0, tmp_path / "first.safetensors", 1, exclude_patterns="['.*ffn.*']")
    other, out = saved("wan", 2, 5.0, tmp_path / "other.safetensors", 2), tmp_path / "out.safetensors"
    said = lora_inspect.combine([(first, 0.7), (other, -0.3)], out)
    assert set(said.ranks) == {2, 6}
    network, model = new_network("wan", 6, 6.0)
    with pytest.raises(ValueError, match="rank 2, but the network has rank 6"):
        network.load_weights(str(out))
    lora_inspect.resize(out, tmp_path / "even.safetensors", rank=6)
    loaded = network.load_weights(str(tmp_path / "even.safetensors"))
    assert (loaded.missing_keys, loaded.unexpected_keys) == ([], [])
    found = outputs(network, model)
    meant = outputs_at(list(found), applied("wan", (first, other), MULTIPLIERS))
    assert error(found, meant, outputs_at(list(found), make("wan", "original"))) < SAME


def test_lower_ranks_lose_what_the_account_says(tmp_path):
    first, out = saved("wan", 8, 3.0, tmp_path / "first.safetensors", 1), tmp_path / "out.safetensors"
    said = lora_inspect.resize(first, out, rank=4)
    network, _ = new_network("wan", 4, 4.0)
    network.load_weights(str(out))
    lost = whole = 0.0
    before = load_file(first)
    for module in network.unet_loras:
        key = module.lora_name
        meant = 3.0 / 8 * before[f"{key}.lora_up.weight"].double() @ before[f"{key}.lora_down.weight"].double()
        found = (module.lora_up.weight.double() @ module.lora_down.weight.double()).detach()
        best = torch.linalg.svdvals(meant)[4:].square().sum()
        assert float((meant - found).square().sum()) == pytest.approx(float(best), rel=1e-4)
        lost, whole = lost + float(best), whole + float(meant.square().sum())
    assert said.error == pytest.approx((lost / whole) ** 0.5, rel=1e-5)
