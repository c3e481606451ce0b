"""Networks of models with text encoders, in the calls of sd-scripts, whose own networks gave the expected layers."""

import copy
import hashlib
from types import SimpleNamespace

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from networks import lora_flux, lora_sd3, lora_sd15, lora_sdxl

CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
SD15 = {"block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768, "attention_head_dim": 8}
SDXL = {
    "block_out_channels": (320, 640, 1280), "cross_attention_dim": 2048, "attention_head_dim": (5, 10, 20),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "use_linear_projection": True,
    "transformer_layers_per_block": (1, 2, 10), "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
TINY_UNET = {
    "block_out_channels": (32, 64), "layers_per_block": 1, "cross_attention_dim": 32, "attention_head_dim": 8,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 8,
}  # fmt: skip
TINY_CLIP = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def digest(loras):
    """The hash of the sorted names, in which transformers 4 has `text_model_` and 5 has not."""
    names = sorted(lora.lora_name.replace("text_model_", "") for lora in loras)
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("options", "count", "names"),
    [({}, 192, "bdfc29d0bf3d9ac6"), ({"conv_dim": "4", "conv_alpha": "1"}, 278, "620b9a8905915e25")],
)
def test_the_layers_of_sd15_are_those_of_sd_scripts(options, count, names):
    with torch.device("meta"):
        unet, encoder = UNet2DConditionModel(**SD15), CLIPTextModel(CLIPTextConfig(**CLIP_L))
    network = lora_sd15.create_network(1.0, 4, 2.0, None, encoder, unet, **options)
    assert (len(network.unet_loras), digest(network.unet_loras)) == (count, names)
    assert (len(network.text_encoder_loras), digest(network.text_encoder_loras)) == (72, "3c024f61a838ddae")


@pytest.mark.slow
@pytest.mark.parametrize(("options", "count"), [({}, 722), ({"conv_dim": "4"}, 788)])
def test_the_layers_of_sdxl_are_those_of_sd_scripts(options, count):
    """sd-scripts has a UNet of its own, with the original names; the text encoders are those of transformers."""
    with torch.device("meta"):
        encoders = [
            CLIPTextModel(CLIPTextConfig(**CLIP_L)),
            CLIPTextModelWithProjection(CLIPTextConfig(**CLIP_G, projection_dim=1280)),
        ]
        unet = UNet2DConditionModel(**SDXL)
    network = lora_sdxl.create_network(1.0, 4, 2.0, None, encoders, unet, **options)
    assert len(network.unet_loras) == count
    assert (len(network.text_encoder_loras), digest(network.text_encoder_loras)) == (264, "8aec3de41934f0ed")


@pytest.fixture
def unet():
    torch.manual_seed(0)
    return UNet2DConditionModel(**TINY_UNET).requires_grad_(False)


@pytest.fixture
def encoder():
    torch.manual_seed(1)
    config = CLIPTextConfig(**TINY_CLIP, vocab_size=50, max_position_embeddings=16)
    return CLIPTextModel(config).requires_grad_(False)


def kernels(network):
    return sorted({tuple(lora.lora_down.weight.shape[2:]) for lora in network.unet_loras})


def test_conv_dim_takes_in_the_blocks_of_convolutions(unet, encoder):
    network = lora_sd15.create_network(1.0, 4, 2.0, None, encoder, unet, conv_dim="2")
    ranks = {tuple(lora.lora_down.weight.shape[2:]): lora.lora_dim for lora in network.unet_loras}
    assert ranks == {(): 4, (1, 1): 4, (3, 3): 2}
    assert any("resnets" in lora.lora_name and "time_emb" in lora.lora_name for lora in network.unet_loras)


def test_without_1x1_only_kernels_of_the_blocks_of_convolutions_come_in(unet, encoder):
    network = lora_sd15.create_network(1.0, 4, 2.0, None, encoder, unet, conv_dim="2", conv_dim_1x1="False")
    of_blocks = [lora for lora in network.unet_loras if "resnets" in lora.lora_name or "sampler" in lora.lora_name]
    assert {tuple(lora.lora_down.weight.shape[2:]) for lora in of_blocks} == {(3, 3)}
    # The projections of the attention are no such blocks.
    assert (1, 1) in kernels(network)


def groups_of(network, rates):
    groups, names = network.prepare_optimizer_params_with_multiple_te_lrs(*rates)
    return dict(zip(names, (group["lr"] for group in groups), strict=True))


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        (([2e-3, 3e-3], 1e-3, 5e-4), {"textencoder 1": 2e-3, "textencoder 2": 3e-3, "unet": 1e-3}),
        (([2e-3], 1e-3, 5e-4), {"textencoder 1": 2e-3, "textencoder 2": 2e-3, "unet": 1e-3}),
        ((2e-3, None, 5e-4), {"textencoder 1": 2e-3, "textencoder 2": 2e-3, "unet": 5e-4}),
        ((None, 1e-3, 5e-4), {"textencoder 1": 5e-4, "textencoder 2": 5e-4, "unet": 1e-3}),
        (([0, 3e-3], 1e-3, 5e-4), {"textencoder 2": 3e-3, "unet": 1e-3}),
    ],
)
def test_each_text_encoder_has_its_learning_rate(rates, expected, unet, encoder):
    network = lora_sdxl.create_network(1.0, 4, 2.0, None, [encoder, encoder], unet)
    assert groups_of(network, rates) == expected


