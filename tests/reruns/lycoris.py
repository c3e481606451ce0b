"""LyCORIS: what layers compute that its stand-alone wrapper has taken over, in a model that has those of the grid."""

from collections.abc import Iterator
from importlib.metadata import version as version_of
from pathlib import Path

import torch
from torch import Tensor

from lora_inspect.programs import by_name
from reruns import Asked, Case, Loading, Weights, grid, module_tree

_LAYOUT = "diffusers"


def version() -> str:
    """That of the package."""
    return version_of("lycoris-lora")


def load(family: str, state: dict[str, Tensor], file: Path) -> Weights:
    """What the layers with the network of the file make of each input, and of none."""
    from lycoris.wrapper import create_lycoris_from_weights

    model = module_tree(state)
    network, _ = create_lycoris_from_weights(1.0, str(file), model)
    network.apply_to()
    network.eval()
    found = {}
    for name, weight in state.items():
        path, _, parameter = name.rpartition(".")
        layer = model.get_submodule(path)
        inputs = state[f"{path}.weight"].shape[1]
        bias = layer(torch.zeros(1, inputs))[0].detach()
        found[name] = (
            (layer(torch.eye(inputs)).detach() - bias).T.reshape(weight.shape) if parameter == "weight" else bias
        )
    return found


def cases(record: str, asked: Asked, folder: Path) -> Iterator[Case]:
    """The grid of the families of the record, or of a few where it is for all."""
    names = {family for loader in by_name(record).loaders for family in loader.families}
    known = sorted(names) or ["flux", "qwen_image", "sdxl", "wan", "z_image"]
    return grid(Loading(dict.fromkeys(known, _LAYOUT), load), record, asked, folder)
