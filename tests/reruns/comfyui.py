"""ComfyUI: its dictionary of names, its conversions, its patcher and its sums, over models that have the layers.

A model is an object of its class of the family with layers of the grid's weights, which ComfyUI asks for its class, its
state dict and its settings. It runs on the CPU.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from lora_inspect.architectures import by_name
from reruns import Asked, Case, Loading, Weights, grid, module_tree, stub

# What its models and its files of other kinds need.
_ABSENT = ("av", "comfy_aimdo", "comfy_kitchen", "spandrel", "torchaudio", "torchsde", "torchvision")

Settings = Callable[[Weights], dict[str, Any]]


def version() -> str:
    """The version that the checkout says."""
    import comfyui_version

    return str(comfyui_version.__version__)


def _blocks(state: Weights, start: str) -> int:
    """How many blocks of a list there are, counted to the last one."""
    numbers = [int(name.removeprefix(start).split(".")[0]) for name in state if name.startswith(start)]
    return 1 + max(numbers, default=-1)


def _streams(state: Weights) -> dict[str, Any]:
    hidden = next((len(state[name]) for name in state if name.endswith("img_attn.proj.weight")), 0)
    return {
        "depth": _blocks(state, "double_blocks."),
        "depth_single_blocks": _blocks(state, "single_blocks."),
        "hidden_size": hidden,
    }


def _unet(levels: int, depths: tuple[int, ...], outputs: tuple[int, ...], middle: int) -> Settings:
    settings = {
        "num_res_blocks": [2] * levels,
        "channel_mult": [1, 2, 4, 4][:levels],
        "transformer_depth": list(depths),
        "transformer_depth_output": list(outputs),
        "transformer_depth_middle": middle,
    }
    return lambda state: settings


def _auraflow(state: Weights) -> dict[str, Any]:
    double, single = _blocks(state, "double_layers."), _blocks(state, "single_layers.")
    return {"n_double_layers": double, "n_layers": double + single}


def _single_stream(state: Weights) -> dict[str, Any]:
    hidden = next((weight.shape[1] for name, weight in state.items() if name.endswith("attention.qkv.weight")), 0)
    return {"n_layers": _blocks(state, "layers."), "dim": hidden}


_FOUR_LEVELS = _unet(4, (1, 1, 1, 1, 1, 1, 0, 0), (1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0), 1)
_THREE_LEVELS = _unet(3, (0, 0, 2, 2, 10, 10), (0, 0, 0, 2, 2, 2, 10, 10, 10), 10)
# The class of a family's model, and what its settings say.
MODELS: Mapping[str, tuple[str, Settings]] = {
    "ace_step_1_5": ("ACEStep15", lambda state: {}),
    "anima": ("Anima", lambda state: {}),
    "auraflow": ("AuraFlow", _auraflow),
    "chroma": ("Chroma", _streams),
    "cosmos": ("CosmosPredict2", lambda state: {}),
    "flux": ("Flux", _streams),
    "flux2": ("Flux2", _streams),
    "hidream_i1": ("HiDream", lambda state: {}),
    "hunyuan_image": ("HunyuanImage21", lambda state: {}),
    "hunyuan_video": ("HunyuanVideo", lambda state: {}),
    "hunyuan_video_1_5": ("HunyuanVideo15", lambda state: {}),
    "ideogram4": ("Ideogram4", lambda state: {}),
    "kandinsky5": ("Kandinsky5", lambda state: {}),
    "krea2": ("Krea2", lambda state: {"layers": _blocks(state, "blocks.")}),
    "ltx2": ("LTXAV", lambda state: {}),
    "ltx_video": ("LTXV", lambda state: {}),
    "lumina2": ("Lumina2", _single_stream),
    "qwen_image": ("QwenImage", lambda state: {}),
    "sd15": ("BaseModel", _FOUR_LEVELS),
    "sd2": ("BaseModel", _FOUR_LEVELS),
    "sdxl": ("SDXL", _THREE_LEVELS),
    "wan": ("WAN21", lambda state: {}),
    "z_image": ("Lumina2", _single_stream),
}


def layout(family: str) -> str:
    """The one of ComfyUI's own names, the original one where it keeps those."""
    names = {name for one in by_name(family).layouts if not one.borrowed for name in one.names}
    return next(name for name in ("comfyui", "original", "diffusers") if name in names)


def load(family: str, state: dict[str, Tensor], file: Path) -> Weights:
    """The model after ComfyUI's node has loaded the file into it."""
    import comfy.lora
    import comfy.model_base
    import comfy.model_patcher
    import comfy.sd
    import comfy.utils

    name, settings = MODELS[family]
    kind = getattr(comfy.model_base, name)
    model = kind.__new__(kind)
    torch.nn.Module.__init__(model)
    model.diffusion_model = module_tree(state)
    model.model_config = SimpleNamespace(unet_config=settings(state))
    patcher = comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))
    tensors = comfy.utils.load_torch_file(str(file), safe_load=True)
    patched, _ = comfy.sd.load_lora_for_models(patcher, None, tensors, 1.0, 0.0)
    found = {}
    for key, weight in state.items():
        patches = patched.patches.get(f"diffusion_model.{key}", [])
        found[key] = comfy.lora.calculate_weight(patches, weight.clone(), f"diffusion_model.{key}")
    return found


def cases(record: str, asked: Asked, folder: Path) -> Iterator[Case]:
    """The grid of the families whose class the checkout has."""
    stub(*_ABSENT)
    from comfy.cli_args import args

    # Before anything else of it is imported, which asks for a device.
    args.cpu = True
    import comfy.model_base

    known = {family: layout(family) for family, (name, _) in MODELS.items() if hasattr(comfy.model_base, name)}
    return grid(Loading(known, partial(load)), record, asked, folder)
