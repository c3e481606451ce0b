"""A state dict or a file taken apart: modules, factors, flags. What is no module's of the algorithm is an error."""

import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from lora_inspect.algorithms import lora
from lora_inspect.maths import fusing
from lora_inspect.maths.dora import OUTPUT
from lora_inspect.reading.evidence import DORA_FLAG, RSLORA_FLAG, LoraFacts, RsloraReading
from lora_inspect.reading.rslora_evidence import read_rslora

from .stored_alpha import read_alpha

MAGNITUDE = "dora_layer.weight"
# int() of thousands of digits is an error; no layer has more slices than nine digits count.
_ROLE = re.compile(r"lora_(down|up)(?:\.([0-9]{1,9}))?\.weight")
_NAMED = 5
# Two numbers in a byte, which some versions of torch store but do not turn into others.
_NOT_COMPUTED = [dtype for name in ("float4_e2m1fn_x2",) if (dtype := getattr(torch, name, None))]


class ModuleWeights(NamedTuple):
    """The tensors of one module by the key without its name; rank, alpha and slices as they say.

    `keywords` are what else its module has to be made with; `is_lora` says whether the evidence looks at it.
    """

    name: str
    tensors: dict[str, Tensor]
    rank: int
    split_dims: tuple[int, ...] | None = None
    keywords: Mapping[str, Any] = {}
    is_lora: bool = True

    @property
    def alpha(self) -> float | None:
        """The stored alpha, or None where there is none."""
        return float(self.tensors["alpha"]) if "alpha" in self.tensors else None

    @property
    def has_magnitude(self) -> bool:
        """Whether DoRA's magnitude is there."""
        return MAGNITUDE in self.tensors

    @property
    def has_slices(self) -> bool:
        """Whether the layer was trained slice by slice, be the factors still apart or in one pair."""
        up = self.tensors.get("lora_up.weight")
        return self.split_dims is not None or (up is not None and fusing.has_blocks(up.flatten(1)))

    @property
    def facts(self) -> LoraFacts:
        """What the evidence looks at."""
        linear = all(tensor.dim() == 2 for key, tensor in self.tensors.items() if _ROLE.fullmatch(key))
        axis = OUTPUT if self.has_magnitude else None
        return LoraFacts(self.name, self.rank, self.alpha, linear, self.has_slices, axis)


class FactorReader(NamedTuple):
    """How an algorithm's modules are read: what the keys of factors look like, and one module's tensors taken apart."""

    algorithm: str
    key: re.Pattern[str]
    read: Callable[[str, dict[str, Tensor]], ModuleWeights]


@dataclass(frozen=True, slots=True)
class Reading:
    """A state dict taken apart: modules by name, flags by key, and the metadata of the file, if it is known."""

    modules: dict[str, ModuleWeights]
    flags: dict[str, bool]
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def facts(self) -> list[LoraFacts]:
        """What the evidence looks at, of every LoRA module."""
        return [module.facts for module in self.modules.values() if module.is_lora]

    @property
    def has_conv_magnitude(self) -> bool:
        """Whether convolutions have magnitudes too."""
        return any(module.has_magnitude and not module.facts.linear for module in self.modules.values())

    @property
    def rslora(self) -> RsloraReading:
        """The scale rule by the strongest evidence."""
        flags = {RSLORA_FLAG: self.flags[RSLORA_FLAG]} if RSLORA_FLAG in self.flags else {}
        return read_rslora(self.facts, flags, self.metadata, {}, False)[0]


