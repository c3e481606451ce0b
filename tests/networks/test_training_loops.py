"""Loops that are no trainer of kohya's: the objects that hold their models, names of state dicts, and averages."""

import copy
import re
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from networks import adapt
from networks.files.state_names import SPELLINGS

KINDS = {
    "lora": {"alpha": 2.0},
    "rslora": {"alpha": 2.0, "rslora": True},
    "dora": {"alpha": 2.0, "dora": True},
    "pissa": {"alpha": 2.0, "init_lora_weights": "pissa"},
    "slices": {"alpha": 2.0, "split_dims": {r".*\.up": [4, 12]}},
    "loha": {"algorithm": "loha", "alpha": 2.0},
    "lokr": {"algorithm": "lokr", "alpha": 2.0, "dora": True},
    "oft": {"algorithm": "oft"},
}
LORA_KINDS = ("lora", "rslora", "dora", "pissa", "slices")


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        return x + self.down(torch.tanh(self.up(x)))


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


class ToyUNet(Transformer):
    pass


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(8, 8)

    def forward(self, x):
        return self.proj(x)


class Model:
    """As ai-toolkit's models: both names are one module."""

    def __init__(self, model, text_encoder):
        self.model, self.text_encoder = model, text_encoder

    @property
    def unet(self):
        return self.model

    @property
    def transformer(self):
        return self.model


def onetrainer(**parts):
    return SimpleNamespace(vae=nn.Linear(2, 2), train_progress=None, **parts)


