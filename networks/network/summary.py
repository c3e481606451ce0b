"""The log of a new network, and its parameter groups for an optimiser.

Source of the higher rate of the up factors: Hayou et al. 2024 (LoRA+).
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from lora_inspect.version import __version__

from ..files.reading import count
from ..modules.adapter_module import AdapterModule
from ..network_args import NATIVE, NO_VALUES, STANDARD, LayerValues, NetworkArguments
from .targets import Selection, class_name, has_kernel, named_leaves, value_at

logger = logging.getLogger(__name__)

# The least likeness of two names of classes that may be meant for each other.
_NEAR = 0.6
# In the order in which the summary names them.
DORA_OBSTACLES = ("non-Linear", "split_dims", "dropout", "rank_dropout")


def announce() -> None:
    """Log the name of this package: a trainer may have one of the same name."""
    # This file's folder is one of the package's.
    package = __name__.rpartition(".")[0].rpartition(".")[0]
    logger.info(f"{package} {__version__} from {Path(__file__).resolve().parents[1]}")


def log_dora(loras: Sequence[Any]) -> None:
    """Log the number of modules with DoRA, and of those without by reason."""
    reasons = Counter(getattr(lora, "dora_disabled_reason", None) for lora in loras)
    disabled = {reason: reasons[reason] for reason in DORA_OBSTACLES if reasons[reason]}
    text = f"DoRA enabled on {sum(getattr(lora, 'use_dora', False) for lora in loras)} modules"
    if disabled:
        text += f", disabled on: {', '.join(f'{number} {reason}' for reason, number in disabled.items())}"
    logger.info(text)
    if disabled:
        logger.info(f"DoRA disabled for {sum(disabled.values())} modules, which are trained without it")


def way_to_dora(loras: Sequence[Any]) -> str:
    """Return the options that would give magnitudes to modules without them, or leave these out."""
    are_sliced = [bool(getattr(lora, "split_dims", None)) for lora in loras]
    are_convolutions = [hasattr(lora.org_module, "kernel_size") for lora in loras]
    ways = ["train with dora_conv=True"] if any(are_convolutions) else []
    if any(are_sliced):
        ways.append("train without split_qkv and split_dims")
    if not all(sliced or conv for sliced, conv in zip(are_sliced, are_convolutions, strict=True)):
        ways.append("leave the other layers out with exclude_patterns")
    return " and ".join(ways)


def log_tlora(loras: Sequence[Any], min_rank: int) -> None:
    """Log the number of modules with T-LoRA, and of those with too few ranks for it."""
    whole = sum(lora.lora_dim <= min_rank for lora in loras)
    text = f"T-LoRA enabled on {len(loras) - whole} modules"
    if whole:
        text += f", all ranks at every timestep on: {whole} of rank {min_rank} or less (tlora_min_rank)"
    logger.info(f"{text}; programs that load the files apply all ranks at every timestep, and so do samples")


def log_ggpo(loras: Sequence[Any]) -> None:
    """Log the number of modules with GGPO, and the calls that its noise waits for."""
    modules = [lora for lora in loras if getattr(lora, "perturbation", None) is not None]
    logger.info(
        f"GGPO enabled on {count(modules, 'modules')}; the noise begins after the first update_grad_norms() and "
        "update_norms(), which sd-scripts calls before each step of the optimizer and musubi-tuner never"
    )


def log_selection(loras: Sequence[Any], selection: Selection, verbose: bool) -> None:
    """Log the effect of the user's patterns; with `verbose` every layer and the reason if it is left out."""
    for option, patterns in selection.unmatched.items():
        logger.warning(
            f"{option}: {', '.join(map(repr, patterns))} matches no layer that could be adapted; "
            "a pattern has to match the whole dotted name"
        )
    for option, patterns in selection.idle.items():
        reason = (
            "none of the layers that it matches is excluded, and it leaves out no others"
            if option == "include_patterns"
            else "a pattern before it matches all of its layers"
        )
        logger.warning(f"{option}: {', '.join(map(repr, patterns))} has no effect, as {reason}")
    if selection.unfit:
        logger.warning(f"{_unfit(selection)}; verbose=True lists them" if loras else _unfit(selection))
    if selection.rescued:
        logger.info(f"include_patterns keeps {len(selection.rescued)} excluded layers: {', '.join(selection.rescued)}")
    if not verbose:
        return
    for lora, target in zip(loras, selection.targets, strict=True):
        parameters = sum(parameter.numel() for parameter in lora.parameters())
        logger.info(f"{target.path}: {lora.lora_name}, rank {lora.lora_dim}, {parameters} parameters")
    for path, reason in (*selection.skipped.items(), *selection.unfit.items(), *selection.others.items()):
        logger.info(f"{path}: not adapted, because {reason}")
    total = sum(parameter.numel() for lora in loras for parameter in lora.parameters())
    left_out = len(selection.skipped) + len(selection.unfit)
    logger.info(f"{len(loras)} modules adapted, {total} parameters; {left_out} left out")


