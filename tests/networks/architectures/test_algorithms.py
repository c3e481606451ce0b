"""LoHa, LoKr and OFT on every architecture, which they find themselves."""

import logging

import pytest
import torch
from architecture_models import MODELS, distance, leaves, make, outputs, train
from safetensors.torch import load_file
from torch import nn

from lora_inspect.architectures.trained import by_option, family_of, one_to_one, original_path
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.reading.adapter import read_adapter
from networks import loha, lokr, oft
from networks.network.targets import named_leaves

ALGORITHMS = {"loha": loha, "lokr": lokr, "oft": oft}
FUSED = ("flux", "flux2", "hunyuan_video", "ideogram4")


def create(algorithm, model, rank=2, **options):
    network = ALGORITHMS[algorithm].create_arch_network(
        1.0, rank, 1.0, None, None, model, neuron_dropout=None, **options
    )
    network.apply_to(None, model, apply_text_encoder=False, apply_unet=True)
    return network


@pytest.mark.parametrize(("name", "layout"), MODELS)
def test_a_model_tells_its_architecture(name, layout):
    model = make(name, layout)
    classes = {type(module).__name__ for module in model.modules()}
    assert family_of(classes, [path for path, _ in named_leaves(model)]).name == name


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(("name", "layout"), MODELS)
@pytest.mark.slow
def test_what_is_saved_merges_to_what_was_trained(name, layout, algorithm, tmp_path):
    model = make(name, layout)
    network = create(algorithm, model)
    paths = {id(layer): path for path, layer in model.named_modules()}
    assert {paths[id(lora.org_module)] for lora in network.unet_loras} == leaves(name, layout, model)
    train(network)
    runtime = outputs(network.eval(), model)
    file = str(tmp_path / "adapter.safetensors")
    network.save_weights(file, None, None)
    weights = load_file(file)
    fresh = make(name, layout)
    merging = ALGORITHMS[algorithm].create_arch_network_from_weights(1.0, weights, unet=fresh, for_inference=True)
    base = outputs(merging, fresh)
    merging.merge_to(None, fresh, weights, safe_merge=True)
    assert distance(outputs(merging, fresh), runtime) < 1e-5 < 1e-4 < distance(base, runtime)
    prefix = "lycoris_" if layout == "diffusers" and name in FUSED else "lora_unet_"
    assert all(key.startswith(prefix) for key in weights)


@pytest.mark.slow
@pytest.mark.parametrize("save_format", ["native", "standard"])
@pytest.mark.parametrize("algorithm", ["loha", "lokr"])
@pytest.mark.parametrize(("name", "layout"), [("flux", "diffusers"), ("wan", "original"), ("wan", "diffusers")])
def test_dora_is_saved_for_lycoris_and_merged_and_trained_further(name, layout, algorithm, save_format, tmp_path):
    model = make(name, layout)
    network = create(algorithm, model, use_dora="True", save_format=save_format)
    assert all(lora.use_dora for lora in network.unet_loras)
    train(network)
    with torch.no_grad():
        for lora in network.unet_loras:
            lora.dora_layer.weight.mul_(0.5 + torch.rand_like(lora.dora_layer.weight))
    runtime = outputs(network.eval(), model)
    file = str(tmp_path / "adapter.safetensors")
    network.save_weights(file, None, None)
    weights, resumed, fresh = load_file(file), make(name, layout), make(name, layout)
    assert sum(key.endswith(".dora_scale") for key in weights) == len(network.unet_loras)
    again = create(algorithm, resumed, use_dora="True")
    again.load_weights(file)
    assert distance(outputs(again.eval(), resumed), runtime) == 0
    merging = ALGORITHMS[algorithm].create_arch_network_from_weights(1.0, weights, unet=fresh, for_inference=True)
    merging.merge_to(None, fresh, weights, safe_merge=True)
    assert distance(outputs(merging, fresh), runtime) < 1e-5
    adapter = read_adapter(open_checkpoint(file))
    assert not adapter.unclaimed
    assert {contribution.magnitude.axis for contribution in adapter.contributions} == {"output"}


