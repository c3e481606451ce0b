"""The functions of a network module for an architecture; `lora_wan` and the others publish them.

The algorithms `loha`, `lokr` and `oft` serve every architecture. They get it from the option `architecture`, or find it
by the classes and layers of the model.
"""

import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from lora_inspect.architectures.record import Architecture, Switch, Training
from lora_inspect.architectures.trained import blocks_of, by_option, family_of, training_of

from ..files import reading
from ..files.file_names import FileNames
from ..modules.lora_module import LoRAModule
from ..modules.module_merging import LoRAInfModule
from ..network_args import NetworkArguments, NetworkOption, parse, read_bool, read_keywords
from . import creation, layer_options
from .construction import check_model, listed_encoders
from .creation import PREFIX
from .layer_options import ALPHAS, RATES
from .network import LoRANetwork
from .targets import EncoderTargets, UnmatchedWeights, class_name, has_kernel, named_leaves
from .unet_blocks import trains_convolutions

logger = logging.getLogger(__name__)

_ALPHAS = ("conv_alpha", "alpha_pattern")
_CONV_1X1, _TRAIN_T5 = "conv_dim_1x1", "train_t5xxl"


class TrainedAlgorithm(NamedTuple):
    """The algorithm of a network module: the classes of its modules, and its own options.

    `has_scale` says whether alpha is a scale of its change.
    """

    name: str
    module_class: Any
    inference_class: Any
    options: Mapping[str, NetworkOption] = {}
    has_scale: bool = True

    def keywords(self, options: NetworkArguments) -> dict[str, Any]:
        """Return the values of the algorithm's own options, as arguments of its modules."""
        return {name: options.extra[name] for name in self.options}


LORA = TrainedAlgorithm("LoRA", LoRAModule, LoRAInfModule)


class CreateNetwork(Protocol):
    """The type of `create_arch_network` and of `create_network`, the name that other trainers call."""

    def __call__(
        self,
        multiplier: float,
        network_dim: int | None,
        network_alpha: float | None,
        vae: Any,
        text_encoders: Any,
        unet: nn.Module,
        neuron_dropout: float | None = None,
        **kwargs: Any,
    ) -> LoRANetwork:
        """Create a network; `kwargs` are network_args, see `networks.network_args`."""


class CreateNetworkFromWeights(Protocol):
    """The type of `create_arch_network_from_weights`."""

    def __call__(
        self,
        multiplier: float,
        weights_sd: Mapping[str, Tensor],
        text_encoders: Any = None,
        unet: nn.Module | None = None,
        for_inference: bool = False,
        **kwargs: Any,
    ) -> LoRANetwork:
        """Create the network that `weights_sd` belongs to, without loading them."""


class CreateNetworkFromFile(Protocol):
    """The type of `create_network_from_weights` in sd-scripts and LyCORIS."""

    def __call__(
        self,
        multiplier: float,
        file: str | os.PathLike[str] | None,
        vae: Any,
        text_encoder: Any,
        unet: nn.Module,
        weights_sd: Mapping[str, Tensor] | None = None,
        for_inference: bool = False,
        **kwargs: Any,
    ) -> tuple[LoRANetwork, Mapping[str, Tensor]]:
        """Return the network of a file, and its weights; `weights_sd` takes precedence over `file`."""


class Functions(NamedTuple):
    """The functions that a trainer or a generator calls in a network module."""

    create_arch_network: CreateNetwork
    create_arch_network_from_weights: CreateNetworkFromWeights
    create_network_from_file: CreateNetworkFromFile
    prepare_network: Callable[[LoRANetwork, Any], None]


