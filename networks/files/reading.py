"""The reading of a network's state dict or file: modules, factors and flags.

A tensor that belongs to no module of the algorithm is an error. A state dict in memory gets the header that a file
would have, since the reading of files starts from headers.

sd-scripts may train a layer in parts (split_qkv) and save it as one, with the alpha of a part. The saved rank is that
of all parts together, so the matching alpha is larger by the number of parts.
"""

import errno
import json
import math
import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
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
from lora_inspect.sentences import shortened

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
    """Return the name of a dtype in the safetensors format, or torch's own if it has none."""
    name = str(dtype).removeprefix("torch.")
    return _NAMES.get(name, name)


def header_of(weights: Mapping[str, Tensor]) -> dict[str, TensorInfo]:
    """Return the tensors by key with dtype and shape; in memory they have no place in a file."""
    return {
        key: TensorInfo(key, dtype_name(tensor.dtype), tuple(tensor.shape), "", 0, 0) for key, tensor in weights.items()
    }


def read_alpha(name: str, stored: Tensor | None, rank: int, rslora: bool) -> float:
    """Return the alpha of the module `name` in a file; if it has none, the alpha of scale 1.

    Raises ValueError for an unusable number: programs read a stored 0 differently.
    """
    if stored is None:
        return neutral_alpha(rank, rslora)
    check_single(f"{name}.alpha", stored)
    alpha = float(stored)
    if alpha == 0 or not math.isfinite(alpha):
        raise ValueError(f"{name}.alpha is {alpha:g}, which gives no scale; store the right alpha")
    return alpha


def read_limit(name: str, stored: Tensor | None) -> float:
    """Return the alpha of a rotation, which limits its norm for each output.

    0 means no limit, and a missing alpha counts as 0. Raises ValueError for a number that is not finite.
    """
    if stored is None:
        return 0.0
    check_single(f"{name}.alpha", stored)
    if not math.isfinite(float(stored)):
        raise ValueError(f"{name}.alpha is {float(stored):g}, which is no limit of a rotation; store the right one")
    return float(stored)


def check_single(key: str, tensor: Tensor) -> None:
    """Raise ValueError if the tensor called `key` is not a single number."""
    if tensor.numel() != 1:
        raise ValueError(f"{key} has shape {list(tensor.shape)}, but a single number was expected")


MAGNITUDE = "dora_layer.weight"
_NAMED = 5
# In torch's message about a pickle of other objects than tensors: the class of these.
_FORBIDDEN_OBJECT = re.compile(r"(?:GLOBAL|class) ([\w.]+)")
_FLAGS = (RSLORA_FLAG, DORA_FLAG)
# Two numbers in a byte, which some versions of torch store but do not turn into others.
_NOT_COMPUTED = [dtype for name in ("float4_e2m1fn_x2",) if (dtype := getattr(torch, name, None))]


class ModuleWeights(NamedTuple):
    """The tensors of one module by their keys in a network's module, with their rank and slices.

    `linear` says whether they belong to a Linear layer. `keywords` are further arguments for its module's construction.
    """

    name: str
    tensors: dict[str, Tensor]
    rank: int
    linear: bool
    split_dims: tuple[int, ...] | None = None
    keywords: Mapping[str, Any] = {}

    @property
    def alpha(self) -> float | None:
        """The stored alpha, or None if there is none."""
        return float(self.tensors["alpha"]) if "alpha" in self.tensors else None

    @property
    def has_magnitude(self) -> bool:
        """True if the module has DoRA's magnitude."""
        return MAGNITUDE in self.tensors

    @property
    def has_slices(self) -> bool:
        """True if the layer was trained in slices, even if its factors are now one pair."""
        up = self.tensors.get("lora_up.weight")
        return self.split_dims is not None or (up is not None and fused.has_blocks(up.flatten(1)))

    def facts(self, place: int = 0) -> LoraFacts:
        """Return the facts for the evidence; `place` is the module's position in the file."""
        axis = OUTPUT if self.has_magnitude else None
        return LoraFacts({self.name: place}, self.rank, self.alpha, self.linear, self.has_slices, axis)


