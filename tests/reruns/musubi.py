"""musubi-tuner: the merge while it loads a model, and its networks merged into one.

A model has layers of the grid's weights in blocks of the classes that a network asks for.
"""

from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from reruns import Asked, Case, Loading, Weights, grid, module_tree, stub

# What its scripts need beside their networks.
_ABSENT = ("accelerate", "av", "cv2", "easydict", "ftfy", "torchvision", "voluptuous")


class Network(NamedTuple):
    """The module of `networks` for LoRA of a family, the layout of its model, and the classes of the blocks."""

    module: str
    layout: str
    classes: Mapping[str, str] = MappingProxyType({})


_STREAMS = {"double_blocks.{i}": "DoubleStreamBlock", "single_blocks.{i}": "SingleStreamBlock"}
NETWORKS = {
    "flux": Network("lora_flux", "original", _STREAMS),
    "flux2": Network("lora_flux_2", "original", _STREAMS),
    "framepack": Network(
        "lora_framepack",
        "diffusers",
        {
            "transformer_blocks.{i}": "HunyuanVideoTransformerBlock",
            "single_transformer_blocks.{i}": "HunyuanVideoSingleTransformerBlock",
        },
    ),
    "hunyuan_video": Network(
        "lora", "original", {"double_blocks.{i}": "MMDoubleStreamBlock", "single_blocks.{i}": "MMSingleStreamBlock"}
    ),
    "hunyuan_video_1_5": Network("lora_hv_1_5", "original", {"double_blocks.{i}": "MMDoubleStreamBlock"}),
    "krea2": Network("lora_krea2", "original"),
    "qwen_image": Network("lora_qwen_image", "diffusers", {"transformer_blocks.{i}": "QwenImageTransformerBlock"}),
    "wan": Network("lora_wan", "original", {"blocks.{i}": "WanAttentionBlock"}),
    "z_image": Network(
        "lora_zimage",
        "diffusers",
        dict.fromkeys(("layers.{i}", "noise_refiner.{i}", "context_refiner.{i}"), "ZImageTransformerBlock"),
    ),
}
# The families of which the scripts that generate merge a network.
_GENERATED = ("flux", "hunyuan_video")


def version() -> str:
    """It has none in its modules."""
    return "(no version)"


def merge(family: str, state: dict[str, Tensor], file: Path) -> Weights:
    """The model of a script that generates: its weights take the factors as they are loaded."""
    if family in _GENERATED:
        return merge_network(family, state, file, NETWORKS[family].module)
    from musubi_tuner.utils.lora_utils import load_safetensors_with_lora_and_fp8

    tensors = load_file(file)
    if family == "framepack":
        from musubi_tuner.fpack_generate_video import convert_lora_for_framepack

        tensors = convert_lora_for_framepack(tensors)
    base = file.with_name("model.safetensors")
    save_file(state, base)
    found: Weights = load_safetensors_with_lora_and_fp8(str(base), [tensors], [1.0], False, torch.device("cpu"))
    return found


def merge_network(family: str, state: dict[str, Tensor], file: Path, module: str = "") -> Weights:
    """The model with a network of the file merged, that of the algorithm of the file where none is named."""
    tensors = load_file(file)
    if not module:
        of_keys = {"hada_": "loha", "lokr_": "lokr"}
        named = (name for part, name in of_keys.items() if any(part in key for key in tensors))
        module = next(named, NETWORKS[family].module)
    model = module_tree(state, NETWORKS[family].classes)
    network = import_module(f"musubi_tuner.networks.{module}").create_arch_network_from_weights(
        1.0, tensors, unet=model, for_inference=True
    )
    network.merge_to(None, model, tensors, device=torch.device("cpu"))
    return model.state_dict()


def cases(record: str, asked: Asked, folder: Path) -> Iterator[Case]:
    """The grid of the families of either record."""
    stub(*_ABSENT)
    load = merge_network if record == "musubi-networks" else merge
    return grid(Loading({family: one.layout for family, one in NETWORKS.items()}, load), record, asked, folder)
