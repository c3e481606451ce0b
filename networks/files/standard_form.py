"""`save_format=standard`: tensors for programs that know only alpha/rank, and the way back.

- The alpha of RS-LoRA becomes alpha · sqrt(rank), so that alpha/rank is the same scale.
- The slices of a layer become one pair of factors, which needs no sizes; alpha grows with the rank.
- DoRA's magnitude becomes `dora_scale`, (out, 1, …), the only spelling that programs other than the trainers look for.
- There are no flags. The metadata record under `TRAINED_KEY` how the network was trained.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lora_inspect.files.strict_json import parse_json
from lora_inspect.maths import fused
from lora_inspect.maths.scaling import RANK_STABILISED, STANDARD, plain_alpha, standard_alpha, to_float32
from lora_inspect.reading.metadata.output_metadata import one_or_several
from lora_inspect.reading.model.evidence import ALPHA_OPTIONS, SCALE_KEY, close, network_args
from lora_inspect.reading.scale.dora_evidence import MAGNITUDES_KEY

from .file_names import DORA_SCALE
from .reading import MAGNITUDE, ModuleWeights, StateDictReading

TRAINED_KEY = "lora_inspect.trained_as"

_DIM, _ALPHA, _ARGS = "ss_network_dim", "ss_network_alpha", "ss_network_args"
# Options and records that say how ranks, alphas and slices came about; here the tensors have others.
_PATTERNS = ("ss_rank_pattern", "ss_alpha_pattern", "ss_rank_pattern_match_semantics")
_OPTIONS = (
    "use_rslora",
    "rank_pattern",
    *ALPHA_OPTIONS,
    "conv_dim",
    "conv_alpha",
    "split_qkv",
    "split_dims",
)


def to_standard(tensors: Mapping[str, Tensor], rslora: bool) -> dict[str, Tensor]:
    """Return the state dict `tensors` for alpha/rank, with whole layers and without flags.

    Magnitudes stay unchanged. Raises ValueError for an alpha that float32 cannot hold.
    """
    standard: dict[str, Tensor] = {}
    for name, module in _by_module(tensors).items():
        if "" in module:
            continue
        slices = _slices(module)
        if slices:
            pairs = [(module[f"lora_up.{n}.weight"], module[f"lora_down.{n}.weight"]) for n in range(slices)]
            up, down = fused.fuse(pairs)
            module = {"lora_down.weight": down, "lora_up.weight": up, "alpha": module["alpha"]}
        if rslora or slices:
            rank = module["lora_down.weight"].shape[0] // (slices or 1)
            module["alpha"] = _alpha(name, float(module["alpha"]), rank, rslora, slices or 1)
        standard |= {f"{name}.{key}": tensor for key, tensor in module.items()}
    return standard


def with_dora_scale(tensors: Mapping[str, Tensor], axes: Mapping[str, int]) -> dict[str, Tensor]:
    """Return the tensors with every `dora_layer.weight` (out,) as a `dora_scale` (out, 1, …).

    `axes` are the numbers of axes of the weights by module; the default is that of LoRA's up.
    """
    spelled: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name, _, tail = key.partition(".")
        if tail == MAGNITUDE:
            count = axes.get(name) or tensors[f"{name}.lora_up.weight"].dim()
            spelled[f"{name}.{DORA_SCALE}"] = tensor.reshape(-1, *[1] * (count - 1))
        else:
            spelled[key] = tensor
    return spelled


def magnitude_record(tensors: Iterable[str]) -> dict[str, str]:
    """Return the metadata with the number of a DoRA file's magnitudes.

    Slices have none, and no flag says so.
    """
    magnitudes = sum(key.endswith(f".{DORA_SCALE}") for key in tensors)
    return {MAGNITUDES_KEY: str(magnitudes)} if magnitudes else {}


def rename_dora_scales(state_dict: dict[str, Tensor], prefix: str) -> None:
    """Rename every `dora_scale` under `prefix` to a `dora_layer.weight` (out,), in place."""
    for key in [key for key in state_dict if key.startswith(prefix) and key.endswith(f".{DORA_SCALE}")]:
        name = key.removesuffix(f".{DORA_SCALE}")
        state_dict[f"{name}.{MAGNITUDE}"] = _per_output(
            name, state_dict.pop(key), state_dict.get(f"{name}.lora_up.weight")
        )


def standard_metadata(
    metadata: Mapping[str, Any], native: Mapping[str, Tensor], standard: Mapping[str, Tensor], rslora: bool
) -> dict[str, Any]:
    """Return the metadata for the tensors `standard`, with the `native` ones' under `TRAINED_KEY`.

    They stay unchanged if both have the same factors and the same scale rule.
    """
    kept = dict(metadata)
    if not rslora and all(key in native for key in standard):
        return kept
    trained: dict[str, Any] = {"scale": RANK_STABILISED if rslora else STANDARD}
    downs = [tensor for key, tensor in standard.items() if key.endswith(".lora_down.weight")]
    alphas = [float(tensor) for key, tensor in standard.items() if key.endswith(".alpha")]
    for key, values in ((_DIM, [down.shape[0] for down in downs]), (_ALPHA, alphas)):
        if key in kept:
            trained[key], kept[key] = str(kept[key]), one_or_several(values)
    trained |= {key: kept.pop(key) for key in _PATTERNS if key in kept}
    if _ARGS in kept:
        options = network_args({_ARGS: str(kept[_ARGS])})
        trained[_ARGS] = {name: value for name, value in options.items() if name in _OPTIONS}
        kept[_ARGS] = json.dumps({name: value for name, value in options.items() if name not in _OPTIONS})
    return {**kept, TRAINED_KEY: json.dumps(trained)}


def in_slices(reading: StateDictReading, sizes: Callable[[str], Sequence[int] | None]) -> StateDictReading:
    """Return the reading with factors for each slice of a layer, if the network has slices.

    `sizes(name)` are the output features of a module's slices. A pair of factors stays whole if its `up` is not
    block-diagonal in them.
    """
    modules = {name: _parted(module, sizes(name) or ()) for name, module in reading.modules.items()}
    return replace(reading, modules=modules)


def _parted(module: ModuleWeights, sizes: Sequence[int]) -> ModuleWeights:
    tensors = dict(module.tensors)
    down, up = (tensors.pop(f"lora_{role}.weight", None) for role in ("down", "up"))
    pairs = None if not sizes or down is None or up is None else fused.part(up, down, sizes)
    if not pairs:
        return module
    for number, (up, down) in enumerate(pairs):
        tensors |= {f"lora_down.{number}.weight": down, f"lora_up.{number}.weight": up}
    if "alpha" in tensors:
        tensors["alpha"] = tensors["alpha"].float() / len(pairs)
    return module._replace(tensors=tensors, rank=module.rank // len(pairs), split_dims=tuple(sizes))


def is_rank_stabilised(reading: StateDictReading, alphas: Mapping[str, float], settled: bool = False) -> bool:
    """Return True if weights in standard form are those of a network trained with RS-LoRA.

    The metadata state it. If the weights state nothing, their alphas decide: each must be sqrt(rank) times the
    network's own one in `alphas`, by module name. At rank 1 both rules agree. An own alpha of 1 proves nothing unless
    the rule is `settled`: a network of alpha 0 also stores sqrt(rank), for alpha/sqrt(rank).
    """
    if reading.flags:
        return False
    if TRAINED_KEY in reading.metadata:
        return trained_scale(reading.metadata) == RANK_STABILISED and reading.metadata.get(SCALE_KEY) == STANDARD
    said = reading.rslora
    if said.source != "default" or (said.hint and not settled):
        return False
    telling = [module for module in reading.modules.values() if module.rank > 1]
    known = [(module, module.alpha) for module in telling if module.alpha is not None and module.name in alphas]
    if telling and not known:
        return False
    return all(close(alpha, plain_alpha(alphas[module.name], module.rank, rslora=True)) for module, alpha in known)


def trained_scale(metadata: Mapping[str, str]) -> str | None:
    """Return the scale rule of the network that wrote a file in standard form, or None."""
    try:
        trained = parse_json(metadata.get(TRAINED_KEY, "null"))
    except ValueError:
        return None
    return trained.get("scale") if isinstance(trained, dict) else None


def native_alpha(alpha: float | None, rank: int) -> float | None:
    """Return the alpha of RS-LoRA for a stored one; None if there is none."""
    return None if alpha is None else to_float32(alpha / math.sqrt(rank))


def _alpha(name: str, alpha: float, rank: int, rslora: bool, slices: int) -> Tensor:
    try:
        grown = to_float32(standard_alpha(alpha, rank, rslora) * slices)
    except OverflowError:
        raise ValueError(f"{name}: its alpha of {alpha:g} is too large for save_format=standard") from None
    return torch.tensor(grown, dtype=torch.float32, device="cpu")


def _slices(module: Mapping[str, Tensor]) -> int:
    """Return the number of slices, or 0 for a whole layer."""
    return sum(key.startswith("lora_down.") and key != "lora_down.weight" for key in module)


def _per_output(name: str, magnitude: Tensor, up: Tensor | None) -> Tensor:
    out_features = None if up is None else up.shape[0]
    if magnitude.dim() < 2 or magnitude.shape[0] != magnitude.numel() or out_features not in (None, magnitude.numel()):
        raise ValueError(
            f"{name}.{DORA_SCALE} has shape {list(magnitude.shape)}, but one number for each of the "
            f"{out_features} outputs was expected; this network does not train magnitudes of inputs"
        )
    return magnitude.reshape(-1)


def _by_module(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    modules: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, tail = key.partition(".")
        modules.setdefault(name, {})[tail] = tensor
    return modules
