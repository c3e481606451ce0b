"""The models of every trained architecture, the layers that are adapted, and what they compute."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from stand_ins import ORIGINALS, stand_in
from tiny_diffusers import DIFFUSERS, tiny
from torch import Tensor, nn

MODULES = {
    "hunyuan_video": "lora",
    "hunyuan_video_1_5": "lora_hv_1_5",
    "framepack": "lora_framepack",
    "wan": "lora_wan",
    "flux": "lora_flux",
    "flux2": "lora_flux_2",
    "qwen_image": "lora_qwen_image",
    "z_image": "lora_zimage",
    "kandinsky5": "lora_kandinsky",
    "hidream_o1": "lora_hidream_o1",
    "ideogram4": "lora_ideogram4",
    "krea2": "lora_krea2",
}
MODELS = [(name, "original") for name in ORIGINALS] + [(name, "diffusers") for name in DIFFUSERS]


def make(name: str, layout: str, seed: int = 3) -> nn.Module:
    """The model of an architecture in one of the two layouts, frozen; the same weights for the same seed."""
    torch.manual_seed(seed)
    model = tiny(name) if layout == "diffusers" else stand_in(name)
    return model.requires_grad_(False).eval()


def leaves(name: str, layout: str, model: nn.Module) -> set[str]:
    """The paths of the committed list that the model has blocks for, which is every one of its lines at least once."""
    task = f"_{model.hidream_o1_task}" if hasattr(model, "hidream_o1_task") else ""
    listed = (Path(__file__).parent / "leaves" / f"{name}_{layout}{task}.txt").read_text().split()
    expanded = {line: list(_expand(line, model)) for line in listed}
    assert all(expanded.values()), [line for line, paths in expanded.items() if not paths]
    return {path for paths in expanded.values() for path in paths}


def example(layer: Any, samples: int = 3) -> Tensor:
    """A random input of a layer."""
    if isinstance(layer, nn.Linear):
        return torch.randn(samples, 5, layer.in_features)
    return torch.randn(samples, layer.in_channels, *[2 * size for size in layer.kernel_size])


def train(network: Any) -> None:
    """Every factor and magnitude as after some training."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("dora_layer.weight"):
                parameter.mul_(1 + 0.1 * torch.randn_like(parameter))
            else:
                parameter.add_(0.05 * torch.randn_like(parameter))


def outputs(network: Any, model: nn.Module) -> dict[str, Tensor]:
    """What each adapted layer of the model makes of one input, the same for the same layer, by its path."""
    adapted = {id(lora.org_module) for lora in network.unet_loras}
    return outputs_at([path for path, layer in model.named_modules() if id(layer) in adapted], model)


def outputs_at(paths: list[str], model: nn.Module) -> dict[str, Tensor]:
    """What the layers at the paths make of one input each, the same for the same layer."""
    found = {}
    for path in paths:
        layer = model.get_submodule(path)
        torch.manual_seed(len(path))
        found[path] = layer(example(getattr(layer, "base_layer", layer))).detach()
    return found


def distance(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """The largest difference in any output, relative to the largest output."""
    assert first.keys() == second.keys()
    return max(float((first[path] - second[path]).abs().max() / second[path].abs().max()) for path in first)


def _expand(line: str, model: nn.Module) -> Iterator[str]:
    before, found, after = line.partition(".{i}")
    if not found:
        yield line
        return
    for number, _ in enumerate(model.get_submodule(before).children()):
        yield f"{before}.{number}{after}"