def test_an_encoder_without_a_rate_is_frozen(unet, encoder):
    network = lora_sdxl.create_network(1.0, 4, 2.0, None, [encoder, encoder], unet)
    network.prepare_optimizer_params_with_multiple_te_lrs([0, 1e-3], 1e-3, 1e-3)
    trained = {lora.lora_name[:8] for lora in network.loras if lora.lora_down.weight.requires_grad}
    assert trained == {"lora_te2", "lora_une"}


def test_the_change_of_a_text_encoder_reaches_its_output(unet, encoder):
    ids = torch.arange(8)[None]
    before = encoder(ids)[0]
    network = lora_sd15.create_network(1.0, 4, 2.0, None, encoder, unet)
    network.apply_to(encoder, unet, True, True)
    for lora in network.text_encoder_loras:
        nn.init.ones_(lora.lora_up.weight)
    assert not torch.equal(encoder(ids)[0], before)
    network.set_multiplier(0.0)
    assert torch.equal(encoder(ids)[0], before)
    network.set_multiplier(1.0)
    network.set_enabled(False)
    assert torch.equal(encoder(ids)[0], before)
    network.set_enabled(True)
    network.remove()
    assert torch.equal(encoder(ids)[0], before)


def test_a_seed_draws_text_encoders_first(unet, encoder):
    torch.manual_seed(3)
    network = lora_sd15.create_network(1.0, 4, 2.0, None, encoder, unet)
    torch.manual_seed(3)
    # kohya's order: the factors as torch starts them, then the first one again.
    first, _ = nn.Linear(32, 4, bias=False), nn.Linear(4, 32, bias=False)
    nn.init.kaiming_uniform_(first.weight, a=5**0.5)
    assert torch.equal(network.text_encoder_loras[0].lora_down.weight, first.weight)


def saved(network, path):
    for number, lora in enumerate(network.loras):
        nn.init.constant_(lora.lora_up.weight, number + 1.0)
    network.save_weights(path, None, {})
    return load_file(path)


def test_a_file_has_both_parts_and_loads_again(unet, encoder, tmp_path):
    encoders = [encoder, copy.deepcopy(encoder)]
    network = lora_sdxl.create_network(1.0, 4, 2.0, None, encoders, unet)
    network.apply_to(encoders, unet)
    tensors = saved(network, tmp_path / "both.safetensors")
    network.remove()
    assert {key.split("_")[1] for key in tensors} == {"te1", "te2", "unet"}
    other = lora_sdxl.create_network(1.0, 4, 2.0, None, encoders, unet)
    other.apply_to(encoders, unet)
    result = other.load_weights(tmp_path / "both.safetensors")
    other.remove()
    assert result.missing_keys == [] == result.unexpected_keys
    assert all(torch.equal(other.state_dict()[key], tensor) for key, tensor in tensors.items())


def test_text_encoders_of_a_file_are_left_out_where_they_are_not_trained(unet, encoder, tmp_path, caplog):
    network = lora_sd15.create_network(1.0, 4, 2.0, None, encoder, unet)
    saved(network, tmp_path / "both.safetensors")
    other = lora_sd15.create_network(1.0, 4, 2.0, None, encoder, unet)
    other.apply_to(encoder, unet, False, True)
    with caplog.at_level("INFO"):
        other.load_weights(tmp_path / "both.safetensors")
    other.remove()
    assert "12 modules of text encoders are left out" in caplog.text
    assert other.text_encoder_loras == []
    assert not any(key.startswith("lora_te") for key in other.state_dict())