def open_weights(file: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a .safetensors file, or of what torch.save wrote, which has no metadata.

    Raises ValueError for a pipe or a device, whose opening could wait for ever, for a pickle of anything else, and for
    numbers that are no factor's.
    """
    if os.path.exists(file) and not os.path.isfile(file):
        raise ValueError(f"{file} is no file; name a file on a disk")
    if file.endswith(".safetensors"):
        with safe_open(file, framework="pt") as opened:
            weights = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
            _refuse_odd_numbers(weights)
            return weights, opened.metadata() or {}
    weights = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(weights, Mapping) or not all(
        isinstance(key, str) and isinstance(tensor, Tensor) for key, tensor in weights.items()
    ):
        raise ValueError(f"{file} holds no tensors by name; save the weights of the network alone")
    return dict(weights), {}


def read(
    weights: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, reader: FactorReader | None = None
) -> Reading:
    """Takes a state dict apart. Raises ValueError for a key or a shape that is no module's of the algorithm.

    Without a `reader` that is LoRA.
    """
    reader = reader or LORA
    _refuse_odd_numbers(weights)
    groups: dict[str, dict[str, Tensor]] = {}
    flags: dict[str, bool] = {}
    unusable: list[str] = []
    for key, tensor in weights.items():
        name, _, tail = key.partition(".")
        if key in (RSLORA_FLAG, DORA_FLAG):
            flags[key] = _flag(key, tensor)
        elif tail in ("alpha", MAGNITUDE) or reader.key.fullmatch(tail):
            groups.setdefault(name, {})[tail] = tensor
        else:
            unusable.append(key)
    if unusable:
        raise ValueError(
            f"{count(unusable, 'tensors')} of the weights cannot be used by a {reader.algorithm} network: "
            f"{some_of(unusable)}"
        )
    if not groups:
        raise ValueError(f"the weights hold no {reader.algorithm} module")
    return Reading({name: reader.read(name, tensors) for name, tensors in groups.items()}, flags, metadata or {})


def _refuse_odd_numbers(weights: Mapping[str, Tensor]) -> None:
    """Raises ValueError for numbers that are no factor's: what loses its imaginary part, or torch cannot compute."""
    if found := [key for key, tensor in weights.items() if tensor.is_complex() or tensor.dtype in _NOT_COMPUTED]:
        kind = str(weights[found[0]].dtype).removeprefix("torch.")
        raise ValueError(f"there are {kind} numbers in {count(found, 'tensors')} of the weights: {some_of(found)}")


def _flag(key: str, tensor: Tensor) -> bool:
    if tensor.numel() != 1:
        raise ValueError(f"{key} has shape {list(tensor.shape)}, but a single value was expected there")
    return bool(tensor)


def _read_module(name: str, tensors: dict[str, Tensor]) -> ModuleWeights:
    parts: dict[int | None, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if role := _ROLE.fullmatch(key):
            parts.setdefault(int(role[2]) if role[2] else None, {})[role[1]] = tensor
    numbers = sorted(number for number in parts if number is not None)
    if not parts or (numbers and (None in parts or numbers != list(range(len(parts))))):
        raise ValueError(f"{name}: {some_of(list(tensors))} are not the factors of one module")
    for number, factors in parts.items():
        if missing := {"down", "up"} - factors.keys():
            suffix = "" if number is None else f".{number}"
            raise ValueError(f"{name}.lora_{missing.pop()}{suffix}.weight is missing")
        for side, factor in factors.items():
            if not is_factor(factor):
                raise ValueError(
                    f"{name}: {side} has shape {list(factor.shape)}, but at least two dimensions, none of them 0, were "
                    "expected"
                )
        up, down = lora.matrices(factors)
        if up.shape[1] != down.shape[0]:
            raise ValueError(f"{name}: down has rank {down.shape[0]} and up has rank {up.shape[1]}")
    ranks = {factors["down"].shape[0] for factors in parts.values()}
    if len(ranks) > 1:
        raise ValueError(f"{name}: its slices have the ranks {sorted(ranks)}, but one rank was expected")
    rank = ranks.pop()
    read_alpha(name, tensors.get("alpha"), rank, rslora=False)
    split = tuple(parts[number]["up"].shape[0] for number in numbers) if numbers else None
    return ModuleWeights(name, tensors, rank, split)


LORA = FactorReader("LoRA", _ROLE, _read_module)


def is_factor(tensor: Tensor) -> bool:
    """Whether a tensor can be a factor of LoRA by its shape alone."""
    return tensor.dim() > 1 and tensor.numel() > 0


def count(names: Collection[Any], what: str) -> str:
    """`1 module` or `2 modules`, of the plural `what`."""
    return f"{len(names)} {what}" if len(names) > 1 else f"1 {what[:-1]}"


def some_of(names: list[str]) -> str:
    """The first names, and whether there are more."""
    return ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
