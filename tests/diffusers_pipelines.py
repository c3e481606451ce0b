"""What a pipeline of diffusers makes of a file: the weights and biases of its tiny model with the adapter merged."""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import diffusers
import diffusers_families
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from lora_inspect.architectures import by_name

# As many layers a block as the published models, of which the names of the original layout count the blocks.
_SDXL = {
    "block_out_channels": (8, 8, 8),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 4,
    "norm_num_groups": 4,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 80,
    "cross_attention_dim": 2048,
}
# The layers that the files of the grid change, by a part of their path: those that trainers adapt most.
_TRAINED = {
    "wan": ("attn", "ffn"),
    "chroma": ("transformer_blocks.0.attn.to_", "ff"),
    "flux": ("transformer_blocks.0.attn.to_", "ff", "norm1"),
    "qwen_image": ("attn", "mlp"),
    "z_image": ("layers.", "context_refiner"),
    "sdxl": ("attn1.to_q", "attn2.to_out", "ff.net.0", "proj_in"),
}


@cache
def network(family: str) -> nn.Module:
    """The model of the family, never changed."""
    if family != "sdxl":
        return diffusers_families.model(family)
    torch.manual_seed(3)
    return diffusers.UNet2DConditionModel(**_SDXL).requires_grad_(False).eval()


@cache
def weights(family: str) -> Mapping[str, Tensor]:
    """The weights of the layers that files change, by path: the first and the last layer of those of one name."""
    layers = diffusers_families.layers(network(family))
    found = {
        path: layer.weight
        for path, layer in layers.items()
        if layer.weight.ndim == 2 and any(part in path for part in _TRAINED.get(family, ("",)))
        if not (family in ("flux", "chroma") and path.startswith("single"))
    }
    numbered: dict[str, list[str]] = {}
    for path in found:
        numbered.setdefault(re.sub(r"\b\d+\b", "0", path), []).append(path)
    return {path: found[path] for paths in numbered.values() for path in dict.fromkeys((paths[0], paths[-1]))}


def loaded(family: str, file: Path) -> dict[str, Tensor]:
    """The weights, and the biases as "path.bias", of the model with the file loaded; raises what the pipeline raises.

    Parameters that loading leaves without values are its failure too: the model cannot run with them.
    """
    own = diffusers_families.copied(network(family))
    diffusers_families.load(family, {by_name(family).pipeline_name: own}, file)
    if any(parameter.is_meta for parameter in own.parameters()):
        raise ValueError("parameters without values")
    found = {}
    for path, layer in own.named_modules():
        bias = getattr(getattr(layer, "base_layer", layer), "bias", None)
        if isinstance(layer, BaseTunerLayer):
            found[f"{path}.bias"] = _bias(layer, bias)
            # What PEFT does not fold is the bias of a layer that has none.
            layer.lora_bias = dict.fromkeys(getattr(layer, "lora_bias", ()), False)
            layer.merge()
            found[path] = layer.get_base_layer().weight
        elif isinstance(layer, nn.Linear) and ".lora_" not in path and not path.endswith(".base_layer"):
            found[path] = layer.weight
            found[f"{path}.bias"] = torch.zeros(layer.out_features) if bias is None else bias
    return found


def bias_of(family: str, path: str) -> Tensor:
    """The bias of a layer, zeros where it has none."""
    layer = network(family).get_submodule(path)
    return torch.zeros(layer.out_features) if layer.bias is None else layer.bias


def _bias(layer: BaseTunerLayer, bias: Tensor | None) -> Tensor:
    total = torch.zeros(layer.get_base_layer().out_features) if bias is None else bias.clone()
    for name, up in getattr(layer, "lora_B", {}).items():
        if up.bias is not None:
            total = total + layer.scaling[name] * up.bias
    return total