def test_a_text_encoder_alone_is_trained(unet, encoder):
    network = lora_sd15.create_network(1.0, 4, 2.0, None, encoder, unet)
    network.apply_to(encoder, unet, True, False)
    network.remove()
    assert network.unet_loras == []
    assert {key.split("_")[1] for key in network.state_dict()} == {"te"}


def test_weights_of_both_parts_are_merged(unet, encoder, tmp_path):
    network = lora_sd15.create_network(1.0, 4, 2.0, None, encoder, unet)
    saved(network, tmp_path / "both.safetensors")
    ids = torch.arange(8)[None]
    network.apply_to(encoder, unet)
    expected = encoder(ids)[0]
    network.remove()
    merging, weights = lora_sd15.create_network_from_weights(
        1.0, tmp_path / "both.safetensors", None, encoder, unet, for_inference=True
    )
    merging.merge_to(encoder, unet, weights, torch.float32, "cpu")
    torch.testing.assert_close(encoder(ids)[0], expected, rtol=1e-4, atol=1e-5)


def test_several_rates_are_refused_for_an_optimizer_of_one(unet, encoder):
    network = lora_sd15.create_network(1.0, 4, 2.0, None, encoder, unet)
    args = SimpleNamespace(optimizer_type="Prodigy", learning_rate=1.0, unet_lr=1.0, text_encoder_lr=[0.5])
    with pytest.raises(ValueError, match="text_encoder_lr: Prodigy finds one learning rate"):
        network.prepare_network(args)
    args.network_train_unet_only = True
    network.prepare_network(args)


class SingleDiTBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = nn.Linear(4, 4)


class T5Attention(SingleDiTBlock):
    pass


class CLIPMLP(SingleDiTBlock):
    pass


@pytest.mark.parametrize(
    ("given", "names"), [({}, ["lora_te1_attn", "lora_te2_attn"]), ({"train_t5xxl": "True"}, None)]
)
def test_t5_is_adapted_where_the_option_says_so(given, names):
    model = nn.ModuleList([SingleDiTBlock()])
    network = lora_sd3.create_network(1.0, 2, 1.0, None, [CLIPMLP(), CLIPMLP(), T5Attention()], model, **given)
    expected = ["lora_te1_attn", "lora_te2_attn", *(["lora_te3_attn"] if given else [])]
    assert [lora.lora_name for lora in network.text_encoder_loras] == expected
    assert network.train_t5xxl is bool(given)


class DoubleStreamBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.img_attn, self.img_mlp = nn.Linear(8, 8), nn.Linear(8, 8)


class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.double_blocks = nn.ModuleList([DoubleStreamBlock(), DoubleStreamBlock()])


def test_expressions_of_sd_scripts_choose_ranks_in_the_names_of_modules():
    """networks/lora_flux.py of sd-scripts searches them in `lora_unet_…`, the first match first; 0 leaves out."""
    network = lora_flux.create_network(
        1.0, 4, 1.0, None, None, Blocks(), network_reg_dims="blocks_0_img_mlp=0,mlp=2", network_reg_lrs="attn$=1e-5"
    )
    assert {lora.lora_name: lora.lora_dim for lora in network.unet_loras} == {
        "lora_unet_double_blocks_0_img_attn": 4,
        "lora_unet_double_blocks_1_img_attn": 4,
        "lora_unet_double_blocks_1_img_mlp": 2,
    }
    groups, names = network.prepare_optimizer_params(1e-3)
    assert {name: (group["lr"], len(group["params"])) for name, group in zip(names, groups, strict=True)} == {
        "unet": (1e-3, 2),
        "unet 1e-05": (1e-5, 4),
    }


@pytest.mark.parametrize("value", ["mlp", "mlp=many", "mlp=-1", "(=4"])
def test_an_expression_that_cannot_be_read_is_an_error(value):
    with pytest.raises(ValueError, match="network_reg_dims"):
        lora_flux.create_network(1.0, 4, 1.0, None, None, Blocks(), network_reg_dims=value)
