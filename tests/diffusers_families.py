"""The class of diffusers of every family that has one, at its smallest, and the loaders of their pipelines.

No weight is zeros, as some are before training: the norm of such a row of DoRA would be that of its factors alone.
"""

import warnings
from collections import OrderedDict
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers_cases import LOADERS as TRAINED_LOADERS
from diffusers_cases import lora_pipeline
from safetensors.torch import load_file
from tiny_diffusers import DIFFUSERS, HEADS, HUNYUAN, STREAMS
from torch import Tensor, nn

from lora_inspect.architectures import by_name

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import diffusers

# The pipelines of HunyuanVideo 1.5 and HunyuanImage load no adapters.
LOADERS = {
    **TRAINED_LOADERS,
    "ace_step_1_5": "AceStepLoraLoaderMixin",
    "anima": "AnimaLoraLoaderMixin",
    "auraflow": "AuraFlowLoraLoaderMixin",
    "chroma": "FluxLoraLoaderMixin",
    "cosmos": "CosmosLoraLoaderMixin",
    "hidream_i1": "HiDreamImageLoraLoaderMixin",
    "ltx2": "LTX2LoraLoaderMixin",
    "ltx_video": "LTXVideoLoraLoaderMixin",
    "lumina2": "Lumina2LoraLoaderMixin",
    "sd15": "StableDiffusionLoraLoaderMixin",
    "sd2": "StableDiffusionLoraLoaderMixin",
    "sd3": "SD3LoraLoaderMixin",
}
COMPONENTS = ("text_encoder", "text_encoder_2", "text_encoder_3", "connectors", "text_conditioner")

# As many levels as the published models, of which the names of the original layout count the blocks.
UNET: dict[str, Any] = {
    "block_out_channels": (8, 8, 8, 8),
    "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
    "attention_head_dim": 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
SDXL = {
    **UNET,
    "block_out_channels": (8, 8, 8),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 1, 2),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 80,
    "cross_attention_dim": 2048,
}
COSMOS = {
    **HEADS,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 1,
    "text_embed_dim": 16,
    "adaln_lora_dim": 8,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    **DIFFUSERS,
    "ace_step_1_5": (
        "AceStepTransformer1DModel",
        {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
        },
    ),
    "anima": ("CosmosTransformer3DModel", COSMOS),
    "auraflow": (
        "AuraFlowTransformer2DModel",
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "num_mmdit_layers": 1,
            "num_single_dit_layers": 1,
            "joint_attention_dim": 16,
            "caption_projection_dim": 32,
            "sample_size": 8,
            "pos_embed_max_size": 16,
        },
    ),
    "chroma": (
        "ChromaTransformer2DModel",
        {
            **STREAMS,
            "joint_attention_dim": 16,
            "axes_dims_rope": (4, 4, 8),
            "approximator_num_channels": 16,
            "approximator_hidden_dim": 32,
            "approximator_layers": 1,
        },
    ),
    # What Cosmos 1 and Anima have not tells the family, of which files do not speak.
    "cosmos": (
        "CosmosTransformer3DModel",
        {**COSMOS, "use_crossattn_projection": True, "img_context_dim_in": 16, "img_context_dim_out": 16},
    ),
    "hidream_i1": (
        "HiDreamImageTransformer2DModel",
        {
            **STREAMS,
            "patch_size": 2,
            "caption_channels": [16, 16],
            "text_emb_dim": 16,
            "num_routed_experts": 2,
            "max_resolution": (16, 16),
            "llama_layers": [0, 1],
            "axes_dims_rope": (8, 4, 4),
        },
    ),
    "hunyuan_image": (
        "HunyuanImageTransformer2DModel",
        {
            **HUNYUAN,
            "num_single_layers": 1,
            "rope_axes_dim": (4, 6),
            "patch_size": (1, 1),
            "text_embed_2_dim": 16,
            "guidance_embeds": True,
        },
    ),
    "ltx2": (
        "LTX2VideoTransformer3DModel",
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 1,
            "cross_attention_dim": 32,
            "caption_channels": 16,
            "audio_in_channels": 4,
            "audio_out_channels": 4,
            "audio_num_attention_heads": 2,
            "audio_attention_head_dim": 8,
            "audio_cross_attention_dim": 16,
            "gated_attn": True,
            "audio_gated_attn": True,
            "cross_attn_mod": True,
        },
    ),
    "ltx_video": (
        "LTXVideoTransformer3DModel",
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 1,
            "cross_attention_dim": 32,
            "caption_channels": 16,
        },
    ),
    "lumina2": (
        "Lumina2Transformer2DModel",
        {
            "in_channels": 4,
            "hidden_size": 24,
            "num_layers": 2,
            "num_refiner_layers": 1,
            "num_attention_heads": 2,
            "num_kv_heads": 1,
            "multiple_of": 8,
            "cap_feat_dim": 16,
            "axes_dim_rope": (4, 4, 4),
        },
    ),
    "sd15": ("UNet2DConditionModel", {**UNET, "cross_attention_dim": 768}),
    "sd2": ("UNet2DConditionModel", {**UNET, "cross_attention_dim": 1024, "use_linear_projection": True}),
    "sd3": (
        "SD3Transformer2DModel",
        {
            **HEADS,
            "in_channels": 4,
            "num_layers": 2,
            "caption_projection_dim": 32,
            "dual_attention_layers": (0,),
            "joint_attention_dim": 16,
            "pooled_projection_dim": 16,
            "sample_size": 8,
            "pos_embed_max_size": 8,
        },
    ),
    "sdxl": ("UNet2DConditionModel", SDXL),
}