def why_nothing(selection: Selection, root: nn.Module, classes: Sequence[str] | None) -> str:
    """Return the reason why no layer of the model `root` is adapted, with the classes that it has."""
    told: list[str] = []
    if selection.skipped:
        told.append(f"every layer that could be adapted is left out: {_reasons(selection.skipped)}")
    if selection.unfit:
        told.append(_unfit(selection))
    if told:
        return "; ".join(told)
    has_blocks = classes is None or any(class_name(module) in classes for module in root.modules())
    if has_blocks or not any(named_leaves(root)):
        found = sorted({class_name(module) for module in root.modules()})
        sought = "Linear layer and no convolution" if has_blocks else f"block of the classes {', '.join(classes or ())}"
        return f"the model has no {sought}, but modules of the classes {', '.join(found)}"
    return (
        f"the model has no block of the classes {', '.join(classes or ())}, but these have Linear layers or "
        f"convolutions: {', '.join(classes_with_layers(root, classes or ()))}; lora_inspect.networks.adapt takes the "
        "classes of any model"
    )


def classes_with_layers(root: nn.Module, like: Sequence[str] = ()) -> list[str]:
    """Return the class names of a model's modules that are or hold a Linear layer or a convolution.

    The most similar to one of the names `like` come first, and the rest in alphabetical order.
    """
    ends = [
        (path, (0, *(at for at, sign in enumerate(path) if sign == "."), len(path))) for path, _ in named_leaves(root)
    ]
    holders = {path[:end] for path, of_path in ends for end in of_path}
    found = {class_name(module) for path, module in root.named_modules() if path in holders}
    return sorted(found, key=lambda name: (-max((_likeness(name, other) for other in like), default=0.0), name))


def _likeness(name: str, other: str) -> float:
    """Return the similarity of two names, from 0 to 1; 0 if they are too different."""
    shorter, longer = sorted((name.casefold(), other.casefold()), key=len)
    ratio = SequenceMatcher(None, shorter, longer).ratio()
    return ratio if ratio >= _NEAR or shorter in longer else 0.0


def _unfit(selection: Selection) -> str:
    """Return the number of layers that cannot be adapted, with the reasons and their classes."""
    return f"{count(selection.unfit, 'layers')} cannot be adapted: {_reasons(selection.unfit)}"


def _reasons(by_path: Mapping[str, str]) -> str:
    return "; ".join(f"{number} as {reason}" for reason, number in Counter(by_path.values()).most_common())


def log_idle(loras: Sequence[Any], selection: Selection, options: NetworkArguments) -> None:
    """Log the options of a network without an effect, as none of its layers is of their kind."""
    convolutions = [target.module for target in selection.targets if hasattr(target.module, "kernel_size")]
    if "dora_conv" in options.given and options.dora_conv and not convolutions:
        logger.warning("dora_conv: no effect, as no convolution is adapted")
    names = [name for name in ("conv_dim", "conv_alpha") if name in options.given and getattr(options, name)]
    if names and not any(map(has_kernel, convolutions)):
        logger.warning(f"{', '.join(names)}: no effect, as no convolution with a kernel above 1 is adapted")
    for name, other in (("ggpo_sigma", "ggpo_beta"), ("ggpo_beta", "ggpo_sigma")):
        if name in options.given and other not in options.given:
            logger.warning(f"{name}: no effect without {other}")
    whole = sum(getattr(lora, "is_whole", False) for lora in loras)
    if whole:
        logger.info(f"rank and alpha have no effect on {whole} of {len(loras)} modules, as their factors are whole")


