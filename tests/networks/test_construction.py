"""What no network can be made of: each is an error that names the argument."""

import math

import pytest
import torch
from torch import nn

from networks import adapt, loha, lokr, lora, lora_krea2, lora_wan, oft
from networks.network.network import LoRANetwork


def create(model, dim=4, alpha=2.0, **options):
    return lora.create_network(["Block"], "lora_unet", 1.0, dim, alpha, None, None, model, **options)


@pytest.mark.parametrize("alpha", [math.nan, math.inf, -math.inf, -1, -1.0, "half", True])
def test_an_alpha_that_is_no_scale_is_accepted(make_model, alpha):
    with pytest.raises(ValueError, match="network_alpha="):
        create(make_model(), alpha=alpha)
    with pytest.raises(ValueError, match="network_alpha="):
        LoRANetwork(["Block"], "lora_unet", None, make_model(), alpha=alpha)
    with pytest.raises(ValueError, match="conv_alpha="):
        create(make_model(), conv_alpha=alpha)


@pytest.mark.parametrize("alpha", [None, 0, 0.0, 1, 1e-3, 128.0, torch.tensor(3.0)])
def test_every_alpha_that_is_a_scale_is_taken(make_model, alpha):
    scale = float(alpha) / 4 if alpha else 1.0
    scales = [module.scale for module in create(make_model(), alpha=alpha).unet_loras]
    assert scales == pytest.approx([scale] * len(scales))


def test_a_negative_alpha_of_a_file_stands(make_model):
    weights = create(make_model()).state_dict()
    weights |= {key: torch.tensor(-2.0) for key in weights if key.endswith(".alpha")}
    network = lora.create_arch_network_from_weights(1.0, weights, unet=make_model())
    assert {module.scale for module in network.unet_loras} == {-0.5}


@pytest.mark.parametrize("dim", [0, -4, 2.5, "many", True])
def test_a_rank_that_is_none_names_network_dim(make_model, dim):
    with pytest.raises(ValueError, match="network_dim="):
        create(make_model(), dim=dim)


@pytest.mark.parametrize("kind", ["create_network", "trainer", "adapt"])
def test_rank_and_alpha_as_text_are_numbers(make_model, kind):
    calls = {
        "create_network": lambda dim, alpha: create(make_model(), dim=dim, alpha=alpha),
        "trainer": lambda dim, alpha: lora_krea2.create_arch_network(1.0, dim, alpha, None, None, make_model()),
        "adapt": lambda dim, alpha: adapt(make_model(), rank=dim, alpha=alpha),
    }
    network = calls[kind]("4", " 2 ")
    assert {(module.lora_dim, module.scale) for module in network.unet_loras} == {(4, 0.5)}
    assert (network.lora_dim, network.alpha) == (4, 2.0)
    name = "rank" if kind == "adapt" else "network_dim"
    with pytest.raises(ValueError, match=f"^{name}='four': a whole number"):
        calls[kind]("four", 1.0)


# Options that give a million ranks, and what the error has to begin with.
MILLION = {
    "network_dim": ({"dim": 1_000_000}, "network_dim: a rank of 1000000 is more than any of its layers holds"),
    "conv_dim": ({"conv_dim": "1000000"}, "conv_dim: a rank of 1000000"),
    "rank_pattern": ({"rank_pattern": "{'.*to_q': 1000000}"}, r"rank_pattern '\.\*to_q': a rank of 1000000"),
    "pissa": ({"dim": 1_000_000, "init_lora_weights": "pissa", "enable_conv2d": "0"}, "network_dim: a rank of"),
}


@pytest.mark.parametrize("case", MILLION)
def test_a_rank_beyond_all_layers_is_accepted(make_model, case):
    options, says = MILLION[case]
    with pytest.raises(ValueError, match=f"^{says}"):
        create(make_model(), **options)


def test_a_rank_beyond_all_layers_of_loha_is_accepted(make_model):
    model = nn.Sequential(nn.Linear(8, 8))
    with pytest.raises(ValueError, match="network_dim: a rank of 1000000"):
        loha.create_arch_network(1.0, 1_000_000, 1.0, None, None, model, architecture="krea2")
    # A large rank is how the factors of a LoKr become whole, and what divides the outputs of an OFT.
    for module in (lokr, oft):
        assert module.create_arch_network(1.0, 1_000_000, 1.0, None, None, model, architecture="krea2").unet_loras


def test_a_rank_that_one_layer_holds_is_for_smaller_ones_too():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4096, 2048), nn.Linear(2048, 1))
    network = lora.create_network(None, "lora_unet", 1.0, 2048, 1.0, None, None, model)
    assert [module.lora_dim for module in network.unet_loras] == [2048, 2048]
    with pytest.raises(ValueError, match=r"network_dim: a rank of 2049 .* use 2048 or less"):
        lora.create_network(None, "lora_unet", 1.0, 2049, 1.0, None, None, model)


def test_a_rank_that_people_use_is_for_any_small_model(make_model):
    assert create(make_model(), dim=1024).unet_loras[0].lora_dim == 1024


def test_no_model_is_an_attribute_error():
    for make in (
        lambda: lora_wan.create_arch_network(1.0, 4, 1.0, None, None, None),
        lambda: loha.create_arch_network(1.0, 4, 1.0, None, None, None),
        lambda: lora.create_network(1.0, 4, 1.0, None, None, None),
        lambda: lora.create_network(["Block"], "lora_unet", 1.0, 4, 1.0, None, None, None),
        lambda: LoRANetwork(["Block"], "lora_unet", None, None),
    ):
        with pytest.raises(ValueError, match="unet is None; pass the model to adapt"):
            make()
    for make in (
        lambda: lora_wan.create_arch_network_from_weights(1.0, {}, unet=None),
        lambda: loha.create_network_from_weights(1.0, None, None, None, None, weights_sd={}),
    ):
        with pytest.raises(ValueError, match="unet is None; pass the model that the weights are for"):
            make()
