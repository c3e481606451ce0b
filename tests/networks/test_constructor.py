"""LoRANetwork as musubi-tuner's own programs construct it, and as the functions here do."""

import pytest
import torch

from networks import lora
from networks.modules.lora_module import LoRAModule
from networks.modules.pissa import PissaModule
from networks.network.network import LoRANetwork
from networks.network_args import NetworkArguments, parse

# The values of `network_args` by name, as a trainer passes them; none is what the network has without it.
OPTIONS = {
    "use_rslora": "True",
    "init_lora_weights": "orthogonal",
    "loraplus_lr_ratio": "4",
    "loraplus_unet_lr_ratio": "4",
    "loraplus_text_encoder_lr_ratio": "4",
    "ggpo_sigma": "0.1",
    "ggpo_beta": "0.2",
    "rank_dropout": "0.2",
    "module_dropout": "0.3",
    "conv_dim": "6",
    "conv_alpha": "5",
    "rank_pattern": "{'.*to_q': 8}",
    "alpha_pattern": "{'.*to_out': 7.0}",
    "lr_pattern": "{'.*to_out': 5e-5}",
    "split_dims": r"{'.*img_mod': [4, 8]}",
    "exclude_patterns": "['blocks.1.*']",
    "include_patterns": "['blocks.1.point']",
    "save_format": "standard",
    "dropout": "0.1",
    "use_tlora": "True",
    "tlora_min_rank": "2",
    "tlora_alpha": "2",
}
# What says more of another option, which has to be there.
NEEDED = {
    "include_patterns": "exclude_patterns",
    "tlora_min_rank": "use_tlora",
    "tlora_alpha": "use_tlora",
    "ggpo_sigma": "ggpo_beta",
    "ggpo_beta": "ggpo_sigma",
}


def facts(network):
    modules = [
        (
            lora.lora_name,
            type(lora),
            lora.multiplier,
            lora.lora_dim,
            float(lora.alpha),
            lora.scale,
            lora.dropout,
            lora.rank_dropout,
            lora.module_dropout,
            lora.split_dims,
            lora.use_dora,
            lora.perturbation and (lora.perturbation.sigma, lora.perturbation.beta),
        )
        for lora in network.unet_loras
    ]
    mask = network.rank_mask and (network.rank_mask.min_rank, network.rank_mask.alpha)
    more = (mask, network.init_lora_weights, network.rank_pattern, network.alpha_pattern, network.option_metadata)
    ratios = (network.loraplus_lr_ratio, network.loraplus_unet_lr_ratio, network.loraplus_text_encoder_lr_ratio)
    rates = (ratios, network.lr_pattern)
    return modules, more, network.save_format, rates, sorted(network.state_dict())


def test_musubi_s_arguments_in_their_order(make_model):
    network = LoRANetwork(
        ["Block"], "lora_x", None, make_model(), 0.5, 2, 3.0, 0.1, 0.2, 0.3, 6, 5.0, LoRAModule,
        {"use_rslora": True}, None, None, ["blocks.1.*"], ["blocks.1.point"], True,
    )  # fmt: skip
    modules = {module.lora_name: module for module in network.unet_loras}
    leaves = ("attn_to_q", "attn_to_out", "img_mod", "conv", "point")
    assert set(modules) == {
        *(f"lora_x_blocks_0_{leaf}" for leaf in leaves),
        "lora_x_blocks_1_point",
    }
    linear, conv = modules["lora_x_blocks_0_attn_to_q"], modules["lora_x_blocks_0_conv"]
    assert (linear.multiplier, linear.lora_dim, linear.scale) == (0.5, 2, pytest.approx(3 / 2**0.5))
    assert (conv.lora_dim, conv.scale) == (6, pytest.approx(5 / 6**0.5))
    assert (linear.dropout, linear.rank_dropout, linear.module_dropout) == (0.1, 0.2, 0.3)


