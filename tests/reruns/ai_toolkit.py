"""ai-toolkit: the network that it trains, with a file loaded into it, over a model that has the layers.

A user names the kind, the rank and the alpha of a file: these settings are made of it. The renaming of a family is that
of its own class.
"""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from safetensors.torch import load_file
from torch import Tensor, nn

from reruns import Asked, Case, Loading, Weights, effective_weights, grid, module_tree, stub

_ABSENT = (
    "albumentations",
    "av",
    "bitsandbytes",
    "controlnet_aux",
    "cv2",
    "dotenv",
    "flatten_json",
    "k_diffusion",
    "kornia",
    "lpips",
    "lycoris",
    "open_clip",
    "optimum",
    "oyaml",
    "prodigyopt",
    "pytorch_fid",
    "timm",
    "toml",
    "torchao",
    "torchaudio",
    "torchcodec",
    "torchvision",
    "yaml",
)


class Model(NamedTuple):
    """The class of a family's model in diffusers' names, the module and class that rename, and more settings."""

    target: str
    module: str = ""
    name: str = ""
    layout: str = "diffusers"
    settings: tuple[str, ...] = ()


_BUILT_IN = "extensions_built_in.diffusion_models"
FAMILIES = {
    "sd15": Model("UNet2DConditionModel"),
    "sdxl": Model("UNet2DConditionModel", settings=("is_sdxl",)),
    "sd3": Model("SD3Transformer2DModel", settings=("is_v3",)),
    "flux": Model("FluxTransformer2DModel", settings=("is_flux",)),
    "lumina2": Model("Lumina2Transformer2DModel", settings=("is_lumina2",)),
    "wan": Model("WanTransformer3DModel", "toolkit.models.wan21.wan21", "Wan21"),
    "qwen_image": Model("QwenImageTransformer2DModel", f"{_BUILT_IN}.qwen_image.qwen_image", "QwenImageModel"),
    "z_image": Model("ZImageTransformer2DModel", f"{_BUILT_IN}.z_image.z_image", "ZImageModel"),
    "hidream_i1": Model("HiDreamImageTransformer2DModel", f"{_BUILT_IN}.hidream.hidream_model", "HidreamModel"),
    "chroma": Model("Chroma", f"{_BUILT_IN}.chroma.chroma_model", "ChromaModel", "original"),
    "flux2": Model("Flux2", f"{_BUILT_IN}.flux2.flux2_model", "Flux2Model", "original"),
}


def version() -> str:
    """The version that it shows."""
    return str(import_module("version").VERSION)


def _settings(tensors: Weights) -> dict[str, Any]:
    """The kind, the largest rank and the first alpha of a file."""
    found: dict[str, Any] = {"network_type": "lora", "lora_dim": 4, "alpha": 4.0}
    ranks = []
    for key, tensor in tensors.items():
        if key.endswith((".lora_down.weight", ".lora_A.weight", ".lora_A.default.weight")):
            ranks.append(len(tensor))
        elif ".lokr_" in key:
            found["network_type"] = "lokr"
            if key.endswith(".lokr_w2_a"):
                ranks.append(tensor.shape[1])
        elif "magnitude" in key or "dora" in key:
            found["network_type"] = "dora"
    if found["network_type"] == "lokr" and not ranks:
        ranks = [1_000_000]
    found["lora_dim"] = max(ranks, default=4)
    if any(tensor.ndim == 4 for tensor in tensors.values()):
        found["conv_lora_dim"] = found["lora_dim"]
    alphas = [float(tensor) for key, tensor in tensors.items() if key.endswith(".alpha")]
    found["alpha"] = alphas[0] if alphas else found["lora_dim"]
    if "conv_lora_dim" in found:
        found["conv_alpha"] = found["alpha"]
    return found


def _renaming(own: Model) -> type:
    """The class of a family; its package fails the first time where diffusers lacks what another model needs."""
    try:
        module = import_module(own.module)
    except ImportError:
        module = import_module(own.module)
    found: type = getattr(module, own.name)
    return found


def load(family: str, state: dict[str, Tensor], file: Path) -> Weights:
    """The model with a network of the file applied."""
    from toolkit.lora_special import LoRASpecialNetwork

    own = FAMILIES[family]
    root = type(own.target, (nn.Module,), {})()
    tree = module_tree(state, root=root)
    base = None
    if own.module:
        base = object.__new__(_renaming(own))
        base.arch = family
        base.use_old_lokr_format = False
    settings = _settings(load_file(file))
    network = LoRASpecialNetwork(
        text_encoder=[],
        unet=tree,
        multiplier=1.0,
        train_text_encoder=False,
        train_unet=True,
        network_config=SimpleNamespace(lokr_factor=2, old_lokr_format=False, all_layers=False),
        target_lin_modules=[own.target],
        is_transformer=bool(own.module),
        base_model=base,
        **dict.fromkeys(own.settings, True),
        **settings,
    )
    network.apply_to([], tree, False, True)
    network.load_weights(str(file))
    network.is_active = True
    network.eval()
    network._update_torch_multiplier()
    return effective_weights(tree, ("org_forward",))


def cases(record: str, asked: Asked, folder: Path) -> Iterator[Case]:
    """The grid of the families."""
    stub(*_ABSENT)
    layouts = {family: own.layout for family, own in FAMILIES.items()}
    return grid(Loading(layouts, load), record, asked, folder)