def log_readers(loras: Sequence[Any], save_format: str, scale_is_folded: bool) -> None:
    """Log the programs that would apply another change from the files, in one line.

    These read alpha/rank and whole layers. `scale_is_folded` says that the files have the names of diffusers, so that
    only a magnitude can be misread.
    """
    plain = save_format == STANDARD or scale_is_folded
    sliced = sum(bool(getattr(lora, "split_dims", None)) for lora in loras)
    dora = sum(getattr(lora, "use_dora", False) for lora in loras)
    misread: list[str] = []
    if not plain and any(lora.use_rslora for lora in loras):
        misread.append("apply alpha/rank, which is 1/sqrt(rank) of the RS-LoRA change")
    if not plain and sliced:
        misread.append(f"leave out the {sliced} layers that have slices")
    way_out = "; save_format=standard is for them" if misread else ""
    has_scales = any(getattr(lora, "dora_scale_axes", 0) for lora in loras)
    if dora and not has_scales and (save_format == NATIVE or scale_is_folded):
        misread.append(f"leave out the magnitudes of the {dora} DoRA layers")
    elif dora:
        misread.append(
            f"differ over the magnitudes of the {dora} DoRA layers: musubi-tuner and sd-scripts leave them out, "
            "ComfyUI and Forge divide by the row norms of the base, InvokeAI by column norms"
        )
    if misread:
        logger.info(f"programs that know only plain LoRA will {', and '.join(misread)}{way_out}")
    _log_rotations(loras)


def _log_rotations(loras: Sequence[Any]) -> None:
    """Log, in one line, the options of OFT that ComfyUI reads as another change.

    Source: `calculate_weight` of comfy/weight_adapter/oft.py.
    """
    misread: list[str] = []
    constraint = max((getattr(lora, "constraint", 0.0) for lora in loras), default=0.0)
    if constraint:
        misread.append(
            f"limits the rotations of a layer to the norm {constraint:g}, and not to the constraint of {constraint:g} "
            "times its outputs"
        )
    if any(getattr(lora, "rescale", None) is not None for lora in loras):
        misread.append("leaves out the factors of rescaled=True")
    if misread:
        logger.info(f"ComfyUI {', and '.join(misread)}; merge the file into the base for it, with lora-inspect merge")


# Classes of prodigyopt and dadaptation that end a step with an error where the rates of two groups differ.
_OF_ONE_RATE = ("prodigy", "dadaptation", "dadaptadam", "dadaptadampreprint", "dadaptlion", "dadaptsgd")


class Rates(NamedTuple):
    """The learning rate of each module: of the first pattern that matches its dotted path, or the trainer's.

    `paths` are the dotted paths by module name. The values of `layers` by path come after the patterns: a rate instead
    of the trainer's, or a multiple of it for the layer's block.
    """

    trainer_s: float | None
    by_pattern: Mapping[str, float]
    paths: Mapping[str, str]
    layers: Mapping[str, LayerValues] = {}

    def own(self, name: str) -> float | None:
        """Return the rate that an option gives to the module called `name`, or None for the trainer's."""
        return value_at(self.by_pattern, self.paths.get(name, ""), self._of_layer(name).rate)

    def of(self, name: str) -> float | None:
        """Return the rate of the module called `name`; 0 and None mean that it is not trained."""
        own, weight = self.own(name), self._of_layer(name).lr_weight
        if own is not None:
            return own
        return self.trainer_s if self.trainer_s is None or weight == 1 else self.trainer_s * weight

    def group(self, name: str) -> tuple[float | None, int | None]:
        """Return the parameter group of the module called `name`: its own rate, or else its block."""
        own = self.own(name)
        return own, self._of_layer(name).block if own is None else None

    def is_weighted(self, name: str) -> bool:
        """Return True if the module called `name` has a multiple of the trainer's rate."""
        return self.own(name) is None and self._of_layer(name).lr_weight != 1

    def _of_layer(self, name: str) -> LayerValues:
        return self.layers.get(self.paths.get(name, ""), NO_VALUES)


# The options of LoRA+: for the model, for the model alone, and for text encoders.
PLUS_RATIOS = ("loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio")


class PlusRatio(NamedTuple):
    """The learning rate of up factors as a multiple of the others', from `option`; None if it is not given."""

    option: str
    ratio: float | None


class OptimizerPart(NamedTuple):
    """The modules of one model, with their name in parameter groups, their learning rates, and their LoRA+ ratio."""

    name: str
    modules: Sequence[AdapterModule]
    rates: Rates
    plus: PlusRatio

    @property
    def is_trained(self) -> bool:
        """True if at least one module has a rate above 0."""
        return any(self.rates.of(module.lora_name) for module in self.modules)