def functions_of(module: str, architecture: Architecture | None, algorithm: TrainedAlgorithm = LORA) -> Functions:
    """Return the functions of the network module called `module`.

    Without an `architecture` they find it themselves.
    """

    def create_arch_network(
        multiplier: float,
        network_dim: int | None,
        network_alpha: float | None,
        vae: Any,
        text_encoders: Any,
        unet: nn.Module,
        neuron_dropout: float | None = None,
        **kwargs: Any,
    ) -> LoRANetwork:
        """Create a network; `kwargs` are network_args, see `networks.network_args`."""
        unet = check_model(unet)
        family = architecture or _pop_architecture(kwargs, unet)
        training = training_of(family)
        module_class = kwargs.pop("module_class", None) or algorithm.module_class
        module_kwargs = kwargs.pop("module_kwargs", {})
        options = parse_options(algorithm, kwargs, network_alpha, neuron_dropout, _own_options(family))
        encoders = _encoders(training, text_encoders, options.extra)
        blocks = _blocks(training, unet, options)
        options = _with_chosen_excludes(training, options)
        layers = layer_options.values_of(family, training, unet, blocks, encoders, options)
        excludes = [*_excludes(training, options), *_excluded_in_conv_blocks(training, unet, options)]
        network = creation.create_network(
            blocks,
            PREFIX,
            multiplier,
            network_dim,
            network_alpha,
            vae,
            text_encoders,
            unet,
            neuron_dropout,
            module_class=module_class,
            module_kwargs={**read_keywords("module_kwargs", module_kwargs), **algorithm.keywords(options)},
            default_exclude_patterns=excludes,
            default_include_patterns=training.includes,
            arguments=replace(options, layers=layers),
            encoders=encoders,
        )
        network.train_t5xxl = bool(options.extra.get(_TRAIN_T5))
        network.left_out.switches = _switches(training)
        network.name_files(file_names(family, unet))
        network.log_readers()
        return network

    def create_arch_network_from_weights(
        multiplier: float,
        weights_sd: Mapping[str, Tensor],
        text_encoders: Any = None,
        unet: nn.Module | None = None,
        for_inference: bool = False,
        **kwargs: Any,
    ) -> LoRANetwork:
        """Create the network that `weights_sd` belongs to, without loading them.

        `kwargs` are the options of `creation.create_network_from_weights`.
        """
        if unet is None:
            raise ValueError("unet is None; pass the model that the weights are for")
        family = architecture or _pop_architecture(kwargs, unet)
        settled = [name for name in algorithm.options if kwargs.pop(name, None) is not None]
        known = _own_options(family)
        own = {name: kwargs.pop(name) for name in known if name in kwargs}
        settled += sorted(parse(own, extra=known).given.difference(RATES))
        if settled:
            logger.warning(f"{', '.join(settled)}: no effect, as the weights already settle that")
        encoders = _encoders(training_of(family), text_encoders)
        rates = parse({name: value for name, value in own.items() if name in RATES}, extra=known)
        layers = layer_options.values_of(family, training_of(family), unet, None, encoders, rates)
        names = file_names(family, unet)
        named = names.from_file(weights_sd, kwargs.pop("metadata", None) or {})
        default = algorithm.inference_class if for_inference else algorithm.module_class
        network = creation.create_network_from_weights(
            None,
            multiplier,
            named.tensors,
            text_encoders,
            unet,
            for_inference,
            module_class=kwargs.pop("module_class", None) or default,
            metadata=named.metadata or None,
            encoders=encoders,
            layers=layers,
            **kwargs,
        )
        network.name_files(names)
        if not for_inference:
            network.log_readers()
        return network

    def create_network_from_file(
        multiplier: float,
        file: str | os.PathLike[str] | None,
        vae: Any,
        text_encoder: Any,
        unet: nn.Module,
        weights_sd: Mapping[str, Tensor] | None = None,
        for_inference: bool = False,
        **kwargs: Any,
    ) -> tuple[LoRANetwork, Mapping[str, Tensor]]:
        """Return the network of a file, and its weights, as in sd-scripts and LyCORIS.

        `weights_sd` takes precedence over `file`. The metadata of the file count as well.
        """
        where = ""
        if weights_sd is None:
            if file is None:
                raise ValueError("neither a file nor weights_sd is given")
            opened = reading.open_weights(os.fspath(file))
            # `merge_to` gets the weights without the metadata.
            weights_sd, kwargs["metadata"] = reading.with_whole_alphas(*opened)
            where = f"{os.fspath(file)}: "
        try:
            network = create_arch_network_from_weights(
                multiplier, weights_sd, text_encoder, unet, for_inference, **kwargs
            )
        except UnmatchedWeights as error:
            raise ValueError(f"{where}{error}") from None
        return network, weights_sd

    def prepare_network(network: LoRANetwork, args: Any) -> None:
        """Call the network's method of this name.

        Trainers call it only if a network module has it.
        """
        network.prepare_network(args)

    made = (create_arch_network, create_arch_network_from_weights, create_network_from_file, prepare_network)
    for function in made:
        function.__module__, function.__qualname__ = module, function.__name__
    return Functions(*made)


