"""A state dict or a file taken apart: modules, factors, flags. What is no module's of the algorithm is an error.

A state dict as the header of a file describes it, which is what the reading of files looks at.

The alpha of a module as weights hold it.

Layers that sd-scripts trained in parts (split_qkv) and saved as one, with the alpha of a part.

Their rank is that of all parts together, so the alpha that belongs to it is as many times larger.
"""

import json
import math
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from lora_inspect.algorithms import lora
from lora_inspect.algorithms.record import Algorithm, Role, Shapes, Surroundings
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.maths import fused
from lora_inspect.maths.dora import OUTPUT
from lora_inspect.maths.scaling import neutral_alpha
from lora_inspect.reading.keys.claims import Claims, claim
from lora_inspect.reading.keys.suffixes import parse_key
from lora_inspect.reading.model.contribution import Contribution, Module
from lora_inspect.reading.model.evidence import (
    DORA_FLAG,
    LOKR_FLAG,
    RSLORA_FLAG,
    LoraFacts,
    RsloraReading,
    close,
    read_flag,
)
from lora_inspect.reading.peft.regex import Steps
from lora_inspect.reading.scale.requested_rank import RequestedRanks, read_asked_ranks, saves_parts
from lora_inspect.reading.scale.scale_rules import read_rslora

# By torch's names, of which an older version lacks some.
_NAMES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float8_e8m0fnu": "F8_E8M0",
    "bool": "BOOL",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
}


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype in the safetensors format; torch's own where a file has none of that kind."""
    name = str(dtype).removeprefix("torch.")
    return _NAMES.get(name, name)


def header_of(weights: Mapping[str, Tensor]) -> dict[str, TensorInfo]:
    """The tensors by key with dtype and shape; in memory they have no place in a file."""
    return {
        key: TensorInfo(key, dtype_name(tensor.dtype), tuple(tensor.shape), "", 0, 0) for key, tensor in weights.items()
    }


def read_alpha(name: str, stored: Tensor | None, rank: int, rslora: bool) -> float:
    """The alpha of a module called `name` in a file; where the file has none, the one that means scale 1.

    Raises ValueError for what is no usable number: programs read a stored 0 differently.
    """
    if stored is None:
        return neutral_alpha(rank, rslora)
    check_single(f"{name}.alpha", stored)
    alpha = float(stored)
    if alpha == 0 or not math.isfinite(alpha):
        raise ValueError(f"{name}.alpha is {alpha:g}, from which no scale follows; store the alpha that was meant")
    return alpha


def read_limit(name: str, stored: Tensor | None) -> float:
    """The alpha of a rotation: the limit of its norm for each output. 0, which a missing one stands for, is none.

    Raises ValueError for what is no finite number.
    """
    if stored is None:
        return 0.0
    check_single(f"{name}.alpha", stored)
    if not math.isfinite(float(stored)):
        raise ValueError(
            f"{name}.alpha is {float(stored):g}, which is no limit of a rotation; store the one that was meant"
        )
    return float(stored)


def check_single(key: str, tensor: Tensor) -> None:
    """Raises ValueError where the tensor called `key` is not one number."""
    if tensor.numel() != 1:
        raise ValueError(f"{key} has shape {list(tensor.shape)}, but a single number was expected")


MAGNITUDE = "dora_layer.weight"
_NAMED = 5
_FLAGS = (RSLORA_FLAG, DORA_FLAG)
# Two numbers in a byte, which some versions of torch store but do not turn into others.
_NOT_COMPUTED = [dtype for name in ("float4_e2m1fn_x2",) if (dtype := getattr(torch, name, None))]


class ModuleWeights(NamedTuple):
    """The tensors of one module by their keys in a network's module; rank, alpha and slices as they say.

    `linear` says whether they are those of a Linear layer, `keywords` are what else its module has to be made with.
    """

    name: str
    tensors: dict[str, Tensor]
    rank: int
    linear: bool
    split_dims: tuple[int, ...] | None = None
    keywords: Mapping[str, Any] = {}

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
        return self.split_dims is not None or (up is not None and fused.has_blocks(up.flatten(1)))

    def facts(self, place: int = 0) -> LoraFacts:
        """What the evidence looks at; `place` is where the module stands among those of the file."""
        axis = OUTPUT if self.has_magnitude else None
        return LoraFacts({self.name: place}, self.rank, self.alpha, self.linear, self.has_slices, axis)


class DialectTensors(NamedTuple):
    """What the modules of a network have of an algorithm: the tensors with these `roles`, in the keys of a `dialect`.

    `settle(module, shapes)` adds what is settled by the shapes of the factors by role. `scaled` says whether alpha is
    a scale, which has to be there or be left out.
    """

    algorithm: Algorithm
    dialect: str
    roles: Collection[Role]
    settle: Callable[[ModuleWeights, Shapes], ModuleWeights] = lambda module, shapes: module
    scaled: bool = True

    @property
    def with_every_role(self) -> "DialectTensors":
        """The same for modules that have all factors which the algorithm knows."""
        magnitude = ("magnitude",) if self.algorithm.decomposes else ()
        return self._replace(roles=(*self.algorithm.dialects[self.dialect], *magnitude))

    def key(self, role: Role, part: int | None) -> str:
        """The key of a tensor in its module, or in the slice of it that `part` numbers."""
        if role == "magnitude":
            return MAGNITUDE
        stem, _, leaf = self.algorithm.dialects[self.dialect][role].removeprefix(".").rpartition(".")
        return ".".join([*filter(None, [stem]), *([] if part is None else [str(part)]), leaf])


