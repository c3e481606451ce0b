"""sd-scripts: the networks of its families merged into a model that has the layers, and its merge of FLUX.1.

A model has layers of the grid's weights in blocks of the classes that a network asks for.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from reruns import Asked, Case, Loading, Weights, grid, module_tree, stub

_ABSENT = ("accelerate", "cv2", "imagesize", "toml", "torchvision", "voluptuous")


class Network(NamedTuple):
    """The module of `networks` of a family, the layout of its model, and the classes of the blocks."""

    module: str
    layout: str
    classes: Mapping[str, str]


_STREAMS = {"double_blocks.{i}": "DoubleStreamBlock", "single_blocks.{i}": "SingleStreamBlock"}
_PLACES = ("down_blocks.{i}", "mid_block", "up_blocks.{i}")
NETWORKS = {
    "anima": Network(
        "lora_anima",
        "original",
        {
            "blocks.{i}": "Block",
            "final_layer": "FinalLayer",
            "llm_adapter.blocks.{i}": "LLMAdapterTransformerBlock",
            "t_embedder.{i}": "TimestepEmbedding",
            "x_embedder": "PatchEmbed",
        },
    ),
    "chroma": Network("lora_flux", "original", _STREAMS),
    "flux": Network("lora_flux", "original", _STREAMS),
    "lumina2": Network(
        "lora_lumina",
        "original",
        {
            **dict.fromkeys(("layers.{i}", "noise_refiner.{i}", "context_refiner.{i}"), "JointTransformerBlock"),
            "final_layer": "FinalLayer",
        },
    ),
    "sd15": Network(
        "lora",
        "diffusers",
        {
            **{f"{place}.attentions.{{i}}": "Transformer2DModel" for place in _PLACES},
            **{f"{place}.resnets.{{i}}": "ResnetBlock2D" for place in _PLACES},
        },
    ),
    "sd3": Network(
        "lora_sd3",
        "original",
        dict.fromkeys(("joint_blocks.{i}.context_block", "joint_blocks.{i}.x_block"), "SingleDiTBlock"),
    ),
    "sdxl": Network(
        "lora",
        "original",
        {
            **{f"{place}.{{i}}.1": "Transformer2DModel" for place in ("input_blocks", "output_blocks")},
            **{f"{place}.{{i}}.0": "ResnetBlock2D" for place in ("input_blocks", "output_blocks")},
            "middle_block.1": "Transformer2DModel",
            **dict.fromkeys(("middle_block.0", "middle_block.2"), "ResnetBlock2D"),
        },
    ),
}


def version() -> str:
    """It has none in its modules."""
    return "(no version)"


def merge_network(family: str, state: dict[str, Tensor], file: Path) -> Weights:
    """The model with a network of the file merged."""
    root = torch.nn.Module()
    if family == "sdxl":
        from library.sdxl_original_unet import SdxlUNet2DConditionModel

        root = SdxlUNet2DConditionModel.__new__(SdxlUNet2DConditionModel)
        torch.nn.Module.__init__(root)
    model = module_tree(state, NETWORKS[family].classes, root)
    tensors = load_file(file)
    network, _ = import_module(f"networks.{NETWORKS[family].module}").create_network_from_weights(
        1.0, None, None, [], model, weights_sd=tensors, for_inference=True
    )
    network.merge_to([], model, tensors, torch.float32, "cpu")
    return model.state_dict()


def merge_flux(family: str, state: dict[str, Tensor], file: Path) -> Weights:
    """The weights of a base with the file merged by the script."""
    from networks.flux_merge_lora import merge_to_flux_model

    base = file.with_name("model.safetensors")
    save_file(state, base)
    found: tuple[Weights, ...] = merge_to_flux_model(
        "cpu", "cpu", str(base), None, None, [str(file)], [1.0], torch.float32, torch.float32
    )
    return found[0]


def cases(record: str, asked: Asked, folder: Path) -> Iterator[Case]:
    """The grid of the families of either record."""
    stub(*_ABSENT)
    if record == "sd-scripts-flux-merge":
        return grid(Loading({"flux": "original"}, partial(merge_flux)), record, asked, folder)
    layouts = {family: one.layout for family, one in NETWORKS.items()}
    return grid(Loading(layouts, partial(merge_network)), record, asked, folder)
