"""sd-scripts' options for blocks of a UNet, held to formulas and to a table of its blocks."""

import math
from types import SimpleNamespace

import pytest
from torch import nn

from networks import lora_sd15, lora_sdxl, oft

RATE = 1e-3


class Transformer2DModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj_in = nn.Linear(4, 4)


class ResnetBlock2D(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.time_emb_proj = nn.Conv2d(4, 4, 3), nn.Linear(4, 4)


class Downsample2D(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3)


class Upsample2D(Downsample2D):
    pass


def tree(paths):
    """A model that has each of the modules at its dotted path."""
    root = nn.Module()
    for path, leaf in paths.items():
        *parents, name = path.split(".")
        at = root
        for parent in parents:
            if not hasattr(at, parent):
                at.add_module(parent, nn.Module())
            at = getattr(at, parent)
        at.add_module(name, leaf)
    return root


def sides():
    """{path: number of its block} of a UNet of diffusers with four levels, as get_block_index of sd-scripts counts."""
    found = {}
    for level in range(4):
        for at in range(2):
            found[f"down_blocks.{level}.resnets.{at}"] = 1 + 3 * level + at
        for at in range(3):
            found[f"up_blocks.{level}.resnets.{at}"] = 13 + 3 * level + at
    found |= {f"down_blocks.{level}.attentions.{at}": 1 + 3 * level + at for level in range(3) for at in range(2)}
    found |= {f"up_blocks.{level}.attentions.{at}": 13 + 3 * level + at for level in (1, 2, 3) for at in range(3)}
    found |= {f"down_blocks.{level}.downsamplers.0": 3 + 3 * level for level in range(3)}
    found |= {f"up_blocks.{level}.upsamplers.0": 15 + 3 * level for level in range(3)}
    found |= {f"mid_block.{name}": 12 for name in ("resnets.0", "attentions.0", "resnets.1")}
    return found


KINDS = {
    "attentions": Transformer2DModel,
    "resnets": ResnetBlock2D,
    "downsamplers": Downsample2D,
    "upsamplers": Upsample2D,
}
SD = sides()
SDXL = {
    **{f"input_blocks.{at}.1": 1 + at for at in (4, 5, 7, 8)},
    "middle_block.1": 11,
    **{f"output_blocks.{at}.1": 13 + at for at in range(6)},
}
SDXL_OF_DIFFUSERS = {
    **{f"down_blocks.{level}.attentions.{at}": 2 + 3 * level + at for level in (1, 2) for at in range(2)},
    "mid_block.attentions.0": 11,
    **{f"up_blocks.{level}.attentions.{at}": 13 + 3 * level + at for level in (0, 1) for at in range(3)},
}


def sd(**options):
    model = tree({path: KINDS[path.split(".")[-2]]() for path in SD})
    return lora_sd15.create_network(1.0, 4, 2.0, None, None, model, **options)


def numbered(numbers):
    return ",".join(map(str, numbers))


def modules(network):
    """{dotted path of the block: [(layer, rank, alpha), …]}."""
    found = {}
    for lora in network.unet_loras:
        path = network._paths[lora.lora_name]
        block, _, layer = path.rpartition(".")
        found.setdefault(block, []).append((layer, lora.lora_dim, float(lora.alpha)))
    return found


def rates(network):
    """{description: rate} of the parameter groups."""
    groups, descriptions = network.prepare_optimizer_params(RATE)
    return {name: group["lr"] for name, group in zip(descriptions, groups, strict=True)}


def test_each_block_has_its_rank_and_alpha_and_0_leaves_it_out():
    dims, alphas = [(3 * at) % 5 for at in range(25)], [at / 2 + 1 for at in range(25)]
    network = sd(block_dims=numbered(dims), block_alphas=numbered(alphas))
    assert modules(network) == {
        path: [("proj_in", dims[at], alphas[at])] for path, at in SD.items() if ".attentions." in path and dims[at]
    }


def test_convolutions_have_ranks_of_their_own():
    dims, of_convolutions = [(at % 3) for at in range(25)], [(at + 1) % 4 for at in range(25)]
    network = sd(
        block_dims=numbered(dims), conv_block_dims=numbered(of_convolutions), conv_block_alphas=numbered([3] * 25)
    )
    linear, conv = {"attentions": ["proj_in"], "resnets": ["time_emb_proj"]}, {"resnets": ["conv1"]}
    conv |= {"downsamplers": ["conv"], "upsamplers": ["conv"]}
    expected = {}
    for path, at in SD.items():
        kind = path.split(".")[-2]
        own = [(layer, of_convolutions[at], 3.0) for layer in conv.get(kind, ()) if of_convolutions[at]]
        own += [(layer, dims[at], 2.0) for layer in linear.get(kind, ()) if dims[at]]
        if own:
            expected[path] = own
    assert modules(network) == expected


@pytest.mark.parametrize("blocks", [SDXL, SDXL_OF_DIFFUSERS], ids=["original", "diffusers"])
def test_the_blocks_of_sdxl_in_both_layouts(blocks):
    model = tree({path: Transformer2DModel() for path in blocks})
    network = lora_sdxl.create_network(1.0, 4, 2.0, None, None, model, block_dims=numbered(range(1, 24)))
    assert modules(network) == {path: [("proj_in", 1 + at, 2.0)] for path, at in blocks.items()}


PRESETS = {
    "sine": lambda x: math.sin(x * math.pi / 2),
    "cosine": lambda x: math.cos(x * math.pi / 2),
    "linear": lambda x: x,
    "reverse_linear": lambda x: 1 - x,
    "zeros": lambda x: 0.0,
}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_its_formula_from_the_first_block_to_the_last(preset):
    """x goes from 0 to 1 over the 12 blocks of a side; blocks 0 of both sides and the weight 0 have no group."""
    found = rates(sd(down_lr_weight=preset, up_lr_weight=f"{preset}+0.25"))
    down = {at: PRESETS[preset](at / 11) for at in range(12)}
    up = {13 + at: PRESETS[preset](at / 11) + 0.25 for at in range(12)}
    held = {at for path, at in SD.items() if ".attentions." in path}
    expected = {at: weight for at, weight in {**down, 12: 1.0, **up}.items() if at in held and weight > 1e-12}
    assert found == pytest.approx({f"unet_block{at}": RATE * weight for at, weight in expected.items()})


def test_numbers_are_weights_and_the_groups_are_in_the_order_of_the_model():
    down = "1,,.5,.5,.2,.5,.5,.25,.5,.5,.5,.5"
    found = rates(sd(down_lr_weight=down, mid_lr_weight="2", block_lr_zero_threshold="0.2", loraplus_lr_ratio="4"))
    weights = {2: 0.5, 5: 0.5, 7: 0.25, 8: 0.5, 12: 2.0, **dict.fromkeys(range(16, 25), 1.0)}
    expected = {}
    for at, weight in weights.items():
        expected |= {f"unet_block{at}": RATE * weight, f"unet_block{at} plus": 4 * RATE * weight}
    assert found == pytest.approx(expected)
    assert list(found)[:4] == ["unet_block2", "unet_block2 plus", "unet_block5", "unet_block5 plus"]


@pytest.mark.parametrize(("given", "change"), [([0.5] * 10, "rest is 1"), ([0.5] * 13, "rest is ignored")])
def test_weights_of_another_number_are_filled_or_cut_with_a_warning(given, change, caplog):
    found = rates(sd(up_lr_weight=numbered(given)))
    assert change in caplog.text
    assert found["unet_block22"] == pytest.approx(RATE / 2)
    assert found["unet_block24"] == pytest.approx(RATE if len(given) == 10 else RATE / 2)


def test_weights_count_for_the_network_of_a_file():
    first = sd()
    model = tree({path: KINDS[path.split(".")[-2]]() for path in SD})
    network, _ = lora_sd15.create_network_from_weights(
        1.0, None, None, None, model, weights_sd=first.state_dict(), down_lr_weight="zeros", mid_lr_weight="0.5"
    )
    found = rates(network)
    assert found == pytest.approx({"unet_block12": RATE / 2, **{f"unet_block{at}": RATE for at in range(16, 25)}})
    assert not any(lora.lora_up.weight.requires_grad for lora in network.unet_loras if "down_blocks" in lora.lora_name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_dims": "4,4"}, "block_dims: 25 numbers were expected, one for each block, not 2"),
        ({"block_dims": numbered([4] * 24 + ["x"])}, "block_dims='x'"),
        ({"down_lr_weight": "cosin"}, "down_lr_weight='cosin': 12 numbers were expected, or one of cosine, linear"),
        ({"mid_lr_weight": "sine"}, "mid_lr_weight='sine': a number was expected"),
        ({"block_alphas": numbered([1] * 25)}, "block_alphas has no meaning without block_dims or down_lr_weight"),
        ({"conv_block_alphas": numbered([1] * 25)}, "conv_block_alphas has no meaning without conv_block_dims"),
        ({"block_lr_zero_threshold": "0.1"}, "block_lr_zero_threshold has no meaning without down_lr_weight"),
    ],
)
def test_an_option_that_cannot_be_used_is_an_error(options, message):
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        sd(**options)


def test_alphas_without_an_effect_are_named(caplog):
    caplog.set_level("INFO")
    model = tree({path: KINDS[path.split(".")[-2]]() for path in SD})
    oft.create_network(
        1.0,
        4,
        None,
        None,
        None,
        model,
        architecture="sd15",
        block_dims=numbered([4] * 25),
        block_alphas=numbered([1] * 25),
    )
    assert "block_alphas: no effect, as OFT has no scale" in caplog.text


def test_several_rates_are_refused_for_an_optimizer_of_one():
    network = sd(down_lr_weight="cosine")
    args = SimpleNamespace(optimizer_type="Prodigy", learning_rate=1.0, unet_lr=1.0)
    with pytest.raises(ValueError, match="down_lr_weight and its like: Prodigy finds one learning rate"):
        network.prepare_network(args)