class DialectTensors(NamedTuple):
    """The tensors that modules of a network have of an algorithm: `roles` in the keys of a `dialect`.

    `settle(module, shapes)` adds the values that follow from the shapes of the factors by role. `scaled` says whether
    alpha is a scale; it must then be usable or absent.
    """

    algorithm: Algorithm
    dialect: str
    roles: Collection[Role]
    settle: Callable[[ModuleWeights, Shapes], ModuleWeights] = lambda module, shapes: module
    scaled: bool = True

    @property
    def with_every_role(self) -> "DialectTensors":
        """The same record with all factors that the algorithm knows, and its magnitude if it has one."""
        magnitude = ("magnitude",) if self.algorithm.decomposes else ()
        return self._replace(roles=(*self.algorithm.dialects[self.dialect], *magnitude))

    def key(self, role: Role, part: int | None) -> str:
        """Return the key of a tensor in its module, or in the slice with the number `part`."""
        if role == "magnitude":
            return MAGNITUDE
        stem, _, leaf = self.algorithm.dialects[self.dialect][role].removeprefix(".").rpartition(".")
        return ".".join([*filter(None, [stem]), *([] if part is None else [str(part)]), leaf])


@dataclass(frozen=True, slots=True)
class StateDictReading:
    """A parsed state dict: modules by name, flags by key, and the file's metadata if known.

    `has_rule` says whether the algorithm can have RS-LoRA's rule.
    """

    modules: dict[str, ModuleWeights]
    flags: dict[str, bool]
    metadata: Mapping[str, str] = field(default_factory=dict)
    has_rule: bool = True

    @property
    def facts(self) -> list[LoraFacts]:
        """The facts of every module for the evidence; none if no scale can be rank-stabilised."""
        return [one.facts(place) for place, one in enumerate(self.modules.values())] if self.has_rule else []

    @property
    def has_conv_magnitude(self) -> bool:
        """True if convolutions have magnitudes too."""
        return any(module.has_magnitude and not module.linear for module in self.modules.values())

    @property
    def rslora(self) -> RsloraReading:
        """The scale rule by the strongest evidence.

        Programs also write the flag and the option for algorithms without the rule, and ignore both.
        """
        if not self.has_rule:
            return RsloraReading(False, "default")
        flags = {RSLORA_FLAG: self.flags[RSLORA_FLAG]} if RSLORA_FLAG in self.flags else {}
        return read_rslora(self.facts, flags, self.metadata, {}, False)[0]


