"""Adapters of tiny diffusers models as trainers and diffusers itself save them, and what a pipeline loads of a file."""

import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import nn

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests" / "networks" / "architectures"))

from architecture_models import MODULES, distance, make, outputs_at, train  # noqa: E402

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import diffusers
    from diffusers.loaders import lora_pipeline
    from diffusers.training_utils import _collate_lora_metadata
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig, get_peft_model_state_dict

LOADERS = {
    "wan": "WanLoraLoaderMixin",
    "flux": "FluxLoraLoaderMixin",
    "flux2": "Flux2LoraLoaderMixin",
    "qwen_image": "QwenImageLoraLoaderMixin",
    "z_image": "ZImageLoraLoaderMixin",
    "hunyuan_video": "HunyuanVideoLoraLoaderMixin",
    "framepack": "HunyuanVideoLoraLoaderMixin",
    "kandinsky5": "KandinskyLoraLoaderMixin",
    "ideogram4": "Ideogram4LoraLoaderMixin",
    "krea2": "Krea2LoraLoaderMixin",
    "sdxl": "StableDiffusionXLLoraLoaderMixin",
}
KINDS = ("lora", "rslora", "dora", "rslora+dora")
TARGETS = ("to_q", "to_k", "proj_out", "q_proj", "fc1", "to_query", "attn", "qkv")
# Two ranks, so that configs need patterns.
RANKS, ALPHA, OTHER_ALPHA = (4, 2), 3, 5


class Models(NamedTuple):
    """The networks of a pipeline, by the name under which it holds them, and its loader."""

    loader: Any
    networks: dict[str, nn.Module]

    def outputs(self) -> dict[str, torch.Tensor]:
        """What every Linear layer makes of one input each, an adapted one with its adapter."""
        found = {}
        for component, network in self.networks.items():
            paths = [
                name.removesuffix(".base_layer")
                for name, layer in network.named_modules()
                if isinstance(layer, nn.Linear) and "lora_" not in name
            ]
            found |= {f"{component}.{path}": value for path, value in outputs_at(paths, network).items()}
        return found

    def keys(self) -> int:
        """How many tensors of adapters the networks hold."""
        return sum("lora_" in name for network in self.networks.values() for name, _ in network.named_parameters())

    def pipeline(self) -> Any:
        """What loads adapters in the pipeline of these networks."""
        pipeline = type("Pipeline", (self.loader,), {"hf_device_map": None, "components": self.networks})()
        for name in ("text_encoder", "text_encoder_2"):
            setattr(pipeline, name, None)
        for name, network in self.networks.items():
            setattr(pipeline, name, network)
        return pipeline

    def load(self, file: Path) -> None:
        """Loads an adapter as the pipeline of these networks does; raises whatever that raises."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.pipeline().load_lora_weights(str(file))


class Case(NamedTuple):
    """A saved adapter, the layers' outputs that it was saved with, and the pipeline's networks without it."""

    file: Path
    meant: dict[str, torch.Tensor]
    fresh: Callable[[], Models]
    keeps_dora: bool = False


def models(family: str, with_text_encoder: bool = False) -> Models:
    """The tiny networks of a pipeline, the same weights each time."""
    loader = getattr(lora_pipeline, LOADERS[family])
    if family == "sdxl":
        networks: dict[str, nn.Module] = {"unet": _unet()}
    else:
        networks = {"transformer": make(family, "diffusers")}
    if with_text_encoder:
        networks["text_encoder"] = _text_encoder()
    return Models(loader, networks)


def of_networks(family: str, kind: str, folder: Path) -> Case:
    """What our training network saves."""
    model = make(family, "diffusers")
    module = import_module(f"networks.{MODULES[family]}")
    options = {"use_rslora": str("rslora" in kind), "use_dora": str("dora" in kind.split("+"))}
    network = module.create_arch_network(1.0, 4, 3.0, None, None, model, **options)
    network.apply_to(None, model, apply_text_encoder=False, apply_unet=True)
    train(network)
    network.eval()
    file = folder / "network.safetensors"
    network.save_weights(str(file), None, None)
    meant = Models(None, {"transformer": model}).outputs()
    adapted = {lora.lora_name.removeprefix("lora_unet_") for lora in network.unet_loras}
    meant = {k: v for k, v in meant.items() if k.removeprefix("transformer.").replace(".", "_") in adapted}
    return Case(file, meant, lambda: models(family), "dora" in kind.split("+"))


def of_diffusers(
    family: str, kind: str, folder: Path, with_metadata: bool = True, with_text_encoder: bool = False
) -> Case:
    """What `save_lora_weights` of the pipeline saves. Without metadata alpha is the rank."""
    trained = models(family, with_text_encoder)
    for network in trained.networks.values():
        _add_adapter(network, kind, with_metadata)
    layers = {}
    for component, network in trained.networks.items():
        state = get_peft_model_state_dict(network)
        layers[f"{component}_lora_layers"] = (
            convert_state_dict_to_diffusers(state) if component == "text_encoder" else state
        )
    metadata = _collate_lora_metadata(trained.networks) if with_metadata else {}
    trained.loader.save_lora_weights(folder, weight_name="diffusers.safetensors", **layers, **metadata)
    file = folder / "diffusers.safetensors"
    return Case(file, trained.outputs(), lambda: models(family, with_text_encoder), "dora" in kind.split("+"))


def with_alphas(case: Case, alpha: float | None, rslora_flag: bool = False) -> Path:
    """The case's file with an alpha tensor for each module (None: its rank), as other programs add."""
    tensors = load_file(case.file)
    for key, tensor in list(tensors.items()):
        if key.endswith(".lora_A.weight"):
            number = float(tensor.shape[0]) if alpha is None else alpha
            tensors[key.replace("lora_A.weight", "alpha")] = torch.tensor(number)
    if rslora_flag:
        tensors["use_rslora_flag"] = torch.tensor(True)
    file = case.file.with_name("alphas.safetensors")
    save_file(tensors, file)
    return file


