"""Every network module takes its arguments in the order in which trainers give them, and by the same names."""

import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import networks
from networks import loha, lokr, lora, lora_wan, oft

FOLDER = Path(networks.__file__).parent
MODULES = sorted(file.stem for file in FOLDER.glob("*.py") if "functions_of(" in file.read_text(encoding="utf-8"))
# As musubi-tuner and sd-scripts call them.
CREATE = ["multiplier", "network_dim", "network_alpha", "vae", "text_encoders", "unet", "neuron_dropout", "kwargs"]
FROM_STATE_DICT = ["multiplier", "weights_sd", "text_encoders", "unet", "for_inference", "kwargs"]
FROM_FILE = ["multiplier", "file", "vae", "text_encoder", "unet", "weights_sd", "for_inference", "kwargs"]


class WanAttentionBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn = nn.ModuleDict({name: nn.Linear(8, 8) for name in "qkvo"})


class MMDoubleStreamBlock(WanAttentionBlock):
    pass


def model(block: type[nn.Module] = WanAttentionBlock) -> nn.Module:
    return nn.ModuleDict({"blocks": nn.ModuleList([block()])})


def test_all_modules_are_looked_at():
    assert len(MODULES) == 23


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize(
    ("function", "order"),
    [
        ("create_network", CREATE),
        ("create_arch_network", CREATE),
        ("create_arch_network_from_weights", FROM_STATE_DICT),
        ("create_network_from_weights", FROM_FILE),
    ],
)
def test_the_order_is_one(name, function, order):
    module = importlib.import_module(f"networks.{name}")
    assert list(inspect.signature(getattr(module, function)).parameters) == order


@pytest.mark.parametrize(
    ("module", "block", "options"),
    [
        (lora_wan, WanAttentionBlock, {}),
        (lora, MMDoubleStreamBlock, {}),
        (loha, WanAttentionBlock, {"architecture": "wan"}),
        (lokr, WanAttentionBlock, {"architecture": "wan"}),
        (oft, WanAttentionBlock, {"architecture": "wan"}),
    ],
    ids=["lora_wan", "lora", "loha", "lokr", "oft"],
)
def test_names_are_as_good_as_places(module, block, options, tmp_path):
    named: dict[str, Any] = {
        "multiplier": 1.0, "network_dim": 2, "network_alpha": 1.0, "vae": None, "text_encoders": None,
    }  # fmt: skip
    by_name = module.create_network(**named, unet=model(block), **options)
    by_place = module.create_network(1.0, 2, 1.0, None, None, model(block), **options)
    assert by_name.state_dict().keys() == by_place.state_dict().keys()
    assert len(by_name.unet_loras) == 4
    file = tmp_path / "weights.safetensors"
    by_place.save_weights(file)
    of_file = {"multiplier": 1.0, "file": file, "vae": None, "text_encoder": None, "unet": model(block)}
    again, weights = module.create_network_from_weights(**of_file, **options)
    assert len(again.unet_loras) == 4
    assert weights


def test_classes_before_the_multiplier_go_by_name_as_well():
    named: dict[str, Any] = {
        "multiplier": 1.0, "network_dim": 2, "network_alpha": 1.0, "vae": None, "text_encoders": None,
    }  # fmt: skip
    network = lora.create_network(
        target_replace_modules=["WanAttentionBlock"], prefix="lora_unet", **named, unet=model()
    )
    assert len(network.unet_loras) == 4
    again = lora.create_network_from_weights(
        target_replace_modules=None, multiplier=1.0, weights_sd=network.state_dict(), unet=model()
    )
    assert len(again.unet_loras) == 4


@pytest.mark.parametrize("module", [lora_wan, lora, loha])
def test_a_model_in_another_place_is_answered_with_the_order(module):
    with pytest.raises(
        ValueError,
        match=r"unet is a float, .* multiplier, network_dim, network_alpha, vae, text_encoders, unet, in this order",
    ):
        module.create_network(model(), 4, 1.0, None, None, 1.0)


@pytest.mark.parametrize(
    ("module", "error", "sought"),
    [
        (lora_wan, RuntimeError, ["WanAttentionBlock", "WanTransformerBlock"]),
        (lora, RuntimeError, ["MMDoubleStreamBlock", "MMSingleStreamBlock"]),
        (loha, ValueError, ["WanAttentionBlock", "QwenImageTransformerBlock", "FluxTransformerBlock"]),
    ],
    ids=["lora_wan", "lora", "loha"],
)
def test_a_model_without_the_blocks_is_answered_with_their_classes(module, error, sought):
    class WanAtentionBlock(nn.Sequential):
        pass

    foreign = nn.Sequential(nn.LayerNorm(4), WanAtentionBlock(nn.Linear(4, 4)))
    with pytest.raises(error) as told:
        module.create_network(1.0, 4, 1.0, None, None, foreign)
    assert all(name in str(told.value) for name in sought)
    assert "WanAtentionBlock" in str(told.value)
    assert "lora_inspect.networks.adapt takes" in str(told.value)
    if module is lora_wan:
        assert "convolutions: WanAtentionBlock, Linear, Sequential;" in str(told.value)