# What holds the models, and what a network with text encoders calls them: as OneTrainer does, and kohya.
HOLDERS = {
    "OneTrainer's FLUX": (
        lambda: onetrainer(transformer=Transformer(), text_encoder_1=Encoder(), text_encoder_2=Encoder()),
        {"transformer": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"},
    ),
    "OneTrainer's SD": (
        lambda: onetrainer(unet=ToyUNet(), text_encoder=Encoder(), text_encoder_1=None),
        {"unet": "lora_unet", "text_encoder": "lora_te1"},
    ),
    "OneTrainer's Wuerstchen": (
        lambda: onetrainer(prior_prior=Transformer(), prior_text_encoder=Encoder()),
        {"prior": "lora_unet", "text_encoder": "lora_te"},
    ),
    "ai-toolkit": (
        lambda: Model(Transformer(), [Encoder(), Encoder()]),
        {"transformer": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"},
    ),
    "ai-toolkit with one": (
        lambda: Model(ToyUNet(), Encoder()),
        {"unet": "lora_unet", "text_encoder": "lora_te"},
    ),
}


def modules_of(holder):
    held = [value for value in vars(holder).values() if value is not None]
    flat = [one for value in held for one in (value if isinstance(value, list) else [value])]
    return [one for one in flat if isinstance(one, nn.Module)]


def moved(network):
    torch.manual_seed(4)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return network


@pytest.fixture
def x():
    return torch.randn(3, 8)


@pytest.mark.parametrize("kind", HOLDERS)
def test_the_models_of_a_trainer_s_object_are_adapted_and_given_back(kind, x):
    make, parts = HOLDERS[kind]
    holder = make()
    models = [module for module in modules_of(holder) if not isinstance(module, nn.Linear)]
    before = [model(x) for model in models]
    network = adapt(holder, rank=2, text_encoders=True)
    assert network.part_names == {prefix: name for name, prefix in parts.items()}
    assert len(network.text_encoder_loras) == len(parts) - 1
    moved(network)
    assert all(not torch.equal(model(x), was) for model, was in zip(models, before, strict=True))
    for names, of in (("kohya", "{}_{}"), ("onetrainer", "{}.{}")):
        prefixes = parts.values() if names == "kohya" else parts
        keys = network.state_dict_as(names)
        found = {prefix: any(key.startswith(of.format(prefix, "")) for key in keys) for prefix in prefixes}
        assert all(found.values()), found
    network.remove()
    assert not any("forward" in vars(module) for model in models for module in model.modules())
    assert all(torch.equal(model(x), was) for model, was in zip(models, before, strict=True))


def test_text_encoders_are_chosen_by_name():
    holder = HOLDERS["ai-toolkit"][0]()
    assert not adapt(holder, rank=2).text_encoder_loras
    network = adapt(holder, rank=2, text_encoders="text_encoder_2")
    assert [lora.lora_name for lora in network.text_encoder_loras] == ["lora_te2_proj"]
    assert all(parameter.requires_grad for parameter in holder.text_encoder[0].parameters())
    with pytest.raises(ValueError, match="the model has no text_encoder_3, but text_encoder, text_encoder_2"):
        adapt(holder, text_encoders=["text_encoder_3"])
    with pytest.raises(ValueError, match="there are none; pass the object that holds them"):
        adapt(Transformer(), text_encoders=True)
    with pytest.raises(ValueError, match=r"model is a SimpleNamespace, but a torch\.nn\.Module was expected, or an"):
        adapt(SimpleNamespace(vae=nn.Linear(2, 2)))


def test_names_are_those_of_the_programs():
    network = adapt(onetrainer(unet=ToyUNet(), text_encoder=Encoder()), rank=2, alpha=4.0, text_encoders=True)
    with torch.no_grad():
        for lora in network.loras:
            lora.lora_up.weight.normal_()
    up = network.text_encoder_loras[0].lora_up.weight
    due = {
        "kohya": "lora_te_proj.lora_up.weight",
        "onetrainer": "text_encoder.proj.lora_up.weight",
        "diffusers": "text_encoder.proj.lora_B.weight",
        "ai-toolkit": "text_encoder.proj.lora_B.weight",
    }
    for names, key in due.items():
        tensors = network.state_dict_as(names)
        has_alpha = SPELLINGS[names].alpha == "beside"
        assert len(tensors) == 5 * (3 if has_alpha else 2)
        assert torch.equal(tensors[key], up if has_alpha else 2 * up)
    assert "unet.blocks.1.up.lora_A.weight" in network.state_dict_as("diffusers")
    with pytest.raises(ValueError, match="names='peft': a wrapper of one model has no names for text encoders"):
        network.state_dict_as("peft")
    with pytest.raises(ValueError, match="names='comfy': one of kohya, peft, diffusers, onetrainer, ai-toolkit was"):
        network.state_dict_as("comfy")


@pytest.mark.numeric
@pytest.mark.parametrize("names", SPELLINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_state_dict_loads_again(kind, names, x):
    torch.manual_seed(1)
    model = Transformer()
    network = moved(adapt(model, rank=2, **KINDS[kind]))
    if kind not in LORA_KINDS and (not SPELLINGS[names].others or (kind, names) == ("oft", "onetrainer")):
        with pytest.raises(ValueError, match="has no name for lora_unet_blocks_0_up"):
            network.state_dict_as(names)
        return
    due, tensors = model(x), network.state_dict_as(names)
    assert all(tensor.is_contiguous() and not tensor.requires_grad for tensor in tensors.values())
    network.remove()
    again = adapt(model, rank=2, **KINDS[kind])
    assert not torch.allclose(model(x), due, atol=1e-3)
    again.load_state_dict_as(names, tensors)
    torch.testing.assert_close(model(x), due, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match=f"1 keys are no tensors of this network in the names of {names}: odd"):
        again.load_state_dict_as(names, {**tensors, "odd": torch.zeros(1)})


@pytest.mark.numeric
@pytest.mark.parametrize("kind", LORA_KINDS)
def test_peft_computes_with_its_state_dict(kind, x):
    import peft

    torch.manual_seed(1)
    model = Transformer()
    network = moved(adapt(model, rank=2, **KINDS[kind]))
    due = model(x)
    config, tensors = network.peft_config(), network.state_dict_as("peft")
    network.remove()
    config.pop("peft_type")
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**config))
    loaded = peft.set_peft_model_state_dict(wrapped, tensors)
    assert not loaded.unexpected_keys
    torch.testing.assert_close(wrapped(x), due, atol=1e-5, rtol=1e-5)


class ConvolutionModel(nn.Module):
    """A convolution with a Linear and a fused one behind it."""

    def __init__(self):
        super().__init__()
        self.conv, self.proj, self.qkv = nn.Conv2d(3, 8, 3), nn.Linear(8, 8), nn.Linear(8, 24)

    def forward(self, x):
        return self.qkv(torch.tanh(self.proj(self.conv(x).mean((2, 3)))))


PARTIAL_DORA = {
    "convolution": ({}, "1 module (lora_unet_conv); train with dora_conv=True"),
    "slices": (
        {"dora_conv": True, "split_qkv": True},
        "1 module (lora_unet_qkv); train without split_qkv and split_dims",
    ),
    "both": (
        {"split_qkv": True},
        "2 modules (lora_unet_conv, lora_unet_qkv); train with dora_conv=True and train without split_qkv",
    ),
}


@pytest.mark.parametrize("case", PARTIAL_DORA)
def test_peft_names_with_partial_dora_are_refused(case, caplog):
    options, message = PARTIAL_DORA[case]
    network = adapt(ConvolutionModel(), rank=2, dora=True, **options)
    says = f"PEFT uses DoRA on all 3 modules, but the network lacks it on {message}"
    for names_of_peft in (network.peft_config, lambda: network.state_dict_as("peft")):
        with pytest.raises(ValueError, match=re.escape(f"the state dict of peft: {says}")):
            names_of_peft()
    caplog.clear()
    network.state_dict_as("kohya")
    assert not caplog.text
    network.state_dict_as("diffusers")
    assert f"the state dict of diffusers: {says}" in caplog.text


@pytest.mark.numeric
@pytest.mark.parametrize("options", [{"dora_conv": True}, {"conv_dim": 0}, {"targets": ["proj", "qkv"]}], ids=str)
def test_peft_computes_dora_of_all_modules(options):
    import peft

    torch.manual_seed(1)
    model, x = ConvolutionModel(), torch.randn(4, 3, 6, 6)
    network = moved(adapt(model, rank=2, dora=True, **options))
    expected = model(x)
    config, tensors = network.peft_config(), network.state_dict_as("peft")
    network.remove()
    config.pop("peft_type")
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**config))
    assert not peft.set_peft_model_state_dict(wrapped, tensors).unexpected_keys
    torch.testing.assert_close(wrapped(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("names", ["kohya", "onetrainer", "diffusers"])
def test_a_saved_state_dict_is_the_file_that_programs_read(names, tmp_path):
    from lora_inspect import open_adapter

    model = Transformer()
    network = moved(adapt(model, rank=2, alpha=2.0, rslora=True))
    save_file(network.state_dict_as(names), tmp_path / "x.safetensors")
    found = open_adapter(tmp_path / "x.safetensors")
    assert len(found.modules) == 4
    scale = 1.0 if names == "diffusers" else 2.0 / 2**0.5
    assert all(module.scale == pytest.approx(scale) for module in found.modules)


@pytest.mark.parametrize("kind", KINDS)
def test_an_average_is_taken_over_the_state_dict(kind):
    model = Transformer()
    network = moved(adapt(model, rank=2, **KINDS[kind]))
    average = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    first = copy.deepcopy(average)
    moved(network)
    for key, tensor in network.state_dict().items():
        assert tensor.is_contiguous()
        average[key].lerp_(tensor, 0.25)
    for key, tensor in network.state_dict().items():
        torch.testing.assert_close(average[key], 0.75 * first[key] + 0.25 * tensor)
    network.load_state_dict(average)
    storages = [tensor.untyped_storage().data_ptr() for tensor in network.parameters()]
    assert len(set(storages)) == len(storages)
    # In place, too, as a swap of weights for samples is made.
    for key, tensor in network.state_dict().items():
        tensor.lerp_(first[key], 1.0)
    for key, tensor in network.named_parameters():
        torch.testing.assert_close(tensor.detach(), first[key])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda network: AveragedModel(network).module])
def test_an_average_of_a_holder_s_network_copies_no_base(copied):
    holder = HOLDERS["OneTrainer's FLUX"][0]()
    network = adapt(holder, rank=2, text_encoders=True, dora=True)
    other = copied(network)
    bases = {id(module) for model in modules_of(holder) for module in model.modules()}
    assert all(id(lora.org_module) in bases for lora in other.loras)
    assert {id(parameter) for parameter in other.parameters()}.isdisjoint(map(id, network.parameters()))
    own = sum(parameter.numel() for parameter in network.parameters())
    assert sum(parameter.numel() for parameter in other.parameters()) == own


@pytest.mark.numeric
def test_an_averaged_network_is_sampled_and_taken_out_again(x):
    holder = HOLDERS["ai-toolkit"][0]()
    network = moved(adapt(holder, rank=2, text_encoders=True))
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    average.update_parameters(network)
    due = holder.unet(x)
    moved(network)
    trained = holder.unet(x)
    network.set_enabled(False)
    average.module.apply_to(None, holder.unet)
    torch.testing.assert_close(holder.unet(x), due)
    average.module.remove()
    network.set_enabled(True)
    assert torch.equal(holder.unet(x), trained)
