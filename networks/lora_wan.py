"""The network module of Wan: `WanAttentionBlock` in its own code, `WanTransformerBlock` in diffusers."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from . import lora

WAN_TARGET_REPLACE_MODULES = ["WanAttentionBlock"]
DIFFUSERS_TARGETS = ["WanTransformerBlock"]
DEFAULT_EXCLUDES = (r".*(patch_embedding|text_embedding|time_embedding|time_projection|norm|head).*",)


def create_arch_network(
    multiplier: float,
    network_dim: int | None,
    network_alpha: float | None,
    vae: Any,
    text_encoders: Any,
    unet: nn.Module,
    neuron_dropout: float | None = None,
    **kwargs: Any,
) -> lora.LoRANetwork:
    """A new network; `kwargs` are network_args."""
    return lora.create_network(
        [*WAN_TARGET_REPLACE_MODULES, *DIFFUSERS_TARGETS],
        lora.PREFIX,
        multiplier,
        network_dim,
        network_alpha,
        vae,
        text_encoders,
        unet,
        neuron_dropout,
        default_exclude_patterns=DEFAULT_EXCLUDES,
        **kwargs,
    )


# The name that trainers fall back to; the call is the same.
create_network = create_arch_network


def create_arch_network_from_weights(
    multiplier: float,
    weights_sd: Mapping[str, Tensor],
    text_encoders: Any = None,
    unet: nn.Module | None = None,
    for_inference: bool = False,
    **kwargs: Any,
) -> lora.LoRANetwork:
    """The network that `weights_sd` belongs to; see `networks.lora.create_network_from_weights`."""
    return lora.create_network_from_weights(
        WAN_TARGET_REPLACE_MODULES, multiplier, weights_sd, text_encoders, unet, for_inference, **kwargs
    )
