"""A network is the same, whatever a trainer has set in torch for what it makes itself."""

from importlib import import_module

import pytest
import torch
from callers_states import PLACES, PRODUCTS, in_each
from safetensors.torch import load_file
from torch import nn

from networks.loha import LoHaModule
from networks.lokr import LoKrModule
from networks.modules.lora_module import LoRAModule
from networks.modules.masks import RankMask
from networks.oft import OFTModule

pytestmark = pytest.mark.numeric
KINDS = {
    "lora": ("lora_wan", {}),
    "rslora": ("lora_wan", {"use_rslora": "true"}),
    "dora": ("lora_wan", {"use_dora": "true"}),
    "orthogonal": ("lora_wan", {"init_lora_weights": "orthogonal"}),
    "pissa": ("lora_wan", {"init_lora_weights": "pissa"}),
    "dropouts": ("lora_wan", {"rank_dropout": "0.3", "module_dropout": "0.3"}),
    "tlora": ("lora_wan", {"use_tlora": "true"}),
    "loha": ("loha", {}),
    "loha, dora": ("loha", {"use_dora": "true"}),
    "lokr": ("lokr", {}),
    "lokr, whole": ("lokr", {"factor": "2"}),
    "oft": ("oft", {}),
    "oft, rescaled": ("oft", {"rescaled": "true", "constraint": "0.1"}),
}
# These have no norm of a change that could be limited, or refuse it.
WITHOUT_NORM = ("tlora", "pissa")


def bits(tensors):
    return {key: (one.dtype, one.device, one.detach().numpy(force=True).tobytes()) for key, one in tensors.items()}


def drawn(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32, device="cpu")


def trained(kind, model, file, state):
    """What a network is from its making to its file, each step in the `state`."""
    name, options = KINDS[kind]
    found = {}
    torch.manual_seed(5)
    with state():
        network = import_module(f"networks.{name}").create_arch_network(1.0, 4, 2.0, None, None, model, **options)
        found["made"] = bits(network.state_dict())
        network.apply_to(None, model, apply_text_encoder=False, apply_unet=True)
    with torch.no_grad():
        for number, parameter in enumerate(network.parameters()):
            parameter.add_(0.05 * drawn(number, *parameter.shape))
    torch.manual_seed(7)
    with state():
        if options.get("use_tlora"):
            network.set_timestep_mask([300.0, 600.0, 10.0], 1000)
        for lora in network.unet_loras:
            output = lora.org_module(drawn(3, 3, 2, lora.org_module.in_features))
            if output.requires_grad:  # it may be left out
                output.square().sum().backward()
            found[lora.lora_name] = bits({"output": output})
        found["gradients"] = bits({key: one.grad for key, one in network.named_parameters() if one.grad is not None})
    found["norms"], found["saved"] = limited_and_saved(kind, network, file, state)
    return found


def limited_and_saved(kind, network, file, state):
    with state():
        norms = None if kind in WITHOUT_NORM else network.apply_max_norm_regularization(0.05, "cpu")
        network.save_weights(str(file), torch.float16, {})
    return norms, bits(load_file(file, device="cpu"))


def loaded(kind, models, file, state):
    """What comes of a file: a network to train on, and a model that it is merged into."""
    weights, found = load_file(file, device="cpu"), {}
    create = import_module(f"networks.{KINDS[kind][0]}").create_arch_network_from_weights
    with state():
        found["to train"] = bits(create(0.7, weights, unet=models[0]).state_dict())
        network = create(0.7, weights, unet=models[1], for_inference=True)
        network.merge_to(None, models[1], weights, torch.float32, "cpu")
        found["changes"] = [bits({"change": lora.get_weight()}) for lora in network.unet_loras]
    found["merged"] = bits(models[1].state_dict())
    return found


def usual():
    return torch.enable_grad()


@in_each(PLACES)
@pytest.mark.parametrize("kind", KINDS)
def test_training_is_the_same_on_any_default_device_and_in_any_default_dtype(kind, state, wan, tmp_path):
    due = trained(kind, wan(), tmp_path / "due.safetensors", usual)
    assert due["gradients"]
    assert trained(kind, wan(), tmp_path / "found.safetensors", state) == due


@pytest.mark.slow
@in_each(PLACES, PRODUCTS)
@pytest.mark.parametrize("kind", KINDS)
def test_files_are_loaded_and_merged_the_same_in_any_state(kind, state, wan, tmp_path):
    file = tmp_path / "own.safetensors"
    trained(kind, wan(), file, usual)
    due = loaded(kind, (wan(), wan()), file, usual)
    assert loaded(kind, (wan(), wan()), file, state) == due


@in_each(PLACES, PRODUCTS)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in WITHOUT_NORM])
def test_norms_are_limited_the_same_in_any_state(kind, state, wan, tmp_path):
    name, options = KINDS[kind]
    found = []
    for each in (usual, state):
        torch.manual_seed(5)
        network = import_module(f"networks.{name}").create_arch_network(1.0, 4, 2.0, None, None, wan(), **options)
        with torch.no_grad():
            for number, parameter in enumerate(network.parameters()):
                parameter.add_(drawn(number, *parameter.shape))
        found.append(limited_and_saved(kind, network, tmp_path / "own.safetensors", each))
    assert found[0] == found[1]


@in_each(PLACES)
@pytest.mark.parametrize("make", [LoRAModule, LoHaModule, LoKrModule, OFTModule])
def test_modules_of_convolutions_start_on_the_cpu_in_float32(make, state):
    base = nn.Conv2d(4, 8, 3)
    found = []
    for each in (usual, state):
        torch.manual_seed(1)
        with each():
            found.append(bits(make("x", base, 1.0, 4, 2.0).state_dict()))
    assert found[0] == found[1]
    assert {(dtype, device.type) for dtype, device, _ in found[1].values()} == {(torch.float32, "cpu")}


@in_each(PLACES)
def test_timesteps_are_read_as_they_are(state):
    found = []
    for each in (usual, state):
        mask = RankMask(1, 1.0)
        mask.ranks.add(8)
        with each():
            mask.set([333.3, 999.9, 0.1], 1000)
        found.append(mask.masked(torch.ones(3, 8), 8, -1).tolist())
    assert found[0] == found[1]
    assert len({tuple(row) for row in found[0]}) == 3
