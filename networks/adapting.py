"""`adapt`: a network over any model, for your own training loop."""

import re
from collections.abc import Sequence
from typing import Any

from torch import nn

from lora_inspect.architectures.record import Architecture
from lora_inspect.architectures.trained import family_of

from . import loha, lokr, oft
from .files.state_names import Part, parts_of
from .kernels.coded_weight import device_of
from .network import creation, summary
from .network.architecture_module import LORA, file_names, parse_options
from .network.network import LoRANetwork
from .network.targets import EncoderTargets, class_name, named_leaves
from .network_args import argument_of_trainers, read_alpha, read_keywords, read_patterns, read_rank

_ALGORITHMS = {"lora": LORA, "loha": loha.TRAINED, "lokr": lokr.TRAINED, "oft": oft.TRAINED}
# What trainers have as arguments, and other programs as options, is a parameter here.
_PARAMETERS = {"--network_dim": "rank", "--network_alpha": "alpha"}
_LEARNING_RATE = "--learning_rate"


def adapt(
    model: Any,
    targets: str | Sequence[str] | None = None,
    rank: int = creation.DEFAULT_RANK,
    alpha: float | None = None,
    *,
    algorithm: str = "lora",
    text_encoders: bool | Sequence[str] = False,
    multiplier: float = 1.0,
    rslora: bool = False,
    dora: bool = False,
    **network_args: Any,
) -> LoRANetwork:
    """Freeze `model`, put a new adapter into each Linear and convolution, and return the network.

    `model` is a module, or the object in which OneTrainer, ai-toolkit or a pipeline of diffusers holds its models. Its
    transformer or UNet is adapted. With `text_encoders` all layers of its text encoders are adapted too, or only of the
    named ones: `text_encoder`, `text_encoder_2`, ….

    Each of the `targets` is a class name or a regular expression for whole dotted paths of modules; the layers in them
    are adapted. None stands for all layers of the model. An `alpha` of None or 0 gives scale 1. `algorithm` is lora,
    loha, lokr or oft. `network_args` are the options of docs/networks.md; `rslora` and `dora` are `use_rslora` and
    `use_dora`.

    The parameters are float32, each on the device of its layer, or on the CPU for layers on the device meta.
    `network.save_weights(file)` writes them, and `network.load_weights(file)` reads them. `network.remove()` takes the
    adapters out of the model, whose parameters stay frozen. Raises ValueError for an unusable option, and for a target
    without a layer, with the classes that have one.
    """
    options = _spelled_out(network_args, use_rslora=rslora, use_dora=dora)
    chosen = _algorithm(algorithm)
    part, *held = parts_of(model)
    model, encoders = part.model, _chosen_encoders(held, text_encoders)
    rank = read_rank("rank", rank)
    alpha = None if alpha is None else read_alpha("alpha", alpha)
    module_class = options.pop("module_class", None) or chosen.module_class
    module_kwargs = options.pop("module_kwargs", None) or {}
    arguments = parse_options(chosen, options, alpha)
    names = _checked(model, targets)
    network = creation.create_network(
        names,
        creation.PREFIX,
        multiplier,
        rank,
        alpha,
        None,
        None,
        model,
        module_class=module_class,
        module_kwargs={**read_keywords("module_kwargs", module_kwargs), **chosen.keywords(arguments)},
        target_paths=names or (),
        arguments=arguments,
        encoders=[EncoderTargets(one.prefix, one.model, None) for one in encoders],
    )
    network.part_names = {one.prefix: one.name for one in (part, *encoders)}
    family = _family(model)
    if family is not None:
        network.name_files(file_names(family, model))
    network.log_readers()
    network.apply_to(None, model)
    for one in (part, *encoders):
        one.model.requires_grad_(False)
    _move(network)
    return network


def _chosen_encoders(held: Sequence[Part], chosen: bool | Sequence[str]) -> list[Part]:
    """Return the text encoders to adapt.

    Raises ValueError for one that the model does not have.
    """
    if isinstance(chosen, bool):
        if chosen and not held:
            raise ValueError("text_encoders=True, but there are none; pass the object that holds them and the model")
        return [*held] if chosen else []
    names = [chosen] if isinstance(chosen, str) else list(chosen)
    known = {part.name: part for part in held}
    if missing := [name for name in names if name not in known]:
        raise ValueError(f"text_encoders: the model has no {missing[0]}, but {', '.join(known) or 'none at all'}")
    return [known[name] for name in names]


def _spelled_out(network_args: dict[str, Any], **switches: bool) -> dict[str, Any]:
    """Return the options under their names in network_args.

    Raises ValueError for an option that is given twice or that is an argument here.
    """
    for name in network_args:
        argument = argument_of_trainers(name)
        if argument in _PARAMETERS:
            raise ValueError(f"unknown option {name!r}; it is {_PARAMETERS[argument]!r} here")
        if argument == _LEARNING_RATE:
            raise ValueError(f"unknown option {name!r}; give it to the optimizer, or to prepare_optimizer_params")
    for name, is_on in switches.items():
        if is_on and name in network_args:
            raise ValueError(f"{name} is given twice, as {name.removeprefix('use_')!r} too; leave one of them out")
    return {**{name: is_on for name, is_on in switches.items() if is_on}, **network_args}


def _algorithm(name: str) -> Any:
    if name not in _ALGORITHMS:
        raise ValueError(f"algorithm={name!r}: one of {', '.join(_ALGORITHMS)} was expected")
    return _ALGORITHMS[name]


def _checked(model: nn.Module, targets: str | Sequence[str] | None) -> list[str] | None:
    """Return the targets.

    Raises ValueError for targets that contain no layer of the model.
    """
    if targets is None:
        return None
    names = list(read_patterns("targets", [targets] if isinstance(targets, str) else targets))
    if not names:
        raise ValueError("targets is empty; leave it out to adapt every layer of the model")
    missing = [name for name in names if not any(named_leaves(model, [name], [name]))]
    if not missing:
        return names
    classes = summary.classes_with_layers(model, missing)
    if not classes:
        raise ValueError(
            f"targets: {' or '.join(map(repr, missing))} has no layer, as the model has no Linear layer and no "
            "convolution"
        )
    raise ValueError(
        f"targets: no module of the class or path {' or '.join(map(repr, missing))} has a Linear layer or a "
        f"convolution; the classes that have one are {', '.join(classes)}{_hint(model, missing)}"
    )


def _hint(model: nn.Module, missing: Sequence[str]) -> str:
    """Return a pattern hint for modules with a missing target as the last part of their path, or ""."""
    holders = {path for path, module in model.named_modules() if any(named_leaves(module))}
    for name in missing:
        for path in sorted(holders):
            if path and path.rpartition(".")[2] == name:
                return f"; for paths such as {path} write '.*{re.escape(name)}'"
    return ""


def _family(model: nn.Module) -> Architecture | None:
    """Return the family with trainers that name the layers, or None for any other model."""
    classes = {class_name(module) for module in model.modules()}
    try:
        return family_of(classes, [path for path, _ in named_leaves(model)])
    except ValueError:
        return None


def _move(network: LoRANetwork) -> None:
    """Move each adapter to the device of its layer, and the network if there is only one device."""
    devices = {device_of(lora.org_module) for lora in network.loras}
    if len(devices) == 1 and not any(device.type == "meta" for device in devices):
        network.to(devices.pop())
        return
    for lora in network.loras:
        device = device_of(lora.org_module)
        if device.type != "meta":
            lora.to(device)