def open_weights(file: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors and metadata of a .safetensors file, or of a torch.save file without metadata.

    Raises ValueError for a pipe or a device, since opening one could wait for ever. The same holds for a file that is
    empty, cut or of another kind, for a torch.save file of anything but tensors by name, and for a .safetensors file
    with numbers that no factor has.
    """
    if os.path.exists(file) and not os.path.isfile(file):
        raise ValueError(f"{file} is no file; name a file on a disk")
    if not file.endswith(".safetensors"):
        return _open_saved_by_torch(file), {}
    try:
        with safe_open(file, framework="pt") as opened:
            weights = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
            metadata = opened.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{file}: no complete .safetensors file ({error}); copy or download it again") from None
    try:
        _refuse_odd_numbers(weights)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    return weights, metadata


def _open_saved_by_torch(file: str) -> dict[str, Tensor]:
    """Return the tensors of a torch.save file.

    Raises ValueError for any other file. torch's own errors about one have many classes, and advise to run its code.
    """
    with open(file, "rb") as opened:
        try:
            weights = torch.load(opened, map_location="cpu", weights_only=True)
        except MemoryError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno != errno.EINVAL:
                raise
            if kind := _FORBIDDEN_OBJECT.search(str(error)):
                raise ValueError(
                    f"{file}: it holds objects of {shortened(kind[1])}, whose loading could run any code; save only "
                    "the weights of the network"
                ) from None
            raise ValueError(f"{file}: no complete file of torch.save; copy or download it again") from None
    if not isinstance(weights, Mapping) or not all(
        isinstance(key, str) and isinstance(tensor, Tensor) for key, tensor in weights.items()
    ):
        raise ValueError(f"{file} holds no tensors by name; save only the weights of the network")
    return dict(weights)


def read(
    weights: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, reader: DialectTensors | None = None
) -> StateDictReading:
    """Return the modules of a state dict in any dialect.

    The default `reader` is that of LoRA. Raises ValueError for a key or a shape that belongs to no module of the
    algorithm.
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
    """Raise ValueError for numbers that no factor has: complex ones, or a type that torch cannot compute."""
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
    """Return the keys that mean nothing to the algorithm or that modules of a network do not have."""
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
    """Raise ValueError if a program divides alpha by a size other than the rank.

    No network here does that.
    """
    if LOKR_FLAG not in claims.flags:
        return
    for module, contribution in claims.computed:
        if contribution.formula.rank(contribution.shapes) is None:
            raise ValueError(
                f"{LOKR_FLAG} says that the alpha of {module.name.key} is that of blissful-tuner, which "
                "divides it by a side of w2; rewrite the file with lora-inspect convert, which computes that"
            )


def _has_meaning(key: str, algorithm: Algorithm) -> bool:
    parsed = parse_key(key)
    return parsed is not None and any(name in (None, algorithm.name) for name, _ in parsed.meanings)


def _tensors(contribution: Contribution) -> dict[Role, TensorInfo]:
    """Return the factors and the magnitude by role."""
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
                f"{magnitude.info.name} is a magnitude of the inputs, but this network trains those of the "
                "outputs; merge it with lora-inspect merge"
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
    """Raise ValueError if nothing states how the algorithm computes these factors."""
    settings = contribution.algorithm.settings
    around = Surroundings(module.name, contribution.factors, None, metadata, module.alpha, shares_alpha=False)
    if settings and isinstance(found := settings(around), str):
        raise ValueError(f"{module.name}: {found}")


def _rank(contribution: Contribution) -> int:
    """Return the rank of the factors, or its substitute.

    The substitute is a side if both factors are whole, or the rows of a block.
    """
    shapes, formula = contribution.shapes, contribution.formula
    if formula.rank(shapes) is not None:
        return contribution.known_rank
    return formula.hidden_rank(shapes) if formula.hidden_rank else formula.together(shapes)


LORA = DialectTensors(lora.ALGORITHM, "kohya", ("down", "up", "magnitude"))


def is_factor(tensor: Tensor) -> bool:
    """Return True if a tensor can be a factor of LoRA by its shape."""
    return tensor.dim() > 1 and tensor.numel() > 0


def count(names: Collection[Any], what: str) -> str:
    """Return `1 module` or `2 modules`, for the plural `what`."""
    return f"{len(names)} {what}" if len(names) > 1 else f"1 {what[:-1]}"


def is_or_are(names: Collection[Any]) -> str:
    """Return the verb for so many names."""
    return "are" if len(names) > 1 else "is"


def some_of(names: list[str]) -> str:
    """Return the first names, with an ellipsis if there are more."""
    return ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")


def with_whole_alphas(
    weights: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> tuple[Mapping[str, Tensor], Mapping[str, str]]:
    """Return a file's weights with the alphas of their ranks, and the metadata without split_qkv.

    Raises ValueError if the alpha is neither that of a part nor that of the whole layer.
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
            f"{name}: split_qkv saved it in {parts} parts, and without ss_network_alpha its alpha {alpha:g} "
            "may be that of a part or of the whole; run `lora-inspect convert`, and load its output"
        )
    if close(alpha, wanted):
        return parts
    if close(alpha, parts * wanted):
        return 1
    raise ValueError(
        f"{name}: split_qkv saved it in {parts} parts, but its alpha {alpha:g} is neither the {wanted:g} that "
        f"was asked for nor {parts} times that; store the right alpha"
    )


def _is_block_diagonal(up: Tensor, parts: int) -> bool:
    """Return True if the first and the last row are 0 outside the first and the last part."""
    rank, rest = divmod(up.shape[1], parts)
    return not rest and rank > 0 and not up[0, rank:].float().any() and not up[-1, :-rank].float().any()
