"""The construction of adapter modules for the chosen layers."""

import logging
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from torch import nn

from ..files.file_names import module_name
from ..modules.base_forward import CONVOLUTIONS, weight_shape
from ..modules.lora_module import LoRAModule
from ..modules.perturbation import NO_SLICES
from ..modules.pissa import PissaModule
from ..network_args import KAIMING, ORTHOGONAL, PISSA, NetworkArguments, read_alpha, read_rank
from .targets import TargetLayer

logger = logging.getLogger(__name__)


_PLAIN = NetworkArguments()
# A rank that people use is no slip on a model whose layers are smaller, which is a toy.
_SMALL_MODEL_RANK = 1024


def refuse_options(module_class: Any, options: NetworkArguments) -> None:
    """Raise ValueError for an option of LoRA that is not one of `module_class.options`.

    A class without `options` gets all of them.
    """
    foreign = LoRAModule.options - getattr(module_class, "options", LoRAModule.options)
    for name in sorted(foreign):
        if getattr(options, name) != getattr(_PLAIN, name):
            reader = getattr(module_class, "reader", None)
            title = reader.algorithm.title if reader else module_class.__name__
            raise ValueError(f"{name} is not for {title}; leave it out")


def refuse_slices_with_noise(options: NetworkArguments) -> None:
    """Raise ValueError for GGPO with options of slices, whether a layer has these or not."""
    if options.has_ggpo and (options.split_qkv or options.split_dims):
        raise ValueError(NO_SLICES)


def check_model(unet: nn.Module | None) -> nn.Module:
    """Return the model.

    Raises ValueError if there is none, and for an object that is no model.
    """
    if unet is None:
        raise ValueError("unet is None; pass the model to adapt")
    if not isinstance(unet, nn.Module):
        raise ValueError(
            f"unet is a {type(unet).__name__}, but a model was expected; the arguments are multiplier, network_dim, "
            "network_alpha, vae, text_encoders, unet, in this order"
        )
    return unet


def listed_encoders(text_encoders: Any) -> Sequence[Any]:
    """Return the text encoders of a trainer, one or several, as a list."""
    return text_encoders if isinstance(text_encoders, list | tuple) else [text_encoders]


def read_sizes(network_dim: Any, network_alpha: Any) -> tuple[int, float | None]:
    """Return a trainer's rank and alpha as numbers.

    Raises ValueError for a rank or an alpha that no layer can have.
    """
    alpha = None if network_alpha is None else read_alpha("network_alpha", network_alpha)
    return read_rank("network_dim", network_dim), alpha


def refuse_ranks(module_class: Any, targets: Sequence[TargetLayer]) -> None:
    """Raise ValueError for an option with a rank that none of its layers can hold.

    A rank above the smaller side of a weight adds nothing but memory; it is common in networks of one rank with a few
    small layers. A class with a rank that is no size of its factors may have any rank: the largest makes LoKr's factors
    whole.
    """
    if not getattr(module_class, "rank_is_a_size", False):
        return
    sides: dict[tuple[str, int], int] = {}
    for target in targets:
        of = (target.rank_source, target.rank)
        sides[of] = max(sides.get(of, _SMALL_MODEL_RANK), min(_matrix_shape(target.module)))
    for (source, rank), side in sides.items():
        if rank > side:
            raise ValueError(f"{source}: a rank of {rank} is more than any of its layers holds; use {side} or less")


def choose_class(module_class: Any, init_lora_weights: str) -> Any:
    """Return the class of modules that starts its factors in the requested way.

    Raises TypeError for an object that cannot be called, and ValueError for a class that only has its own start.
    """
    if not callable(module_class):
        raise TypeError(f"module_class is {module_class!r}, but a class of adapter modules was expected")
    if init_lora_weights == KAIMING:
        return module_class
    if not (isinstance(module_class, type) and issubclass(module_class, LoRAModule)):
        name = getattr(module_class, "__name__", module_class)
        raise ValueError(f"init_lora_weights={init_lora_weights} is for LoRA, not for {name}; leave it out")
    if not init_lora_weights.startswith(PISSA):
        return module_class
    if module_class is not LoRAModule:
        raise ValueError(f"init_lora_weights={init_lora_weights} is for training LoRA, not for {module_class.__name__}")
    return PissaModule


def create_modules(
    module_class: Any,
    prefix: str,
    chosen: Sequence[TargetLayer],
    multiplier: float,
    init_lora_weights: str,
    keywords: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the modules of the layers `chosen`, by name.

    `keywords` are arguments of all modules, unless a target has its own. If the start needs it, a layer with fewer
    singular components than its rank gets that many. Raises ValueError for two layers of one name, and for a rank that
    the start does not support.
    """
    if module_class is PissaModule:
        chosen = _with_ranks_that_fit(chosen)
    if init_lora_weights == ORTHOGONAL:
        _check_orthogonal(chosen)
    if init_lora_weights != KAIMING:
        keywords = {"init_lora_weights": init_lora_weights, **keywords}
    created: dict[str, Any] = {}
    for target in chosen:
        name = module_name(prefix, target.path)
        if name in created:
            raise ValueError(f"two layers of the model are both called {name}; exclude one of them")
        # Only where there are slices, which not every class of modules knows.
        split = {"split_dims": target.split_dims} if target.split_dims else {}
        created[name] = module_class(
            name, target.module, multiplier, target.rank, target.alpha, **split, **{**keywords, **target.keywords}
        )
    return created


def _with_ranks_that_fit(chosen: Sequence[TargetLayer]) -> list[TargetLayer]:
    fitting = [target._replace(rank=min((target.rank, *_matrix_shape(target.module)))) for target in chosen]
    lowered = [fit for fit, target in zip(fitting, chosen, strict=True) if fit.rank != target.rank]
    if lowered:
        ranks = ", ".join(f"{target.path} {target.rank}" for target in lowered)
        logger.info(f"init_lora_weights=pissa: {len(lowered)} layers have fewer components than their rank: {ranks}")
    return fitting


def _matrix_shape(layer: Any) -> tuple[int, ...]:
    """Return the sides that bound the rank."""
    out_features, *columns = weight_shape(layer)
    return out_features, prod(columns)


def _check_orthogonal(chosen: Sequence[TargetLayer]) -> None:
    convolutions = sum(isinstance(target.module, CONVOLUTIONS) for target in chosen)
    if convolutions:
        logger.warning(f"init_lora_weights=orthogonal is for Linear layers; {convolutions} convolutions are kaiming")
    for target in chosen:
        if target.rank % 2 and not isinstance(target.module, CONVOLUTIONS):
            raise ValueError(
                f"{target.path}: init_lora_weights=orthogonal needs an even rank, but {target.rank_source} "
                f"gives it {target.rank}"
            )
