"""The creation of a network from options or from weights.

The network modules of all architectures call it.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from ..files import loading, reading, standard_form
from ..modules.lora_module import LoRAModule
from ..modules.module_merging import LoRAInfModule
from ..network_args import LayerValues, NetworkArguments, parse
from . import summary
from .network import LoRANetwork
from .targets import EncoderTargets, Form, Splits, named_sizes

logger = logging.getLogger(__name__)

PREFIX = "lora_unet"
DEFAULT_RANK = 4

# Options that choose layers and how their factors start, which the weights have settled already.
_SETTLED = (
    "conv_dim",
    "enable_conv2d",
    "conv_alpha",
    "exclude_patterns",
    "include_patterns",
    "rank_pattern",
    "alpha_pattern",
    "init_lora_weights",
    "dora_conv",
)
# These too, where no layer of the weights has the slices that they ask for.
_SLICES = ("split_dims", "split_qkv")


def create_network(
    target_replace_modules: Sequence[str] | None,
    prefix: str,
    multiplier: float,
    network_dim: int | None,
    network_alpha: float | None,
    vae: Any,
    text_encoders: Any,
    unet: nn.Module,
    neuron_dropout: float | None = None,
    module_class: Any = None,
    module_kwargs: Mapping[str, Any] | None = None,
    default_exclude_patterns: Sequence[str] = (),
    default_include_patterns: Sequence[str] = (),
    target_paths: Sequence[str] = (),
    arguments: NetworkArguments | None = None,
    encoders: Sequence[EncoderTargets] = (),
    **kwargs: Any,
) -> LoRANetwork:
    """Create a network over the blocks of `target_replace_modules` (None: the whole model).

    `kwargs` are network_args; an architecture with options of its own parses them itself and passes `arguments`. A rank
    of None is 4, and an alpha of None or 0 gives scale 1. `module_class` makes the modules, called as LoRAModule is,
    and `module_kwargs` are further keywords for it. `target_paths` are regular expressions of further blocks, by their
    dotted paths. `encoders` are the text encoders to adapt. Raises ValueError for an unusable option, and RuntimeError
    if the model has no block.
    """
    summary.announce()
    if isinstance(arguments, str):
        raise ValueError("unknown network_args option 'arguments'")
    options = arguments or parse(kwargs, neuron_dropout)
    network = LoRANetwork(
        target_replace_modules,
        prefix,
        text_encoders,
        unet,
        multiplier,
        DEFAULT_RANK if network_dim is None else network_dim,
        network_alpha,
        module_class=module_class or LoRAModule,
        module_kwargs=module_kwargs,
        default_exclude_patterns=default_exclude_patterns,
        default_include_patterns=default_include_patterns,
        target_paths=target_paths,
        encoders=encoders,
        options=options,
    )
    network.check_reach()
    return network


def create_network_from_weights(
    target_replace_modules: Sequence[str] | None,
    multiplier: float,
    weights_sd: Mapping[str, Tensor],
    text_encoders: Any = None,
    unet: nn.Module | None = None,
    for_inference: bool = False,
    module_class: Any = None,
    module_kwargs: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
    encoders: Sequence[EncoderTargets] = (),
    layers: Mapping[str, LayerValues] | None = None,
    **kwargs: Any,
) -> LoRANetwork:
    """Create the network that `weights_sd` belongs to, without loading them.

    Its modules are the layers that the keys name, anywhere in the model; `target_replace_modules` is not needed. Rank,
    alpha and slices come from the tensors. The scale rule and DoRA come from the flags or the file's `metadata`. If
    neither has a scale rule, `use_rslora` in `kwargs` decides (network_args, as for a new network).

    Weights of `save_format=standard` have alphas of alpha/rank and whole layers. Given their metadata, `use_rslora` and
    the options of slices make a network of the same function as the one that wrote them. Raises ValueError for an
    unusable key, for a module without a layer, and if the weights contradict themselves or `kwargs`.
    """
    summary.announce()
    if unet is None:
        raise ValueError("unet is None; pass the model that the weights are for")
    options = parse(kwargs)
    splits = Splits(options.split_dims or {}, options.split_qkv)
    if metadata:
        weights_sd, metadata = reading.with_whole_alphas(weights_sd, metadata)
    read = reading.read(weights_sd, metadata, getattr(module_class, "reader", None))
    found = standard_form.in_slices(read, named_sizes(unet, PREFIX, splits).get)
    settled_options = _SETTLED if any(module.split_dims for module in found.modules.values()) else (*_SETTLED, *_SLICES)
    if unused := sorted(options.given.intersection(settled_options)):
        logger.warning(f"{', '.join(unused)}: no effect, as the weights already settle that")
    loading.check_base(found, pissa=False)
    settled = "use_rslora" in options.given
    rslora = options.use_rslora if settled else bool(found.rslora.value)
    alphas = {name: module.alpha for name, module in found.modules.items()}
    if rslora and standard_form.is_rank_stabilised(found, {}):
        alphas = {name: standard_form.native_alpha(alpha, found.modules[name].rank) for name, alpha in alphas.items()}
    else:
        loading.check_rslora(found, rslora, settled)
    dora = loading.has_dora(found)
    # Dropouts switch DoRA off in training, and leave weights without magnitudes.
    wants_dora = options.use_dora and not (options.neuron_dropout or options.rank_dropout)
    if "use_dora" in options.given and wants_dora != dora:
        loading.check_dora(found, found.modules if wants_dora else ())
        dora = wants_dora
    network = LoRANetwork(
        target_replace_modules,
        PREFIX,
        text_encoders,
        unet,
        multiplier,
        module_class=module_class or (LoRAInfModule if for_inference else LoRAModule),
        module_kwargs=module_kwargs,
        forms={
            name: Form(module.rank, alphas[name], module.split_dims, _keywords(module, dora and not found.has_rule))
            for name, module in found.modules.items()
        },
        encoders=encoders,
        options=replace(
            options.without(*_SETTLED, *_SLICES),
            use_rslora=rslora,
            use_dora=dora,
            dora_conv=dora and found.has_conv_magnitude,
            layers=layers or {},
        ),
    )
    network.rslora_settled = settled or metadata is not None
    return network


def _keywords(module: reading.ModuleWeights, dora_by_module: bool) -> Mapping[str, Any]:
    """Return the further arguments of a module.

    Slices have no magnitude, whether their factors are one pair or several. `dora_by_module` says that the tensors do
    not show which modules are convolutions and may lack a magnitude.
    """
    if dora_by_module:
        return {**module.keywords, "use_dora": module.has_magnitude, "dora_conv": True}
    return {**module.keywords, "use_dora": False} if module.has_slices else module.keywords