@pytest.mark.parametrize(
    ("options", "reason"), [({"dropout": "0.1"}, "dropout"), ({"rank_dropout": "0.1"}, "rank_dropout")]
)
@pytest.mark.parametrize("algorithm", ["loha", "lokr"])
def test_what_keeps_dora_off_is_counted_as_for_lora(algorithm, options, reason, caplog):
    with caplog.at_level(logging.INFO):
        network = create(algorithm, make("wan", "original"), use_dora="True", **options)
    assert {lora.dora_disabled_reason for lora in network.unet_loras} == {reason}
    assert f"DoRA enabled on 0 modules, disabled on: {len(network.unet_loras)} {reason}" in caplog.text


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_training_goes_on_where_it_was(algorithm, tmp_path):
    model = make("flux", "diffusers")
    network = create(algorithm, model)
    train(network)
    file = str(tmp_path / "adapter.safetensors")
    network.save_weights(file, None, None)
    other = make("flux", "diffusers")
    again = create(algorithm, other)
    again.load_weights(file)
    assert distance(outputs(again.eval(), other), outputs(network.eval(), model)) == 0
    again.load_state_dict(network.state_dict(), strict=True)
    adapter = read_adapter(open_checkpoint(file))
    assert {contribution.algorithm.name for contribution in adapter.contributions} == {algorithm}
    assert not adapter.unclaimed


# U-28: nothing but the shapes says which factor it was.
@pytest.mark.parametrize("rank", [1, 100])
@pytest.mark.parametrize("factor", ["2", "4", "-1"])
def test_the_factor_is_read_from_the_shapes(factor, rank, tmp_path):
    model = make("wan", "original")
    network = create("lokr", model, rank, factor=factor)
    train(network)
    runtime = outputs(network.eval(), model)
    file = str(tmp_path / "adapter.safetensors")
    network.save_weights(file, None, None)
    weights, fresh = load_file(file), make("wan", "original")
    assert ("lora_unet_blocks_0_ffn_0.lokr_w2" in weights) == (rank == 100)
    merging = lokr.create_arch_network_from_weights(1.0, weights, unet=fresh, for_inference=True)
    assert merging.state_dict().keys() == network.state_dict().keys()
    merging.load_state_dict(network.state_dict(), strict=True)
    assert {float(lora.alpha) for lora in merging.unet_loras} == {float(rank)}
    merging.merge_to(None, fresh, weights)
    assert distance(outputs(merging, fresh), runtime) < 1e-5


@pytest.mark.parametrize("name", ["qwen_image", "qi", "QIE", "qwen_image_edit", "Qwen-Image"])
def test_an_architecture_by_its_name(name):
    model = make("qwen_image", "original")
    assert by_option(name).name == "qwen_image"
    assert len(create("loha", model, architecture=name, exclude_mod="False").unet_loras) == 2 * 14


def test_an_unknown_architecture_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"architecture='hv2': it must be .*hunyuan_video.*qwen_image"):
        create("loha", make("wan", "original"), architecture="hv2")


def test_an_unknown_model_is_an_error():
    with pytest.raises(ValueError, match=r"the classes Linear, Sequential do not show the architecture; give archit"):
        create("lokr", nn.Sequential(nn.Linear(2, 2)))


@pytest.mark.parametrize("option", [{"use_rslora": "True"}, {"loraplus_lr_ratio": "4"}, {"init_lora_weights": "pissa"}])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_options_of_lora_are_refused(algorithm, option):
    with pytest.raises(ValueError, match=f"{next(iter(option))} is not for (Lo|OFT)"):
        create(algorithm, make("wan", "original"), **option)


def test_dora_is_no_option_of_a_rotation():
    with pytest.raises(ValueError, match="use_dora is not for OFT"):
        create("oft", make("wan", "original"), use_dora="True")


@pytest.mark.parametrize("factor", ["0", "-2", "two", "1.5", True])
def test_a_factor_has_to_be_one(factor):
    with pytest.raises(ValueError, match=r"factor=.*: a whole number above 0, or -1, was expected"):
        create("lokr", make("wan", "original"), factor=factor)


def test_weights_of_lora_are_no_loha(tmp_path):
    model = make("wan", "original")
    with pytest.raises(ValueError, match="cannot be used by a LoHa network"):
        loha.create_arch_network_from_weights(
            1.0, {"lora_unet_blocks_0_ffn_0.lora_down.weight": torch.zeros(2, 12)}, unet=model
        )


def test_original_paths_are_one_to_one():
    for family in (by_option(name) for name in ("wan", "hv15", "kr2")):
        pairs = one_to_one(family)
        assert pairs
        for side in zip(*pairs, strict=True):
            assert len(set(side)) == len(side)
    assert [one_to_one(by_option(name)) for name in ("flux", "flux2", "hv", "zi", "i4", "qi")] == [()] * 6
    assert original_path(by_option("hv15"), "transformer_blocks.3.attn.add_k_proj") == "double_blocks.3.txt_attn_k"
    assert original_path(by_option("hv15"), "norm_out.linear") is None
    assert original_path(by_option("wan"), "blocks.17.attn1.to_out.0") == "blocks.17.self_attn.o"
    assert original_path(by_option("wan"), "blocks.17.attn1.norm_q") is None