@dataclass(frozen=True, slots=True)
class StateDictReading:
    """A state dict taken apart: modules by name, flags by key, and the metadata of the file, if it is known.

    `has_rule` says whether RS-LoRA's rule can be that of its algorithm.
    """

    modules: dict[str, ModuleWeights]
    flags: dict[str, bool]
    metadata: Mapping[str, str] = field(default_factory=dict)
    has_rule: bool = True

    @property
    def facts(self) -> list[LoraFacts]:
        """What the evidence looks at, of every module whose scale can be rank-stabilised."""
        return [one.facts(place) for place, one in enumerate(self.modules.values())] if self.has_rule else []

    @property
    def has_conv_magnitude(self) -> bool:
        """Whether convolutions have magnitudes too."""
        return any(module.has_magnitude and not module.linear for module in self.modules.values())

    @property
    def rslora(self) -> RsloraReading:
        """The scale rule by the strongest evidence.

        Programs write the flag and the option beside algorithms that do not have the rule as well, and ignore both.
        """
        if not self.has_rule:
            return RsloraReading(False, "default")
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
    weights: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, reader: DialectTensors | None = None
) -> StateDictReading:
    """Takes a state dict apart, in whichever dialect its keys are.

    Raises ValueError for a key or a shape that is no module's of the algorithm; without a `reader` that is LoRA.
    """
    reader = reader or LORA
    _refuse_odd_numbers(weights)
    claims = claim(header_of(weights))
    title = reader.algorithm.title
    foreign = _foreign(claims, reader)
    if claims.findings and not foreign:
        raise ValueError(claims.findings[0].message)
    if unusable := foreign or list(claims.unclaimed):
        raise ValueError(
            f"{count(unusable, 'tensors')} of the weights cannot be used by a {title} network: {some_of(unusable)}"
        )
    _refuse_hidden_ranks(claims)
    if not claims.modules:
        raise ValueError(f"the weights hold no {title} module")
    return StateDictReading(
        {name: _read_module(module, weights, reader, metadata or {}) for name, module in claims.modules.items()},
        {key: _flag(key, weights[key]) for key in claims.flags if key in _FLAGS},
        metadata or {},
        has_rule=reader.algorithm.formula is not None and reader.algorithm.formula.rslora,
    )


def _refuse_odd_numbers(weights: Mapping[str, Tensor]) -> None:
    """Raises ValueError for numbers that are no factor's: what loses its imaginary part, or torch cannot compute."""
    if found := [key for key, tensor in weights.items() if tensor.is_complex() or tensor.dtype in _NOT_COMPUTED]:
        kind = str(weights[found[0]].dtype).removeprefix("torch.")
        raise ValueError(f"there are {kind} numbers in {count(found, 'tensors')} of the weights: {some_of(found)}")


def _flag(key: str, tensor: Tensor) -> bool:
    check_single(key, tensor)
    value = read_flag(tensor.item())
    if value is None:
        raise ValueError(f"{key} is NaN, which says neither yes nor no; store True or False")
    return value


def _foreign(claims: Claims, reader: DialectTensors) -> list[str]:
    """The keys that mean nothing to the algorithm, or what the modules of a network do not have."""
    formula = reader.algorithm.formula
    known = (*_FLAGS, LOKR_FLAG) if formula and formula.hidden_rank else _FLAGS
    found = [key for key in claims.flags if key not in known]
    found += [key for key in claims.unclaimed if not _has_meaning(key, reader.algorithm)]
    for module in claims.modules.values():
        found += [module.rslora_flag.name] if module.rslora_flag else []
        for contribution in module.contributions:
            is_own = contribution.algorithm.name == reader.algorithm.name
            tensors = _tensors(contribution).items()
            found += [info.name for role, info in tensors if not is_own or role not in reader.roles]
    return found


def _refuse_hidden_ranks(claims: Claims) -> None:
    """Raises ValueError where a program divides alpha by a size that is no rank, which no network here does."""
    if LOKR_FLAG not in claims.flags:
        return
    for module, contribution in claims.computed:
        if contribution.formula.rank(contribution.shapes) is None:
            raise ValueError(
                f"{LOKR_FLAG} is there, so the alpha of {module.name.key} is that of blissful-tuner, which divides it "
                "by a side of w2; write the file anew with lora-inspect convert, which computes that"
            )


def _has_meaning(key: str, algorithm: Algorithm) -> bool:
    parsed = parse_key(key)
    return parsed is not None and any(name in (None, algorithm.name) for name, _ in parsed.meanings)


def _tensors(contribution: Contribution) -> dict[Role, TensorInfo]:
    """The factors and the magnitude by role."""
    magnitude = contribution.magnitude
    return contribution.factors | ({"magnitude": magnitude.info} if magnitude else {})


