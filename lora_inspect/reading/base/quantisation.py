"""Tensors of a base that give codes their meaning: scales, zero points and codebooks of quantised weights.

A codec's own table lists the tensors that it can read; only the names of the others are known.
"""

from collections.abc import Collection, Iterable, Mapping

from lora_inspect.codecs import setting_names
from lora_inspect.codecs.record import MARKER
from lora_inspect.files.safetensors.dtypes import PLAIN_FLOATS
from lora_inspect.files.safetensors.header import TensorInfo

# What a module calls its weight, where a quantiser may have put codes.
_WEIGHTS = ("weight", "qweight", "weight_packed", "weight_q", "W_q", "codes")
# What no quantiser stores codes in: masks, counters, positions.
_NO_CODES = PLAIN_FLOATS | {"BOOL", "I64", "U64", "C64"}

# In the module of a weight: what makes its entries codes, whatever they are stored as.
_SCALES = (
    *setting_names(),
    "weight_scale_2", "weight_global_scale", "weight_zeros", "weight_zero_point", "weight_s_rel",
    "weight_s_channel", "weight_codebook", "weight.absmax", "absmax", "weight.quant_map", "quant_map", "qzeros",
    "scales", "pre_quant_scale", "SCB",
)  # fmt: skip
# In the module of a weight: what scales the activations of a quantised layer.
_ACTIVATIONS = (
    "scale_input", "input_scale", "activation_scale", "output_scale", "input_global_scale", "input_zero_point",
    "output_zero_point",
)  # fmt: skip
# In the module of codes; elsewhere these are names of learned parameters.
_BESIDE_CODES = (
    "scale", "scale_inv", "scale_2", "global_scale", "zero", "zeros", "zero_point", "shift", "biases", "codebooks",
    "nested_absmax", "nested_quant_map", "wscales", "wtscale", "wcscales", "wzeros", "smooth_factor",
    "smooth_factor_orig",
)  # fmt: skip
# In the module around projections that are codes, or in one of them: the scales of a cache of keys and values.
_OF_A_CACHE = ("k_scale", "v_scale", "q_scale")
# Behind the whole name of codes that are no module's weight, as stacked experts are: `experts.down_proj_scale_inv`.
_JOINED = tuple(
    f"{join}{setting}" for join in ("_", ".", "._", ":") for setting in (*_SCALES, *_ACTIVATIONS, *_BESIDE_CODES)
)


def scale_beside(weight: str, names: Collection[str]) -> str | None:
    """Return the tensor among `names` that scales `weight` and so makes its entries codes of any type; or None.

    A scale of a module's weight does not apply to its bias and its other tensors.
    """
    module = _module(weight)
    if _leaf(weight) not in _WEIGHTS and any(f"{module}.{name}" in names for name in _WEIGHTS):
        return None
    return next((name for scale in _SCALES if (name := f"{module}.{scale}") in names), None)


def settings_beside(codes: str, names: Collection[str]) -> list[str]:
    """Return the tensors among `names` that say how to decode `codes`."""
    found = [f"{codes}{joined}" for joined in _JOINED]
    if _leaf(codes) in _WEIGHTS:
        module = _module(codes)
        found += [f"{module}.{setting}" for setting in _SCALES + _BESIDE_CODES]
    return [name for name in dict.fromkeys(found) if name in names]


def activations_beside(weight: str, names: Collection[str]) -> list[str]:
    """Return the tensors among `names` that scale the activations of the layer of a quantised `weight`."""
    module = _module(weight)
    return [name for setting in _ACTIVATIONS if (name := f"{module}.{setting}") in names]


def has_codes(tensors: Iterable[TensorInfo]) -> bool:
    """Return True if any tensor may hold codes by its element type."""
    return any(info.dtype not in _NO_CODES and info.numel for info in tensors)


def quantisation_settings(tensors: Mapping[str, TensorInfo]) -> frozenset[str]:
    """Return the names of the tensors that say how to decode codes.

    Their own element type is part of the meaning.
    """
    codes = {name for name, info in tensors.items() if info.dtype not in _NO_CODES}
    weights = {_module(name) for name in tensors if _leaf(name) in _WEIGHTS}
    coded = {_module(name) for name in codes if _leaf(name) in _WEIGHTS}
    homes = [
        (_SCALES + _ACTIVATIONS, weights),
        (_BESIDE_CODES, coded),
        (_OF_A_CACHE, coded | {_module(module) for module in coded}),
    ]
    found = {f"{module}.{setting}" for settings, modules in homes for module in modules for setting in settings}
    found |= {f"{name}{setting}" for name in codes for setting in _JOINED}
    found |= {name for name in tensors if _leaf(name) == MARKER}
    return frozenset(found & tensors.keys())


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]
