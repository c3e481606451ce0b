"""Sums of LoHa, LoKr and LoCon that LyCORIS trained: by its own merges, and loaded by it again."""

import logging
from itertools import combinations, pairwise

import pytest
import torch
from lycoris import LycorisNetwork, create_lycoris
from lycoris.wrapper import create_lycoris_from_weights
from torch import nn

import lora_inspect

pytestmark = [pytest.mark.numeric, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

MULTIPLIERS = (0.7, -0.3)
SAME = 1e-5
KINDS = {
    "locon": {"algo": "locon", "linear_dim": 4, "linear_alpha": 3},
    "locon, tucker": {"algo": "locon", "linear_dim": 4, "linear_alpha": 3, "use_tucker": True},
    "loha": {"algo": "loha", "linear_dim": 2, "linear_alpha": 5},
    "loha, tucker": {"algo": "loha", "linear_dim": 2, "linear_alpha": 5, "use_tucker": True},
    "lokr": {"algo": "lokr", "linear_dim": 1, "linear_alpha": 2, "factor": 4},
    "lokr, both": {"algo": "lokr", "linear_dim": 2, "linear_alpha": 2, "factor": 8, "decompose_both": True},
}


# Its own files of this kind are an error in its loader.
LOADED = [kind for kind in KINDS if kind != "lokr, both"]


class Block(nn.Module):
    """Layers whose kernel a sum of some kinds shows: a convolution without it has factors of two dimensions."""

    def __init__(self, kinds):
        super().__init__()
        self.to_q, self.to_k = nn.Linear(40, 48), nn.Linear(40, 56)
        if any("locon" in kind or "tucker" in kind for kind in kinds):
            self.conv = nn.Conv2d(24, 40, 3)
        if any("locon" in kind for kind in kinds):
            self.point = nn.Conv2d(24, 48, 1)


class Model(nn.Module):
    def __init__(self, kinds):
        super().__init__()
        self.blocks = nn.ModuleList(Block(kinds) for _ in range(2))


@pytest.fixture(autouse=True)
def quiet():
    logging.getLogger("LyCORIS").setLevel(logging.ERROR)


def fresh(kinds):
    torch.manual_seed(3)
    return Model(kinds).requires_grad_(False).eval()


def outputs(model):
    """What every layer makes of one input."""
    found = {}
    for path, layer in model.named_modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            torch.manual_seed(len(path))
            shape = (30, 40) if isinstance(layer, nn.Linear) else (3, 24, 5, 5)
            with torch.no_grad():
                found[path] = layer(torch.randn(shape)).double()
    return found


def trained(kind, kinds, file, seed):
    """What an adapter adds to the outputs, as LyCORIS computes while it trains; it saves it to the file."""
    LycorisNetwork.apply_preset({"target_module": ["Block"], "target_name": []})
    model, options = fresh(kinds), KINDS[kind]
    torch.manual_seed(seed)
    sizes = {"conv_dim": options["linear_dim"], "conv_alpha": options["linear_alpha"]}
    network = create_lycoris(model, 1.0, **{**options, **sizes})
    network.apply_to()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape))
    network.eval().save_weights(str(file), None, {})
    return differences(model, kinds)


def differences(model, kinds):
    before = outputs(fresh(kinds))
    return {path: value - before[path] for path, value in outputs(model).items()}


def loaded(file, kinds):
    """What LyCORIS adds to the outputs with a file that it loads."""
    model = fresh(kinds)
    network, _ = create_lycoris_from_weights(1.0, str(file), model)
    network.apply_to()
    network.eval()
    return differences(model, kinds)


def assert_same(found, meant):
    assert found.keys() == meant.keys()
    for path, value in meant.items():
        assert float((found[path] - value).norm()) <= SAME * float(value.norm()), path
        assert value.any()


@pytest.mark.parametrize("kinds", [*combinations(KINDS, 2), *((b, a) for a, b in pairwise(KINDS))], ids=" and ".join)
def test_the_sum_is_what_both_add(kinds, tmp_path):
    files = [tmp_path / f"{number}.safetensors" for number in range(2)]
    changes = [trained(kind, kinds, file, seed) for seed, (kind, file) in enumerate(zip(kinds, files, strict=True))]
    out = tmp_path / "out.safetensors"
    said = lora_inspect.combine(list(zip(files, MULTIPLIERS, strict=True)), out)
    assert said.error < 1e-6
    first, other = changes
    meant = {path: MULTIPLIERS[0] * value + MULTIPLIERS[1] * other[path] for path, value in first.items()}
    assert_same(loaded(out, kinds), meant)


@pytest.mark.parametrize("kind", LOADED)
def test_another_multiplier_keeps_the_algorithm(kind, tmp_path):
    file, out = tmp_path / "file.safetensors", tmp_path / "out.safetensors"
    change = trained(kind, [kind], file, 1)
    lora_inspect.combine((file, -0.6), out)
    assert_same(loaded(out, [kind]), {path: -0.6 * value for path, value in change.items()})