def _read_module(
    module: Module, weights: Mapping[str, Tensor], reader: DialectTensors, metadata: Mapping[str, str]
) -> ModuleWeights:
    name, parts = module.name.key, module.contributions
    is_split = parts[0].rows is not None
    tensors = {
        reader.key(role, number if is_split else None): weights[info.name]
        for number, part in enumerate(parts)
        for role, info in _tensors(part).items()
    }
    if magnitude := parts[0].magnitude:
        if magnitude.axis != OUTPUT:
            raise ValueError(
                f"{magnitude.info.name} is a magnitude of the inputs, which is another method than the one of the "
                "outputs that this network trains; merge it with lora-inspect merge"
            )
        tensors[MAGNITUDE] = tensors[MAGNITUDE].reshape(-1)
    if module.alpha:
        tensors["alpha"] = weights[module.alpha.name]
        check_single(f"{name}.alpha", tensors["alpha"])
    ranks = {_rank(part) for part in parts}
    if len(ranks) > 1:
        raise ValueError(f"{name}: its slices have the ranks {sorted(ranks)}, but one rank was expected")
    split_dims = tuple(part.known_shape[0] for part in parts) if is_split else None
    read = reader.settle(
        ModuleWeights(name, tensors, ranks.pop(), parts[0].is_linear, split_dims),
        parts[0].shapes,
    )
    if reader.scaled:
        read_alpha(name, read.tensors.get("alpha"), read.rank, rslora=False)
    _check_settings(read, parts[0], metadata)
    return read


def _check_settings(module: ModuleWeights, contribution: Contribution, metadata: Mapping[str, str]) -> None:
    """Raises ValueError where nothing says how the algorithm computes these factors."""
    settings = contribution.algorithm.settings
    around = Surroundings(module.name, contribution.factors, None, metadata, module.alpha, shares_alpha=False)
    if settings and isinstance(found := settings(around), str):
        raise ValueError(f"{module.name}: {found}")


def _rank(contribution: Contribution) -> int:
    """The rank of the factors, or what stands for one: a side where both are whole, the rows of a block."""
    shapes, formula = contribution.shapes, contribution.formula
    if formula.rank(shapes) is not None:
        return contribution.known_rank
    return formula.hidden_rank(shapes) if formula.hidden_rank else formula.together(shapes)


LORA = DialectTensors(lora.ALGORITHM, "kohya", ("down", "up", "magnitude"))


def is_factor(tensor: Tensor) -> bool:
    """Whether a tensor can be a factor of LoRA by its shape alone."""
    return tensor.dim() > 1 and tensor.numel() > 0


def count(names: Collection[Any], what: str) -> str:
    """`1 module` or `2 modules`, of the plural `what`."""
    return f"{len(names)} {what}" if len(names) > 1 else f"1 {what[:-1]}"


def some_of(names: list[str]) -> str:
    """The first names, and whether there are more."""
    return ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")


def with_whole_alphas(
    weights: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> tuple[Mapping[str, Tensor], Mapping[str, str]]:
    """The weights of a file with the alphas of the ranks that they have, and the metadata without split_qkv.

    Raises ValueError where the alpha is neither that of a part nor that of the whole layer.
    """
    asked = read_asked_ranks(metadata, Steps())
    if asked is None or not saves_parts(metadata):
        return weights, metadata
    whole = dict(weights)
    for key, up in weights.items():
        name = key.removesuffix(".lora_up.weight")
        parts = next((count for words, count in asked.options.split if all(word in name for word in words)), 1)
        if name == key or parts == 1 or f"{name}.alpha" not in weights or not is_factor(up):
            continue
        if not _is_block_diagonal(up, parts):
            continue
        alpha = float(weights[f"{name}.alpha"])
        whole[f"{name}.alpha"] = weights[f"{name}.alpha"].float() * _times(
            name, alpha, asked, up.shape[1] // parts, parts
        )
    options = {name: value for name, value in asked.args.items() if name != "split_qkv"}
    return whole, {**metadata, "ss_network_args": json.dumps(options)}


def _times(name: str, alpha: float, asked: RequestedRanks, rank: int, parts: int) -> int:
    wanted = float(rank) if asked.alpha == 0 else asked.alpha
    if wanted is None:
        raise ValueError(
            f"{name}: split_qkv saved it in {parts} parts, and without ss_network_alpha nothing says whether its alpha "
            f"{alpha:g} is that of a part; settle it with `lora-inspect convert`, and load what that writes"
        )
    if close(alpha, wanted):
        return parts
    if close(alpha, parts * wanted):
        return 1
    raise ValueError(
        f"{name}: split_qkv saved it in {parts} parts, but its alpha {alpha:g} is neither the {wanted:g} that was "
        f"asked for nor {parts} times that; store the alpha that was meant"
    )


def _is_block_diagonal(up: Tensor, parts: int) -> bool:
    """Whether the first and the last row are 0 outside of the first and the last part."""
    rank, rest = divmod(up.shape[1], parts)
    return not rest and rank > 0 and not up[0, rank:].float().any() and not up[-1, :-rank].float().any()
