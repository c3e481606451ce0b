"""OneTrainer: its loader of LoRA files and the modules that it trains on from, over a model that has the layers.

A user names the type, the rank and the layers of a file, and whether queries, keys and values are one layer: these
settings are made of the file. It needs the package `parse`, as OneTrainer does.
"""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file
from torch import Tensor, nn

from reruns import Asked, Case, Loading, Weights, effective_weights, grid, module_tree, stub

_ABSENT = ("bitsandbytes", "cv2", "fabric", "mgds", "pooch", "scalene", "tensorboard", "torchvision", "triton", "yaml")


class Loaded(NamedTuple):
    """The classes of a family's model and loader, by their modules, and the name of the model's type."""

    model: str
    loader: str
    kind: str


FAMILIES = {
    "sd15": Loaded("StableDiffusionModel", "stableDiffusion.StableDiffusionLoRALoader", "STABLE_DIFFUSION_15"),
    "sdxl": Loaded(
        "StableDiffusionXLModel", "stableDiffusionXL.StableDiffusionXLLoRALoader", "STABLE_DIFFUSION_XL_10_BASE"
    ),
    "sd3": Loaded("StableDiffusion3Model", "stableDiffusion3.StableDiffusion3LoRALoader", "STABLE_DIFFUSION_35"),
    "flux": Loaded("FluxModel", "flux.FluxLoRALoader", "FLUX_DEV_1"),
    "chroma": Loaded("ChromaModel", "chroma.ChromaLoRALoader", "CHROMA_1"),
    "flux2": Loaded("Flux2Model", "Flux2ModelLoader.Flux2LoRALoader", "FLUX_2"),
    "hunyuan_video": Loaded("HunyuanVideoModel", "hunyuanVideo.HunyuanVideoLoRALoader", "HUNYUAN_VIDEO"),
    "qwen_image": Loaded("QwenModel", "qwen.QwenLoRALoader", "QWEN"),
    "z_image": Loaded("ZImageModel", "ZImageModelLoader.ZImageLoRALoader", "Z_IMAGE"),
    "hidream_i1": Loaded("HiDreamModel", "hiDream.HiDreamLoRALoader", "HI_DREAM_FULL"),
}


def version() -> str:
    """It has none in its modules."""
    return "(no version)"


def _settings(tensors: Weights) -> Any:
    """The config of a user who has a file of these tensors."""
    from modules.util.config.TrainConfig import TrainConfig
    from modules.util.enum.ModelType import PeftType

    config = TrainConfig.default_values()
    config.train_device = "cpu"
    for key, tensor in tensors.items():
        if key.endswith((".lora_down.weight", ".lora_A.weight", ".lora_A.default.weight")):
            config.lora_rank = len(tensor)
        elif key.endswith(".hada_w1_b"):
            config.peft_type, config.lora_rank = PeftType.LOHA, len(tensor)
        elif ".lokr_" in key:
            config.peft_type = PeftType.LOKR
            config.lokr_decompose_factor = 2
            config.lokr_full_matrix = not any(".lokr_w2_a" in other for other in tensors)
            if key.endswith(".lokr_w2_a"):
                config.lokr_dim = tensor.shape[1]
        elif ".oft_" in key:
            config.peft_type = PeftType.OFT_2
        elif "dora" in key or "magnitude" in key:
            config.lora_decompose = True
            config.lora_decompose_output_axis = tensor.ndim < 2 or tensor.shape[1] == 1
    return config


def load(family: str, state: dict[str, Tensor], file: Path) -> Weights:
    """The model with the file loaded as one to train on."""
    from modules.module.LoRAModule import LoRAModuleWrapper
    from modules.util.enum.ModelType import ModelType
    from modules.util.ModelNames import ModelNames

    own = FAMILIES[family]
    model_class = getattr(import_module(f"modules.model.{own.model}"), own.model)
    place, _, name = own.loader.rpartition(".")
    module = own.loader if place.islower() or place[0].islower() else place
    loader = getattr(import_module(f"modules.modelLoader.{module}"), name)()
    model = model_class(ModelType[own.kind])
    part = model.model_type.denoising_model_part()
    tree = module_tree(state)
    setattr(model, part, tree)
    if family == "sdxl":
        model.text_encoder_1 = model.text_encoder_2 = nn.Module()
    elif hasattr(model, "text_encoder"):
        model.text_encoder = nn.Module()
    if family == "sd3":
        # The number of its blocks is asked for.
        tree.transformer_blocks.__class__ = nn.ModuleList
    loader._load(model, ModelNames(lora=str(file)))
    config = _settings(load_file(file))
    error: Exception | None = None
    for fuse in (False, True):
        wrapper = LoRAModuleWrapper(tree, part, config, fusion_spec=model.fusion_groups(), fuse=fuse)
        try:
            wrapper.load_state_dict(model.lora_state_dict)
        except RuntimeError as raised:
            if "output format" not in str(raised):
                raise
            error = raised
            continue
        wrapper.hook_to_module()
        return effective_weights(tree)
    assert error is not None
    raise error


def cases(record: str, asked: Asked, folder: Path) -> Iterator[Case]:
    """The grid of the families that it has models of."""
    stub(*_ABSENT)
    return grid(Loading(dict.fromkeys(FAMILIES, "diffusers"), load), record, asked, folder)