def _own_options(architecture: Architecture) -> dict[str, NetworkOption]:
    """Return the options of an architecture: for its layers, its switches, and its text encoders."""
    training = training_of(architecture)
    own = layer_options.options_of(architecture)
    own |= {switch.name: NetworkOption(read_bool, switch.default) for switch in training.switches}
    own |= {encoder.switch: NetworkOption(read_bool, False) for encoder in training.text_encoders if encoder.switch}
    return {**own, _CONV_1X1: NetworkOption(read_bool, True)} if training.conv_classes else own


def _encoders(
    training: Training, text_encoders: Any, switches: Mapping[str, Any] | None = None
) -> list[EncoderTargets]:
    """Return those of a trainer's text encoders to adapt; without `switches` all that can be."""
    return [
        EncoderTargets(known.prefix, model, known.classes)
        for known, model in zip(training.text_encoders, listed_encoders(text_encoders), strict=False)
        if isinstance(model, nn.Module) and (switches is None or not known.switch or switches.get(known.switch))
    ]


def _blocks(training: Training, unet: nn.Module, options: NetworkArguments) -> tuple[str, ...] | None:
    """Return the class names of the blocks to adapt, or None for the whole model."""
    blocks = blocks_of(training, getattr(unet, training.task_attribute or "", None))
    return (*blocks, *training.conv_classes) if blocks is not None and trains_convolutions(options) else blocks


def _excluded_in_conv_blocks(training: Training, unet: nn.Module, options: NetworkArguments) -> list[str]:
    """Return a pattern for each layer without a kernel in blocks of convolutions, for conv_dim_1x1=False."""
    if not trains_convolutions(options) or options.extra.get(_CONV_1X1, True):
        return []
    return [re.escape(path) for path, leaf in named_leaves(unet, training.conv_classes) if not has_kernel(leaf)]


def target_classes(architecture: Architecture) -> list[str] | None:
    """Return the class names of `*_TARGET_REPLACE_MODULES`, or None for the whole model.

    Other programs import them.
    """
    classes = training_of(architecture).classes
    return None if classes is None else list(classes)


def _pop_architecture(kwargs: dict[str, Any], unet: nn.Module) -> Architecture:
    name = kwargs.pop("architecture", None)
    if name is not None:
        return by_option(str(name))
    return family_of({class_name(module) for module in unet.modules()}, [path for path, _ in named_leaves(unet)])


def parse_options(
    algorithm: TrainedAlgorithm,
    kwargs: Mapping[str, Any],
    network_alpha: float | None,
    neuron_dropout: float | None = None,
    switches: Mapping[str, NetworkOption] | None = None,
) -> NetworkArguments:
    """Return the options of an algorithm, from network_args; `switches` are those of an architecture.

    If the algorithm has no scale, its options are left out, and a line in the log names the given ones.
    """
    options = parse(kwargs, neuron_dropout, extra={**(switches or {}), **algorithm.options})
    if algorithm.has_scale:
        return options
    given = [
        *(["network_alpha"] if network_alpha else []),
        *(name for name in (*_ALPHAS, *ALPHAS) if name in options.given),
    ]
    if given:
        logger.info(f"{', '.join(given)}: no effect, as {algorithm.name} has no scale")
    return options.without(*_ALPHAS)


def _with_chosen_excludes(training: Training, options: NetworkArguments) -> NetworkArguments:
    """Return the options with the excludes of switches that the user set as the user's excludes."""
    chosen = [pattern for switch, pattern in _excluding(training, options) if switch.name in options.given]
    return replace(options, exclude_patterns=(*options.exclude_patterns, *chosen))


def _excludes(training: Training, options: NetworkArguments) -> list[str]:
    switched = [pattern for switch, pattern in _excluding(training, options) if switch.name not in options.given]
    return [*training.excludes, *switched]


def _excluding(training: Training, options: NetworkArguments) -> list[tuple[Switch, str]]:
    """Return each switch that excludes layers, with each of its patterns."""
    return [
        (switch, pattern)
        for switch in training.switches
        if options.extra[switch.name] == switch.excluding
        for pattern in switch.excludes
    ]


def _switches(training: Training) -> dict[str, str]:
    """Return the values of switches that include layers, by the pattern that excludes these."""
    return {
        pattern: f"{switch.name}={not switch.excluding}" for switch in training.switches for pattern in switch.excludes
    }


def file_names(architecture: Architecture, unet: nn.Module) -> FileNames:
    """Return the names in the files of a model of this family."""
    return FileNames(architecture, [path for path, _ in named_leaves(unet)], PREFIX)
