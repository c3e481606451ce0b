"""What LoKr's modules have of their own; what they compute stands in test_delta_modules.py."""

import importlib

import pytest
import torch
from torch import nn

from lora_inspect.algorithms import lokr
from networks.lokr import LoKrInfModule, LoKrModule
from networks.network.network import LoRANetwork


@pytest.mark.parametrize(
    ("dimension", "factor", "parts"),
    [
        (127, -1, (1, 127)),
        (128, -1, (8, 16)),
        (128, 2, (2, 64)),
        (128, 16, (8, 16)),
        (250, 4, (2, 125)),
        (250, 8, (5, 50)),
        (360, -1, (18, 20)),
        (360, 16, (15, 24)),
        (512, 4, (4, 128)),
        (1024, -1, (32, 32)),
        (12, 5, (3, 4)),
        (7, 3, (1, 7)),
    ],
)
def test_factorisation(dimension, factor, parts):
    assert lokr.factorise(dimension, factor) == parts


def test_factorisation_is_that_of_lycoris():
    reference = importlib.import_module("lycoris.functional").factorization
    for dimension in (*range(1, 130), 320, 640, 768, 1280, 1536, 3072, 5120, 8960):
        for factor in (-1, 1, 2, 3, 4, 5, 8, 16, 64):
            assert lokr.factorise(dimension, factor) == tuple(reference(dimension, factor)), (dimension, factor)


def test_keys_and_shapes_are_those_of_musubi_and_lycoris():
    def shapes(rank):
        state = LoKrModule("layer", nn.Conv2d(12, 24, 3), lora_dim=rank, alpha=1).state_dict()
        return {key: tuple(tensor.shape) for key, tensor in state.items()}

    assert shapes(2) == {"alpha": (), "lokr_w1": (4, 3), "lokr_w2_a": (6, 2), "lokr_w2_b": (2, 36)}
    assert shapes(64) == {"alpha": (), "lokr_w1": (4, 3), "lokr_w2": (6, 4, 3, 3)}


def test_two_whole_factors_have_scale_1_and_store_the_rank_as_alpha():
    module = LoKrModule("layer", nn.Linear(8, 8), lora_dim=64, alpha=1.0)
    assert (module.scale, float(module.alpha)) == (1.0, 64.0)
    # Whatever a file says: other programs store the alpha that was asked.
    module.load_state_dict({**module.state_dict(), "alpha": torch.tensor(5.0)}, strict=True)
    assert (module.scale, float(module.alpha)) == (1.0, 64.0)
    assert LoKrModule("layer", nn.Linear(48, 64), lora_dim=2, alpha=1.0).scale == 0.5


def test_factors_of_another_weight_are_an_error():
    module = LoKrInfModule("layer", nn.Linear(48, 64), lora_dim=2)
    with pytest.raises(ValueError, match="layer: either w2 or both w2_a and w2_b are needed"):
        module.merge_to({**module.state_dict(), "lokr_w2": torch.zeros(8, 8)})
    with pytest.raises(ValueError, match=r"layer: its factors change a weight of .*, but the base's is"):
        module.merge_to({**module.state_dict(), "lokr_w1": torch.zeros(3, 3)})


def test_a_network_with_another_factor_cannot_load(make_model, tmp_path):
    def network(factor):
        kwargs = {"module_class": LoKrModule, "module_kwargs": {"factor": factor}}
        return LoRANetwork(["Block"], "lora_unet", None, make_model(), 1.0, 1, 1, **kwargs)

    file = str(tmp_path / "adapter.safetensors")
    network(2).save_weights(file, None, None)
    network(2).load_weights(file)
    with pytest.raises(ValueError, match=r"lokr_w1 has shape \[2, 2\], but the network has \[3, 3\]"):
        network(-1).load_weights(file)


def test_factors_without_dimensions_are_named():
    whole = {"w1": (2, 2), "w2": (3, 3)}
    thin = {"w1": (2, 2), "w2_a": (3, 2), "w2_b": (2, 3)}
    assert lokr.check(whole) is None
    assert lokr.check(thin) is None
    assert lokr.check({**whole, "w2": (3,)}) == "w2 [3] has fewer than two dimensions"
    for shape in ((), (2,), (3, 3)):
        assert lokr.check({**thin, "w2_b": shape}) == f"w2_a [3, 2] and w2_b {list(shape)} cannot be multiplied"
