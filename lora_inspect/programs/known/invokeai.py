"""InvokeAI: it detects the model of a file by keys and shapes, and loads no file without a detected one.

After that each family has a conversion of its own. The layers that it finds must have one of its kinds of patches, and
keys with the right ends.

Sources: `configs/lora.py` in `invokeai/backend/model_manager`, `lora_conversions/` with its `_group_by_layer` and
`layers/` in `invokeai/backend/patches`, run on small models of SD 1.5, SDXL, Wan, Qwen-Image and Z-Image, and on FLUX
in its own widths.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

from lora_inspect.architectures import by_name
from lora_inspect.caching import remembering_names
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.programs.record import (
    COMPUTES,
    FAILS,
    LEAVES,
    OTHER_AXIS,
    SILENT,
    WARNS,
    Given,
    Loader,
    OfKind,
    Program,
    Refusal,
    Rule,
    RulesByFamily,
    Strangers,
    alpha_over_rank,
    one,
)
from lora_inspect.reading.adapter import Adapter

_UNSUPPORTED = "Unsupported lora format"
# What it says of names that it looks for in vain, and of what else a layer has.
NOT_FOUND = Strangers(WARNS, "Failed to find module for LoRA layer key")
BESIDE = Strangers(WARNS, "Unexpected keys found in LoRA/LyCORIS layer, model might work incorrectly!")
# In the order in which a layer is looked at: the first kind that it has counts.
_ORDER = ("lora", "loha", "lokr", "full", "lycoris_ia3", "norm")
_OF_BIAS = {"full_bias": "full", "norm_bias": "norm"}
_MAGNITUDES = {
    ".dora_scale output": OTHER_AXIS,
    ".dora_scale input": COMPUTES,
    **dict.fromkeys((".dora_layer.weight output", ".lora_magnitude_vector.weight output"), LEAVES),
    **dict.fromkeys((".lora_magnitude_vector output", ".magnitude output", ".m output", ".m input"), LEAVES),
}
# Of a name with dots it takes two words off a key that ends in none of those it knows, and so a part of the path.
_CUT = (".lora_magnitude_vector output", ".magnitude output")


@OfKind
def exceptions(given: Given) -> str | None:
    """What becomes of a contribution for what stands beside it."""
    name = given.contribution.algorithm.name
    beside = {one.algorithm.name for one in given.module.contributions}
    first = next((kind for kind in _ORDER if kind in beside), None)
    if first is None:
        return FAILS
    if name in _OF_BIAS:
        return None if first == _OF_BIAS[name] else LEAVES
    if name != first:
        return LEAVES
    magnitude = given.contribution.magnitude
    # A magnitude is only one of LoRA's two factors.
    return FAILS if magnitude and magnitude.spelling.suffix == ".dora_scale" and name != "lora" else None


@OfKind
def _dotted(given: Given) -> str | None:
    return FAILS if given.contribution.algorithm.name == "full_bias" else exceptions(given)


FLAT = Rule(
    kinds={**dict.fromkeys((*_ORDER, *_OF_BIAS), COMPUTES), "lora_bias": LEAVES, "": FAILS},
    exceptions=exceptions,
    magnitudes=_MAGNITUDES,
    says=_UNSUPPORTED,
)
# PEFT's spelling of the factors is no kind of its own there.
FLAT_PEFT = Rule(dialects=("peft",), kinds={"": FAILS}, says=_UNSUPPORTED)
DOTTED = FLAT._replace(
    dialects=("", "kohya", "lycoris"),
    kinds={"lora": COMPUTES, "full_bias": COMPUTES, "lora_bias": LEAVES, "": FAILS},
    exceptions=_dotted,
    magnitudes={**_MAGNITUDES, **dict.fromkeys(_CUT, FAILS)},
)
# Of factors in PEFT's spelling it takes these alone: no alpha, and no magnitude.
DOTTED_PEFT = DOTTED._replace(
    dialects=("peft",),
    scale=one,
    magnitudes={**dict.fromkeys(_MAGNITUDES, LEAVES), **dict.fromkeys(_CUT, FAILS)},
)


Tensors = Mapping[str, TensorInfo]
_PASSED = Strangers(SILENT)
_UNPACK = "not enough values to unpack (expected 2, got 1)"
_BUNDLE = "bundle_emb"
_EITHER = ("original", "diffusers")


def _keys(adapter: Adapter) -> list[str]:
    """The keys that it does not take out of a file first."""
    return [key for key in adapter.checkpoint.tensors if not key.startswith(_BUNDLE)]


def _has_no_dot(adapter: Adapter) -> bool:
    return any("." not in key for key in _keys(adapter))


# A layer that it makes of keys has to have one of these, and it makes one of every key: of an unknown one as well.
_KINDS = frozenset(
    ("lora_up.weight", "lora_B.weight", "hada_w1_a", "lokr_w1", "lokr_w1_a", "diff", "on_input", "w_norm")
)
_KNOWN_ENDS = ("lora_A.weight", "lora_B.weight", "lora_down.weight", "lora_up.weight", "dora_scale", "alpha")


def _in_two(key: str) -> tuple[str, str]:
    """The layer of a key and the rest: split at the first dot."""
    layer, _, end = key.partition(".")
    return layer, end


def _from_right(key: str) -> tuple[str, str]:
    """The layer of a key and the rest: one of the ends that it knows, of other keys the last two words."""
    end = next((end for end in _KNOWN_ENDS if key.endswith(f".{end}")), None)
    if end:
        return key[: -len(end) - 1], end
    layer, *ends = key.rsplit(".", 2)
    return layer, ".".join(ends)


def _has_layer_of_no_kind(
    adapter: Adapter, split: Callable[[str], tuple[str, str]], looks_at: Callable[[str], bool] = bool
) -> bool:
    """Return True if keys of a layer that it looks at make no kind of patch."""
    kinds: dict[str, bool] = {}
    for key in _keys(adapter):
        layer, end = split(key)
        kinds[layer] = kinds.get(layer, False) or end in _KINDS
    return any(not has_kind and looks_at(layer) for layer, has_kind in kinds.items())


# Stable Diffusion: the width of the text encoders, which the layers of cross-attention show.
_SUFFIXES = ("to_k_lora.up.weight", "to_q_lora.down.weight", "lora_A.weight", "lora_B.weight")
_OF_PREFIX = ("lora_te_", "lora_unet_", "lora_te1_", "lora_te2_", "lora_transformer_")
_DEEP = (
    r"lora_unet_(?:(?:down_blocks|up_blocks)_\d+_attentions_\d+|mid_block_attentions_\d+"
    r"|(?:input_blocks|output_blocks)_\d+_\d+|middle_block_\d+)_transformer_blocks_(\d+)_"
)


def _width(key: str, tensors: Tensors) -> int | None:
    """What it reads as the inputs of the layer of a key."""
    module, _, part = key.partition(".")
    shape = tensors[key].shape
    if part in ("lora_down.weight", "hada_w1_b", "hada_w2_b", "diff"):
        return shape[1] if len(shape) > 1 else None
    if "lokr_" in part:
        first, second = tensors.get(f"{module}.lokr_w1"), tensors.get(f"{module}.lokr_w2")
        return first.shape[1] * second.shape[1] if first and second else None
    return shape[0] if part == "weight" and not module.startswith("lora_unet_") and shape else None


def _text_width(tensors: Tensors) -> int | None:
    numbered: dict[str, int] = {}
    for key in sorted(tensors):
        width = None
        if key.startswith("lora_unet_") and any(
            part in key for part in ("_attn2_to_k.", "_attn2_to_v.", "time_emb_proj.lora_down")
        ):
            width = _width(key, tensors)
        elif key.startswith("lora_te") and "_self_attn_" in key and (found := _width(key, tensors)) is not None:
            if key.startswith("lora_te_"):
                width = found
            numbered[key[:8]] = found
        if {"lora_te1", "lora_te2"} <= numbered.keys():
            width = numbered["lora_te1"] + numbered["lora_te2"]
        if width is not None:
            return width
    return None


def _unlike(width: int | None) -> str:
    return f"unrecognized token vector length {width}"


def _of_sd15(adapter: Adapter) -> str | None:
    width = _text_width(adapter.checkpoint.tensors)
    if width != _SD15:
        return _unlike(width)
    if _has_no_dot(adapter):
        return _UNPACK
    return _UNSUPPORTED if _has_layer_of_no_kind(adapter, _in_two) else None


_SD15, _SDXL = 768, (1280, 2048)


def _of_sdxl(adapter: Adapter) -> str | None:
    width = _text_width(adapter.checkpoint.tensors)
    if width not in _SDXL:
        deep = map(re.compile(_DEEP).match, adapter.checkpoint.tensors)
        if width is not None or not any(found and found[1].lstrip("0") not in ("", "1") for found in deep):
            return _unlike(width)
    for key in _keys(adapter):
        if not key.startswith(("lora_unet_", "lora_te1_", "lora_te2_")):
            return f"Unrecognized SDXL LoRA key prefix: '{key}'."
    return _UNSUPPORTED if _has_layer_of_no_kind(adapter, _in_two) else None


def _unet(layouts: tuple[str, ...]) -> Iterator[Rule]:
    for rule in (FLAT_PEFT, FLAT):
        yield rule._replace(prefixes=("lora_unet_",), layouts=layouts)
    yield Rule(prefixes=("lora_unet_",), unfound=NOT_FOUND)


# Diffusion transformers: words in the keys, and one of these ends.
_ENDS = ("lora_A.weight", "lora_B.weight", "lora_down.weight", "lora_up.weight", "dora_scale", "lokr_w1", "lokr_w2")
_OF_Z_IMAGE = tuple(end for end in _ENDS if not end.startswith("lokr"))


def _lacks(adapter: Adapter, starts: tuple[str, ...], ends: Iterable[str]) -> bool:
    keys = adapter.checkpoint.tensors
    return not (any(key.startswith(starts) for key in keys) and any(key.endswith(tuple(ends)) for key in keys))


_WAN = (
    r"(?:(?:diffusion_model|transformer|base_model\.model\.transformer)\.|lora_unet_)?"
    r"blocks[._]\d+[._](?:attn[12]|self_attn|cross_attn|ffn)[._]"
)


# The layers that it makes of keys: of names with underscores those that it has paths for, of dotted ones all in blocks.
_WAN_LAYER = (
    r"lora_unet_blocks_\d+_(?:attn[12]_(?:to_[qkv]|to_out_0|norm_[qk])|(?:self|cross)_attn_(?:[qkvo]|norm_[qk])"
    r"|ffn_(?:net_0_proj|net_2|0|2))$"
)
_WAN_DOTTED = r"(?:base_model\.model\.transformer\.|transformer\.|diffusion_model\.)?blocks\."


def _of_wan(adapter: Adapter) -> str | None:
    keys = adapter.checkpoint.tensors
    is_like = any(map(re.compile(_WAN).match, keys)) and any(key.endswith(_ENDS) for key in keys)
    if not is_like:
        return "model does not match Wan LoRA heuristics"
    is_flat = any(key.startswith("lora_unet_blocks_") for key in keys)
    looks_at = re.compile(_WAN_LAYER if is_flat else _WAN_DOTTED).match
    return _UNSUPPORTED if _has_layer_of_no_kind(adapter, _from_right, lambda layer: bool(looks_at(layer))) else None


_QWEN_FLAT = "lora_unet_transformer_blocks_"
_QWEN_LAYER = (
    _QWEN_FLAT
    + r"\d+_(?:attn_(?:add_[kqv]_proj|to_add_out|to_out_0|to_[kqv])|(?:img|txt)_(?:mlp_net_0_proj|mlp_net_2|mod_1))$"
)


def _of_qwen_image(adapter: Adapter) -> str | None:
    starts = ("transformer_blocks.", "transformer.transformer_blocks.", _QWEN_FLAT)
    if _lacks(adapter, starts, _ENDS):
        return "model does not match Qwen Image LoRA heuristics"
    if not any(key.startswith(_QWEN_FLAT) for key in adapter.checkpoint.tensors):
        return _UNSUPPORTED if _has_layer_of_no_kind(adapter, _from_right) else None
    if _has_no_dot(adapter):
        return _UNPACK
    looks_at = re.compile(_QWEN_LAYER).match
    return _UNSUPPORTED if _has_layer_of_no_kind(adapter, _in_two, lambda layer: bool(looks_at(layer))) else None


def _of_z_image(adapter: Adapter) -> str | None:
    blocks = ("diffusion_model.layers.", "diffusion_model.context_refiner.", "diffusion_model.noise_refiner.")
    if _lacks(adapter, (*blocks, "transformer.layers."), _OF_Z_IMAGE):
        return "model does not match Z-Image LoRA heuristics"
    return _UNSUPPORTED if _has_layer_of_no_kind(adapter, _from_right) else None


def _paths(family: str, *layouts: str) -> tuple[str, ...]:
    own = (layout for layout in by_name(family).layouts if layout.name in layouts)
    return tuple(path for layout in own for path in layout.paths)


def _wan() -> Iterator[Rule]:
    paths = _paths("wan", *_EITHER)
    # Of images, and what is in no block: it has no names for these, and passes over them silently.
    outside = tuple(path for path in paths if not path.startswith("blocks."))
    of_images = ("blocks.{i}.cross_attn.k_img", "blocks.{i}.cross_attn.v_img")
    added = ("blocks.{i}.attn2.add_k_proj", "blocks.{i}.attn2.add_v_proj")
    yield FLAT._replace(
        prefixes=("lora_unet_",), layouts=_EITHER, lacks=(*outside, *of_images, *added), unfound=_PASSED, says=""
    )
    magnitudes = {**DOTTED_PEFT.magnitudes, ".dora_scale output": OTHER_AXIS, ".dora_scale input": COMPUTES}
    for rule in (DOTTED, DOTTED_PEFT._replace(scale=alpha_over_rank, magnitudes=magnitudes)):
        native = rule._replace(lacks=(*outside, *of_images), unfound=_PASSED, says="")
        yield native._replace(prefixes=("diffusion_model.",), layouts=_EITHER)
        yield native._replace(prefixes=("transformer.", ""), layouts=("diffusers",))


def _qwen_image() -> Iterator[Rule]:
    outside = tuple(path for path in _paths("qwen_image", "diffusers") if not path.startswith("transformer_blocks."))
    yield FLAT_PEFT._replace(prefixes=("lora_unet_",), layouts=("diffusers",))
    yield FLAT._replace(prefixes=("lora_unet_",), layouts=("diffusers",), lacks=outside, unfound=_PASSED, says="")
    for rule in (DOTTED, DOTTED_PEFT):
        yield rule._replace(prefixes=("transformer.", ""), layouts=("diffusers",))


def _z_image() -> Iterator[Rule]:
    for rule in (DOTTED, DOTTED_PEFT):
        yield rule._replace(prefixes=("diffusion_model.", "transformer."), layouts=("diffusers",))
    yield Rule(prefixes=("diffusion_model.",), layouts=("original",), unfound=NOT_FOUND)


# FLUX: every key of a file in kohya's names has to begin as one of these, and its widths are not those of FLUX.2.
_FLUX = (
    r"lora_unet_\w+_blocks_\d+_(?:(?:img|txt)_(?:attn|mlp|mod)|linear[12]|modulation)|lora_unet_final_layer_linear"
    r"|lora_te1_text_model_encoder_layers_\d+_(?:mlp|self_attn)_"
    r"|lora_te2_encoder_block_\d+_layer_\d+_(?:DenseReluDense|SelfAttention)_"
)
_FLUX_LAST = "lora_unet_final_layer"
# Of one in its own names with dots each has to begin and to end so.
_FLUX_PREFIX = "diffusion_model."
_FLUX_DOTTED = ("diffusion_model.double_blocks.", "diffusion_model.single_blocks.")
_FLUX_ENDS = (
    *("lora_A.weight", "lora_B.weight", "lokr_w1", "lokr_w2", "lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b"),
    *("lokr_t2", "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2", "alpha", "dora_scale"),
    "diff",
)
_UNLIKE_FLUX = "LoRA model is in unsupported FLUX format"
_WIDTH = 3072
_OF_WIDTH = ("_img_attn_proj.lora_down.weight", ".img_attn.proj.lora_A.weight")
_OF_ROWS = ("_img_mlp_0.lora_up.weight", ".img_mlp.0.lora_B.weight")


@remembering_names
def _is_of_flux(key: str) -> bool:
    return bool(re.match(_FLUX, key))


def _of_flux(adapter: Adapter) -> str | None:
    tensors = adapter.checkpoint.tensors
    is_flat = any(key.startswith("lora_unet_") for key in tensors)
    if is_flat and not all(map(_is_of_flux, tensors)):
        return _UNLIKE_FLUX
    # It passes over the last layer.
    if is_flat and _has_layer_of_no_kind(adapter, _in_two, lambda layer: not layer.startswith(_FLUX_LAST)):
        return _UNSUPPORTED
    is_dotted = any(key.startswith(_FLUX_DOTTED) for key in tensors)
    if is_dotted and not all(key.startswith(_FLUX_PREFIX) and key.endswith(_FLUX_ENDS) for key in tensors):
        return _UNLIKE_FLUX
    for key, info in tensors.items():
        is_wider = key.endswith(_OF_WIDTH) and info.shape[1:] != (_WIDTH,)
        if is_wider or (key.endswith(_OF_ROWS) and info.shape[0] != 4 * _WIDTH):
            return "the file is taken for one of FLUX.2"
    return None


def _flux() -> Iterator[Rule]:
    for rule in (FLAT_PEFT, FLAT._replace(lacks=("final_layer.linear",), unfound=_PASSED, says="")):
        yield rule._replace(prefixes=("lora_unet_",), layouts=("original",))
    own = Rule(prefixes=("diffusion_model.",), layouts=("original",))
    yield own._replace(dialects=("peft",), alpha=False, kinds={"lora": COMPUTES})
    yield own._replace(dialects=("peft",), alpha=True, kinds={"lora": FAILS}, says=DOTTED.says)
    yield own._replace(dialects=("kohya",), says=_UNLIKE_FLUX)
    yield Rule(prefixes=("lora_unet_", "diffusion_model.", "lycoris_"), layouts=("diffusers",), says=_UNLIKE_FLUX)


def _loader(family: str, make: Callable[[], Iterable[Rule]], refuses: Refusal) -> Loader:
    rules = RulesByFamily((family,), lambda asked: make())
    return Loader(rules, BESIDE, (family,), others=_PASSED, refuses=refuses)


PROGRAM = Program(
    name="invokeai",
    title="InvokeAI",
    version="6.14.0-alpha (2026-08-19)",
    ran="2026-12-01",
    loaders=(
        _loader("sd15", partial(_unet, ("diffusers",)), _of_sd15),
        _loader("sdxl", partial(_unet, _EITHER), _of_sdxl),
        _loader("flux", _flux, _of_flux),
        _loader("wan", _wan, _of_wan),
        _loader("qwen_image", _qwen_image, _of_qwen_image),
        _loader("z_image", _z_image, _of_z_image),
    ),
    schemes={
        "sd15": "kohya",
        "sdxl": "kohya",
        "flux": "kohya",
        "wan": "comfyui",
        "qwen_image": "kohya",
        "z_image": "diffusers",
    },
)
