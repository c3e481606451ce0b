"""Deep copies, which averages of a training are: parameters of their own beside the same base."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from networks import lora, lora_wan
from networks.modules.lora_module import LoRAModule

KINDS = {
    "lora": {},
    "dora": {"use_dora": "True"},
    "pissa": {"init_lora_weights": "pissa", "enable_conv2d": "False"},
    "t-lora": {"use_tlora": "True"},
}


def network_on(model, **options):
    network = lora.create_network(
        ["Block"], "lora_unet", 1.0, 4, 2.0, None, None, model, default_exclude_patterns=[".*img_mod"], **options
    )
    network.apply_to(None, model)
    return network


def moved(network):
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda network: AveragedModel(network).module])
@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_of_a_network_copies_the_base(make_model, kind, copied):
    model = make_model()
    network = moved(network_on(model, **KINDS[kind]))
    other = copied(network)
    layers = set(model.modules())
    for module, own in zip(other.unet_loras, network.unet_loras, strict=True):
        assert module is getattr(other, module.lora_name)
        assert module.org_module is own.org_module
        assert module.org_module in layers
    assert not set(network.parameters()) & set(other.parameters())
    assert other.state_dict().keys() == network.state_dict().keys()
    assert all(torch.equal(tensor, network.state_dict()[key]) for key, tensor in other.state_dict().items())
    # The layers that files may still take in are the model's own, too.
    assert set(other.left_out.layers) == set(network.left_out.layers) <= layers
    if other.rank_mask:
        assert other.rank_mask is not network.rank_mask
        assert all(module.rank_mask is other.rank_mask for module in other.unet_loras)


@pytest.mark.numeric
@pytest.mark.parametrize("kind", ["lora", "dora", "pissa"])
def test_an_average_computes_in_the_place_of_its_network(make_model, kind, tmp_path):
    model, x = make_model(), torch.randn(2, 8, 12)
    network = moved(network_on(model, **KINDS[kind]))
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    average.update_parameters(network)
    first = {key: tensor.clone() for key, tensor in network.named_parameters()}
    before = model(x)
    moved(network)
    average.update_parameters(network)
    for key, tensor in average.module.named_parameters():
        assert torch.allclose(tensor, (first[key] + dict(network.named_parameters())[key]) / 2, atol=1e-6), key
    # The average was no part of the model so far.
    assert not torch.equal(model(x), before)
    network.set_enabled(False)
    average.module.apply_to(None, model)
    averaged = model(x)
    average.module.set_enabled(False)
    network.set_enabled(True)
    file = str(tmp_path / "average.safetensors")
    average.module.save_weights(file, None, None)
    network.load_weights(file)
    assert torch.allclose(model(x), averaged, atol=1e-5)


def test_a_copy_is_in_no_forward(make_model):
    model, x = make_model(), torch.randn(2, 8, 12)
    network = network_on(model)
    before = model(x)
    other = moved(copy.deepcopy(network))
    assert torch.equal(model(x), before)
    with pytest.raises(RuntimeError, match="call apply_to before forward"):
        other.unet_loras[0](x)


def test_a_copy_of_one_module_copies_the_base():
    base, below = nn.Linear(6, 8), LoRAModule("below", nn.Linear(6, 8))
    for module in (LoRAModule("x", base), LoRAModule("y", base)):
        module.apply_to()
        other = copy.deepcopy(module)
        assert other.org_module is base
        assert other.org_forward is None
        assert other.lora_down.weight is not module.lora_down.weight
    assert copy.deepcopy(below).org_module is below.org_module


def test_a_copy_of_a_model_has_copies_of_its_adapters_that_compute_with_its_own_layers(make_model):
    model, x = make_model(), torch.randn(2, 8, 12)
    network = moved(network_on(model))
    whole = nn.ModuleDict({"network": network, "model": model})
    for other, adapters in ((copy.deepcopy(model), None), (copy.deepcopy(whole), 0)):
        copied = other if adapters is None else other["model"]
        layer = copied.blocks[0].attn["to_q"]
        assert layer.forward.__self__.org_module is layer
        assert layer.weight is not model.blocks[0].attn["to_q"].weight
        assert torch.equal(copied(x), model(x))
        if adapters is not None:
            assert other["network"].unet_loras[0] is layer.forward.__self__


def test_a_copy_of_a_network_that_knows_its_file_names_saves_the_same_file(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    model = diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16, freq_dim=16,
        ffn_dim=32, num_layers=1, rope_max_seq_len=32,
    )  # fmt: skip
    network = lora_wan.create_arch_network(1.0, 4, 2.0, None, None, model)
    files = [tmp_path / "own.safetensors", tmp_path / "copy.safetensors"]
    network.save_weights(files[0], None, None)
    copy.deepcopy(network).save_weights(files[1], None, None)
    assert files[0].read_bytes() == files[1].read_bytes()