def check_optimizer(optimizer_type: str, parts: Sequence[OptimizerPart]) -> None:
    """Raise ValueError for groups of several rates with an optimiser that finds one for all.

    The error names the options. `parts` are those of the model and of each text encoder.
    """
    name = optimizer_type.rpartition(".")[2]
    if name.lower() not in _OF_ONE_RATE:
        return
    placed = [(part.rates, module.lora_name) for part in parts for module in part.modules]
    plain = {rate for rates, module in placed if (rate := rates.of(module))}
    own = {rate for rates, module in placed if (rate := rates.own(module))}
    weighted = any(rates.is_weighted(module) for rates, module in placed)
    raised = [part.plus.option for part in parts if part.is_trained and part.plus.ratio not in (None, 1)]
    options = list(dict.fromkeys(raised))
    if len(plain) > 1:
        options.append("lr_pattern" if own else "down_lr_weight and its like" if weighted else "text_encoder_lr")
    if options:
        raise ValueError(
            f"{' and '.join(options)}: {name} finds one learning rate for all parameters, and takes no groups "
            "with other rates but 0; leave it out, or train with another optimizer"
        )


def log_plus_ratios(parts: Sequence[OptimizerPart], ratios: Mapping[str, float | None]) -> None:
    """Log that `loraplus_lr_ratio` is not for text encoders if they train, and each of the `ratios` without an effect.

    `ratios` has the values of the three options. The last one of the `parts` is the model, and the others are the text
    encoders.
    """
    *encoders, model = parts
    trains_encoders = any(part.is_trained for part in encoders)
    shared, of_model, of_encoders = (ratios[option] is not None for option in PLUS_RATIOS)
    if shared and trains_encoders and not of_encoders:
        logger.info(
            "loraplus_lr_ratio: text encoders train at their plain rate, and sd-scripts would raise it too; "
            "loraplus_text_encoder_lr_ratio is the ratio for them"
        )
    elif shared and of_model:
        logger.info("loraplus_lr_ratio: no effect, as loraplus_unet_lr_ratio goes before it")
    elif shared and not model.is_trained:
        logger.warning("loraplus_lr_ratio: no effect, as the model is not trained")
    if of_model and not model.is_trained:
        logger.warning("loraplus_unet_lr_ratio: no effect, as the model is not trained")
    if of_encoders and not trains_encoders:
        logger.warning("loraplus_text_encoder_lr_ratio: no effect, as no text encoder is trained")


def build_groups(part: OptimizerPart) -> tuple[list[dict[str, Any]], list[str]]:
    """Return (groups, descriptions) of equal length and order: `name`, `name plus` and `name dora`.

    Empty groups are left out. With a LoRA+ ratio the up factors have a group of their own, at the rate of the others
    times that ratio. Magnitudes always have one, at the plain rate: optimisers that estimate a rate per group would
    find one for two scales.

    If learning rates have weights, each block has these three, as `name_block4`. The same groups follow for each rate
    of a pattern, in the order of the patterns, described as `name 5e-05` and so on. So the order depends only on the
    options and the model. A group without a rate is left out.
    """
    rates, plus_ratio = part.rates, part.plus.ratio
    places = {module.lora_name: rates.group(module.lora_name) for module in part.modules}
    plain = [place for place in dict.fromkeys(places.values()) if place[0] is None]
    own_rates = dict.fromkeys((*rates.by_pattern.values(), *(own for own, _ in places.values() if own is not None)))
    kinds = ("", "plus", "dora")
    groups: dict[tuple[float | None, int | None, str], list[nn.Parameter]] = {
        (own, block, kind): [] for own, block in (*plain, *((own, None) for own in own_rates)) for kind in kinds
    }
    rate_of: dict[tuple[float | None, int | None], float | None] = {}
    for module in part.modules:
        place = places[module.lora_name]
        rate_of[place] = rates.of(module.lora_name)
        for kind, parameters in module.parameter_groups().items():
            of_kind = "" if kind == "plus" and plus_ratio is None else kind
            groups[place[0], place[1], of_kind].extend(parameters)
    found: list[dict[str, Any]] = []
    descriptions: list[str] = []
    for (own, block, kind), parameters in groups.items():
        if not parameters:
            continue
        rate = rate_of[own, block]
        of_block = part.name if block is None else f"{part.name}_block{block}"
        description = " ".join(part for part in (of_block, "" if own is None else str(own), kind) if part)
        if not rate:
            logger.info(
                f"{description}: the learning rate is {rate}, so its {len(parameters)} parameters are not trained"
            )
            continue
        rate *= (plus_ratio or 1.0) if kind == "plus" else 1.0
        if rates.by_pattern or rates.layers:
            logger.info(f"{description}: {len(parameters)} parameters at the learning rate {rate:g}")
        found.append({"params": parameters, "lr": rate})
        descriptions.append(description)
    return found, descriptions