def test_musubi_s_ranks_and_alphas_by_name(make_model):
    dims, alphas = {"lora_unet_embed": 3, "lora_unet_blocks_1_conv": 2}, {"lora_unet_embed": 6.0}
    network = LoRANetwork(None, "lora_unet", None, make_model(), modules_dim=dims, modules_alpha=alphas)
    assert [(module.lora_name, module.lora_dim, module.scale) for module in network.unet_loras] == [
        ("lora_unet_embed", 3, 2.0),
        ("lora_unet_blocks_1_conv", 2, 1.0),
    ]
    assert network.option_metadata == {}


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_has_one_effect_in_every_way_to_say_it(name, make_model):
    def network(**keywords):
        torch.manual_seed(0)
        return LoRANetwork(["Block"], "lora_unet", None, make_model(), 1.0, 4, 2.0, **keywords)

    needed = {NEEDED[name]: OPTIONS[NEEDED[name]]} if name in NEEDED else {}
    given = {**needed, name: OPTIONS[name]}
    read = parse(given)
    keywords = {"conv_lora_dim" if key == "conv_dim" else key: value for key, value in given.items()}
    made = lora.create_network(["Block"], "lora_unet", 1.0, 4, 2.0, None, None, make_model(), **given)
    assert facts(network(options=read)) == facts(network(**keywords)) == facts(made) != facts(network(**needed))


def test_every_option_is_in_that_test():
    """A new one is to have an effect as well; `layers` are those of test_layer_options.py and test_block_options.py."""
    elsewhere = {"layers", "use_dora", "dora_conv", "enable_conv2d", "split_qkv", "verbose", "given", "extra"}
    assert set(NetworkArguments.__slots__) - elsewhere == {
        "neuron_dropout" if name == "dropout" else name for name in OPTIONS
    }


def test_a_keyword_that_is_no_option_names_the_nearest(make_model):
    with pytest.raises(ValueError, match="did you mean 'use_dora'"):
        LoRANetwork(["Block"], "lora_unet", None, make_model(), use_dor=True)


def test_what_weights_settle_no_option_changes(make_model):
    weights = lora.create_network(["Block"], "lora_unet", 1.0, 4, 2.0, None, None, make_model()).state_dict()
    settled = ("conv_dim", "conv_alpha", "rank_pattern", "alpha_pattern", "exclude_patterns", "include_patterns")
    options = {name: OPTIONS[name] for name in settled} | {"init_lora_weights": "pissa", "enable_conv2d": "False"}

    def network(**options):
        return lora.create_arch_network_from_weights(1.0, weights, unet=make_model(), **options)

    plain = network()
    assert all(facts(network(**{name: value})) == facts(plain) for name, value in options.items())
    assert facts(network(**options)) == facts(plain)
    assert {type(module) for module in plain.unet_loras} == {LoRAModule}


def test_an_option_that_is_taken_out_is_as_where_it_is_not_given():
    given = parse({name: value for name, value in OPTIONS.items() if name != "dropout"})
    assert given.without(*(name for name in OPTIONS if name != "dropout")) == parse({})
    assert parse({"use_dora": "1", "conv_dim": "2"}).without("conv_dim") == parse({"use_dora": "1"})


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"use_dora": True}, "cannot be combined with use_dora"),
        ({"use_dora": True, "dropout": 0.1}, "cannot be combined with use_dora"),
        ({"split_dims": [4, 8]}, "cannot be combined with split_dims"),
    ],
)
def test_a_pissa_module_has_neither_magnitude_nor_slices(keywords, message):
    with pytest.raises(ValueError, match=message):
        PissaModule("layer", torch.nn.Linear(6, 12), 1.0, 2, 1.0, **keywords)
    with pytest.raises(ValueError, match="cannot be combined with split_dims"):
        PissaModule("layer", torch.nn.Linear(6, 12), 1.0, 2, 1.0, None, None, None, [4, 8])


def test_what_is_left_out_is_as_musubi_has_it(make_model):
    network = LoRANetwork(["Block"], "lora_unet", None, make_model())
    assert {(module.lora_dim, module.scale, module.multiplier) for module in network.unet_loras} == {(4, 0.25, 1.0)}
    assert {module.dropout for module in network.unet_loras} == {0.0}
    assert (network.lora_dim, network.alpha, network.loraplus_lr_ratio, network.save_format) == (4, 1, None, "native")