def difference(models: Models, meant: dict[str, torch.Tensor]) -> float:
    """The largest difference of a layer's output, relative to the largest entry."""
    found = models.outputs()
    return distance({path: found[path] for path in meant}, meant)


def _add_adapter(network: nn.Module, kind: str, free_alpha: bool) -> None:
    names = sorted({name.split(".")[-1] for name, layer in network.named_modules() if isinstance(layer, nn.Linear)})
    targets = [name for name in names if name.endswith(TARGETS)]
    patterns = {"rank_pattern": {targets[0]: RANKS[1]}}
    alpha = ALPHA if free_alpha else RANKS[0]
    patterns["alpha_pattern"] = {targets[-1]: OTHER_ALPHA} if free_alpha else {targets[0]: RANKS[1]}
    config = LoraConfig(
        r=RANKS[0],
        lora_alpha=alpha,
        target_modules=targets,
        use_rslora="rslora" in kind and free_alpha,
        use_dora="dora" in kind.split("+"),
        **patterns,
    )
    torch.manual_seed(5)
    network.add_adapter(config)  # type: ignore[operator]
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
        elif "magnitude" in name:
            parameter.data.mul_(1 + 0.1 * torch.rand_like(parameter))
    network.eval()


def _unet() -> nn.Module:
    torch.manual_seed(3)
    unet: nn.Module = diffusers.UNet2DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        transformer_layers_per_block=1,
        cross_attention_dim=32,
        norm_num_groups=8,
    )
    return unet.requires_grad_(False).eval()


def _text_encoder() -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(4)
    config = CLIPTextConfig(
        hidden_size=16, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2, vocab_size=20,
        projection_dim=8, max_position_embeddings=8,
    )  # fmt: skip
    encoder: nn.Module = CLIPTextModel(config)
    return encoder.requires_grad_(False).eval()
