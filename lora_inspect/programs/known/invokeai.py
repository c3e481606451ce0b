"""InvokeAI: it detects a file's model by keys and shapes, or does not load it.

After that each family has a conversion of its own. The layers that it finds must have one of its kinds of patches, and
keys with the right ends.

Sources: `configs/lora.py` in `invokeai/backend/model_manager`, `lora_conversions/` with its `_group_by_layer` and
`layers/` in `invokeai/backend/patches`. They were run with its identification of files and its loader. The models were
its own classes, with text encoders, of SD 1.5, SD 2, SDXL, FLUX.1, FLUX.2, Wan, Qwen-Image, Z-Image, Anima and Krea 2.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import partial

from lora_inspect.architectures import by_name
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.programs.known import invokeai_flux
from lora_inspect.programs.known.invokeai_rules import (
    CLIP,
    DOTTED,
    DOTTED_PEFT,
    ENDS,
    FLAT,
    FLAT_PEFT,
    NOT_FOUND,
    PASSED,
    UNSUPPORTED,
    exceptions,
    flat_without_kind,
    loader_of,
    own_keys,
    parted,
    tensors_of,
    without_kind,
)
from lora_inspect.programs.record import (
    COMPUTES,
    INFIXED,
    OTHER_AXIS,
    TEXT_ENCODERS,
    Finder,
    Given,
    LoadFailure,
    OfKind,
    Program,
    Rule,
    Strangers,
    alpha_over_rank,
)
from lora_inspect.reading.adapter import Adapter

Tensors = Mapping[str, TensorInfo]
_UNPACK = "not enough values to unpack (expected 2, got 1)"
_EITHER = ("original", "diffusers")


def _has_no_dot(adapter: Adapter) -> bool:
    return any("." not in key for key in own_keys(adapter))


# Stable Diffusion: the width of the text encoders, which the layers of cross-attention show.
_SUFFIXES = ("to_k_lora.up.weight", "to_q_lora.down.weight", "lora_A.weight", "lora_B.weight")
_NUMBERED = ("lora_te1_", "lora_te2_")
_DEEP = (
    r"lora_unet_(?:(?:down_blocks|up_blocks)_\d+_attentions_\d+|mid_block_attentions_\d+"
    r"|(?:input_blocks|output_blocks)_\d+_\d+|middle_block_\d+)_transformer_blocks_(\d+)_"
)


def _width(key: str, tensors: Tensors) -> int | None:
    """Return the number that InvokeAI takes for the inputs of the layer of a key."""
    module, _, part = key.partition(".")
    shape = tensors[key].shape
    if part in ("lora_down.weight", "hada_w1_b", "hada_w2_b", "diff"):
        return shape[1] if len(shape) > 1 else None
    if "lokr_" in part:
        first, second = tensors.get(f"{module}.lokr_w1"), tensors.get(f"{module}.lokr_w2")
        return first.shape[1] * second.shape[1] if first and second else None
    return shape[0] if part == "weight" and not module.startswith("lora_unet_") and shape else None


def _text_width(tensors: Tensors) -> int | None:
    # In the order of the bytes: those of two encoders are added where the last key of the first one tells its width.
    widths: dict[str, int | None] = dict.fromkeys(_NUMBERED)
    for key in sorted(tensors, key=lambda key: tensors[key].start):
        width = None
        if key.startswith("lora_unet_"):
            if any(part in key for part in ("_attn2_to_k.", "_attn2_to_v.", "time_emb_proj.lora_down")):
                width = _width(key, tensors)
        elif key.startswith("lora_te") and "_self_attn_" in key:
            found = _width(key, tensors)
            if key.startswith("lora_te_"):
                width = found
            elif key.startswith(_NUMBERED):
                widths[key[: len(_NUMBERED[0])]] = found
        both = [own for own in widths.values() if own is not None]
        if len(both) == len(_NUMBERED):
            width = sum(both)
        if width is not None:
            return width
    return None


def _unlike(width: int | None) -> str:
    return f"unrecognized token vector length {width}"


def _of_width(expected: int, adapter: Adapter) -> str | None:
    width = _text_width(adapter.checkpoint.tensors)
    if width != expected:
        return _unlike(width)
    if _has_no_dot(adapter):
        return _UNPACK
    return UNSUPPORTED if flat_without_kind(own_keys(adapter)) else None


_SD15, _SD2, _SDXL = 768, 1024, (1280, 2048)


def _of_sdxl(adapter: Adapter) -> str | None:
    width = _text_width(adapter.checkpoint.tensors)
    if width not in _SDXL:
        deep = map(re.compile(_DEEP).match, adapter.checkpoint.tensors)
        if width is not None or not any(found and found[1].lstrip("0") not in ("", "1") for found in deep):
            return _unlike(width)
    for key in own_keys(adapter):
        if not key.startswith(("lora_unet_", "lora_te1_", "lora_te2_")):
            return f"Unrecognized SDXL LoRA key prefix: '{key}'."
    return UNSUPPORTED if flat_without_kind(own_keys(adapter)) else None


def _unet(layouts: tuple[str, ...], encoders: tuple[str, ...]) -> Iterator[Rule]:
    for rule in (FLAT_PEFT, FLAT):
        yield rule._replace(prefixes=("lora_unet_",), layouts=layouts)
        yield rule._replace(prefixes=encoders, layouts=(CLIP,))
    yield Rule(prefixes=("lora_unet_",), unfound=NOT_FOUND)
    # It asks each encoder for the layers of its own prefix, and nobody for those of another one.
    yield Rule(prefixes=("lora_te_", *_NUMBERED), layouts=(TEXT_ENCODERS,), unfound=PASSED)
    yield Rule(layouts=(TEXT_ENCODERS,), says=UNSUPPORTED)


# Diffusion transformers: words in the keys, and one of these ends.
_ENDS = ("lora_A.weight", "lora_B.weight", "lora_down.weight", "lora_up.weight", "dora_scale", "lokr_w1", "lokr_w2")
_OF_Z_IMAGE = tuple(end for end in _ENDS if not end.startswith("lokr"))


def _lacks(adapter: Adapter, starts: tuple[str, ...], ends: Iterable[str]) -> bool:
    keys = tensors_of(adapter)
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
    keys = tensors_of(adapter)
    is_like = any(map(re.compile(_WAN).match, keys)) and any(key.endswith(_ENDS) for key in keys)
    if not is_like:
        return "model does not match Wan LoRA heuristics"
    is_flat = any(key.startswith("lora_unet_blocks_") for key in keys)
    looks_at = re.compile(_WAN_LAYER if is_flat else _WAN_DOTTED).match
    parts = ((layer, end) for layer, end in parted(own_keys(adapter)) if looks_at(layer))
    return UNSUPPORTED if without_kind(parts, takes_peft=True) else None


_FLAT_QWEN_IMAGE = (
    r"lora_unet_transformer_blocks_\d+_(?:attn_(?:add_[qkv]_proj|to_add_out|to_out_0|to_[qkv])"
    r"|(?:img|txt)_(?:mlp_net_0_proj|mlp_net_2|mod_1))\."
)


def _of_qwen_image(adapter: Adapter) -> str | None:
    starts = ("transformer_blocks.", "transformer.transformer_blocks.", "lora_unet_transformer_blocks_")
    if _lacks(adapter, starts, _ENDS):
        return "model does not match Qwen Image LoRA heuristics"
    keys = own_keys(adapter)
    if any(key.startswith("lora_unet_transformer_blocks_") for key in keys):
        known = re.compile(_FLAT_QWEN_IMAGE).match
        return _UNPACK if _has_no_dot(adapter) else UNSUPPORTED if flat_without_kind(filter(known, keys)) else None
    return UNSUPPORTED if without_kind(parted(keys), takes_peft=True) else None


# Underscored names of Z-Image have a second underscore for it, and these layers alone.
_FLAT_Z_IMAGE = (
    r"lora_unet__(layers|context_refiner|noise_refiner)_\d+_(attention|feed_forward)_(to_k|to_q|to_v|w1|w2|w3)"
)


def _of_z_image(adapter: Adapter) -> str | None:
    blocks = ("diffusion_model.layers.", "diffusion_model.context_refiner.", "diffusion_model.noise_refiner.")
    is_flat = any(map(re.compile(_FLAT_Z_IMAGE).match, adapter.checkpoint.tensors))
    if not is_flat and _lacks(adapter, (*blocks, "transformer.layers."), _OF_Z_IMAGE):
        return "model does not match Z-Image LoRA heuristics"
    # It parts these once they have dots, as all others.
    known = re.compile(_FLAT_Z_IMAGE + r"\.").match
    keys = [f"layers.0.{key}" if known(key) else key for key in own_keys(adapter)]
    return UNSUPPORTED if without_kind(parted(keys), takes_peft=True) else None


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
        prefixes=("lora_unet_",), layouts=_EITHER, lacks=(*outside, *of_images, *added), unfound=PASSED, says=""
    )
    magnitudes = {**DOTTED_PEFT.magnitudes, ".dora_scale output": OTHER_AXIS, ".dora_scale input": COMPUTES}
    for rule in (DOTTED, DOTTED_PEFT._replace(scale=alpha_over_rank, magnitudes=magnitudes)):
        native = rule._replace(lacks=(*outside, *of_images), unfound=PASSED, says="")
        yield native._replace(prefixes=("diffusion_model.", "transformer.", ""), layouts=_EITHER)


def _qwen_image() -> Iterator[Rule]:
    outside = tuple(path for path in _paths("qwen_image", "diffusers") if not path.startswith("transformer_blocks."))
    yield FLAT_PEFT._replace(prefixes=("lora_unet_",), layouts=("diffusers",))
    yield FLAT._replace(prefixes=("lora_unet_",), layouts=("diffusers",), lacks=outside, unfound=PASSED, says="")
    for rule in (DOTTED, DOTTED_PEFT):
        yield rule._replace(prefixes=("transformer.", ""), layouts=("diffusers",))


def _z_image() -> Iterator[Rule]:
    leaves = (
        "attention.to_k",
        "attention.to_q",
        "attention.to_v",
        *(f"feed_forward.w{number}" for number in (1, 2, 3)),
    )
    for rule in (DOTTED, DOTTED_PEFT):
        yield rule._replace(prefixes=("diffusion_model.", "transformer."), layouts=("diffusers",))
        yield rule._replace(prefixes=("text_encoder.",), layouts=("model.layers.{i}",))
        for blocks in ("layers", "context_refiner", "noise_refiner"):
            yield rule._replace(prefixes=("lora_unet__",), paths=tuple(f"{blocks}.{{i}}.{leaf}" for leaf in leaves))
    yield Rule(prefixes=("lora_unet__",), layouts=("diffusers",), unfound=NOT_FOUND)
    yield Rule(prefixes=("text_encoder.",), layouts=("layers.{i}",), unfound=NOT_FOUND)
    yield Rule(prefixes=("diffusion_model.",), layouts=("original",), unfound=NOT_FOUND)


# Anima: layers that Wan has not.
_ANIMA = (
    r"(?:lora_unet_(?:llm_adapter_)?|(?:diffusion_model|transformer|base_model\.model\.transformer)\.)blocks[._]\d+[._]"
    r"(?:mlp[._]layer|adaln_modulation|(?:cross|self)_attn[._](?:[qkv]_proj|output_proj))"
)


def _of_anima(adapter: Adapter) -> str | None:
    keys = tensors_of(adapter)
    if not (any(map(re.compile(_ANIMA).search, keys)) and any(key.endswith(_ENDS) for key in keys)):
        return "model does not match Anima LoRA heuristics"
    is_flat = any(key.startswith(("lora_unet_", "lora_te_")) for key in keys)
    ends = (
        ENDS if is_flat else (*ENDS, ".lokr_w1", ".lokr_w2", *(f".lokr_w{at}_{side}" for at in "12" for side in "ab"))
    )
    return UNSUPPORTED if without_kind(parted(own_keys(adapter), ends), takes_peft=not is_flat) else None


@OfKind
def _beside_lokr(given: Given) -> str | LoadFailure | Strangers | None:
    """Return "" for the untried magnitude of LoKr, else the usual treatment."""
    return "" if given.contribution.algorithm.name == "lokr" and given.contribution.magnitude else exceptions(given)


def _anima() -> Iterator[Rule]:
    paths = _paths("anima", "original")
    # The layers of attentions are the only ones whose underscored names it knows in the adapter of the language model.
    attention = tuple(f"_attn.{layer}_proj" for layer in ("q", "k", "v", "o", "output"))
    lacks = tuple(
        path
        for path in paths
        if not path.startswith("blocks.") and not (path.startswith("llm_adapter.blocks.") and path.endswith(attention))
    )
    for rule in (FLAT_PEFT, FLAT._replace(exceptions=_beside_lokr)):
        flat = rule._replace(prefixes=("lora_unet_",), lacks=lacks, unfound=NOT_FOUND, layouts=("original",))
        yield flat._replace(lacks=()) if rule is FLAT_PEFT else flat._replace(says="")
        yield rule._replace(prefixes=("lora_te_",), layouts=("layers.{i}",))
    yield Rule(prefixes=("lora_te_",), layouts=("model.layers.{i}",), unfound=NOT_FOUND)
    kinds = {**DOTTED.kinds, "lokr": COMPUTES}
    for rule in (DOTTED._replace(kinds=kinds, exceptions=_beside_lokr), DOTTED_PEFT):
        yield rule._replace(prefixes=("transformer.", "diffusion_model."), layouts=("original",))
        yield rule._replace(prefixes=("text_encoder.",), layouts=("model.layers.{i}",))


# Krea 2: words that no other family has, and both factors of every module.
_PAIRS = {"lora_A": "lora_B", "lora_B": "lora_A", "lora_down": "lora_up", "lora_up": "lora_down"}


def _of_krea2(adapter: Adapter) -> str | None:
    keys = tensors_of(adapter)
    words = ("text_fusion", "txtfusion", "time_mod_proj")
    is_like = any(word in key for key in keys for word in words)
    is_like = is_like or all(any(f".attn.{layer}." in key for key in keys) for layer in ("wq", "gate"))
    halves = [key.rsplit(".", 2) for key in keys if key.endswith(tuple(f".{side}.weight" for side in _PAIRS))]
    if not (is_like and halves and all(f"{module}.{_PAIRS[side]}.{end}" in keys for module, side, end in halves)):
        return "model does not match Krea-2 LoRA heuristics"
    dotted = [key for key in own_keys(adapter) if not key.startswith("lora_unet_")]
    return UNSUPPORTED if without_kind(parted(dotted, _ENDS_OF_KREA2), takes_peft=True) else None


_ENDS_OF_KREA2 = (*ENDS, ".lora_magnitude_vector.weight")


# It reads PEFT's magnitudes as those of its own axis.
_OF_KREA2 = DOTTED._replace(
    dialects=("kohya", "peft", INFIXED),
    kinds={"lora": COMPUTES},
    magnitudes={**DOTTED.magnitudes, ".lora_magnitude_vector.weight output": OTHER_AXIS},
)


def _is_unflattened(adapter: Adapter) -> Finder:
    """Return a finder for underscored names.

    InvokeAI finds a module if it knows the ends of all its keys.
    """
    cut = (key.partition(".") for key in tensors_of(adapter))
    others = {module for module, dot, end in cut if dot + end not in _ENDS_OF_KREA2}
    return lambda given: given.module.name.key not in others


def _krea2() -> Iterator[Rule]:
    yield _OF_KREA2._replace(prefixes=("diffusion_model.", "transformer.", ""), layouts=_EITHER)
    yield _OF_KREA2._replace(
        prefixes=("lora_unet_",), layouts=("original",), finds=_is_unflattened, unfound=NOT_FOUND, says=""
    )
    yield Rule(prefixes=("base_model.model.", "lycoris_"), layouts=_EITHER, unfound=NOT_FOUND)


PROGRAM = Program(
    name="invokeai",
    title="InvokeAI",
    version="6.14.0-alpha (2026-08-19)",
    ran="2026-12-01",
    loaders=(
        loader_of("sd15", partial(_unet, ("diffusers",), ("lora_te_",)), partial(_of_width, _SD15)),
        loader_of("sd2", partial(_unet, ("diffusers",), ("lora_te_",)), partial(_of_width, _SD2)),
        loader_of("sdxl", partial(_unet, _EITHER, _NUMBERED), _of_sdxl),
        *invokeai_flux.LOADERS,
        loader_of("wan", _wan, _of_wan),
        loader_of("qwen_image", _qwen_image, _of_qwen_image),
        loader_of("z_image", _z_image, _of_z_image),
        loader_of("anima", _anima, _of_anima),
        loader_of("krea2", _krea2, _of_krea2),
    ),
    schemes={
        "sd15": "kohya",
        "sd2": "kohya",
        "sdxl": "kohya",
        "flux": "kohya",
        "flux2": "kohya",
        "wan": "comfyui",
        "qwen_image": "kohya",
        "z_image": "diffusers",
        "anima": "kohya",
        "krea2": "comfyui",
    },
)