def copied(network: nn.Module) -> nn.Module:
    """A copy of a model with parameters, buffers and modules of its own, and all else shared.

    Loading an adapter changes nothing else, and `deepcopy`, which copies every setting, takes five times as long.
    """
    copies: dict[int, Any] = {id(None): None}

    def of(module: nn.Module | None) -> Any:
        if id(module) not in copies:
            own = copies[id(module)] = object.__new__(type(module))
            # The hooks are in dictionaries too.
            for name, value in vars(module).items():
                own.__dict__[name] = value.copy() if type(value) in (dict, OrderedDict) else value
            own.__dict__["_modules"] = {name: of(child) for name, child in module._modules.items()}
            own.__dict__["_parameters"] = {name: of_tensor(one) for name, one in module._parameters.items()}
            own.__dict__["_buffers"] = {name: of_tensor(one) for name, one in module._buffers.items()}
        return copies[id(module)]

    def of_tensor(tensor: Tensor | None) -> Any:
        if id(tensor) not in copies:
            own = tensor.detach().clone()
            is_parameter = isinstance(tensor, nn.Parameter)
            copies[id(tensor)] = nn.Parameter(own, tensor.requires_grad) if is_parameter else own
        return copies[id(tensor)]

    return of(network)


def model(family: str) -> nn.Module:
    """The model of a family, frozen; the same weights each time."""
    return copied(_made(family))


@cache
def _made(family: str) -> nn.Module:
    kind, arguments = FAMILIES[family]
    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made: nn.Module = getattr(diffusers, kind)(**arguments)
    for parameter in made.requires_grad_(False).parameters():
        if not parameter.any():
            parameter.normal_()
    return made.eval()


def text_encoder(number: int) -> nn.Module:
    """A tiny CLIP, frozen; another one for another number."""
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(40 + number)
    config = CLIPTextConfig(
        hidden_size=16, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2, vocab_size=20,
        projection_dim=8, max_position_embeddings=8,
    )  # fmt: skip
    encoder: nn.Module = CLIPTextModel(config)
    return encoder.requires_grad_(False).eval()


def layers(network: nn.Module) -> dict[str, nn.Module]:
    """The layers that adapters change, by path."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return {path: layer for path, layer in network.named_modules() if path and isinstance(layer, kinds)}


def adapted(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """The weights' shapes of the layers that the adapters of a test change: of a UNet a third of them.

    One of HunyuanVideo 1.5 and HunyuanImage, which has a width of its own, takes longer than all others.
    """
    shapes = {path: tuple(layer.weight.shape) for path, layer in layers(network).items() if layer.weight.numel() < 1e6}
    return dict(list(shapes.items())[:: 1 + len(shapes) // 80])


def outputs(network: nn.Module, paths: Any) -> dict[str, Tensor]:
    """What the layers at the paths make of one input each, the same for the same layer."""
    found = {}
    for path in paths:
        layer = network.get_submodule(path)
        own = getattr(layer, "base_layer", layer)
        numbers = torch.Generator().manual_seed(len(path))
        features = getattr(own, "in_features", None)
        shape = (3, 5, features) if features else (2, own.in_channels, *(2 * size for size in own.kernel_size))
        with torch.no_grad():
            found[path] = layer(torch.randn(shape, generator=numbers))
    return found


def load(family: str, networks: dict[str, nn.Module], adapter: Path | dict[str, Tensor]) -> None:
    """Loads a file or tensors as the pipeline of the family with these networks does; raises whatever that raises."""
    loader = getattr(lora_pipeline, LOADERS[family])
    pipeline = type("Pipeline", (loader,), {"hf_device_map": None, "components": {}})()
    for name in COMPONENTS:
        setattr(pipeline, name, None)
    for name, network in networks.items():
        setattr(pipeline, name, network)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline.load_lora_weights(adapter if isinstance(adapter, dict) else str(adapter))


def says(family: str) -> dict[str, str]:
    """What a file of a model as small as these says, whose names alone may be of several families."""
    return {"ss_base_model_version": (*by_name(family).metadata_names, "")[0]}


def merged_into(network: nn.Module, file: Path) -> None:
    """Gives the network the weights of a file."""
    own = network.state_dict()
    found = load_file(file)
    network.load_state_dict({name: value.to(own[name].dtype) for name, value in found.items()})
