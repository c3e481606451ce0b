"""FLUX.1 and FLUX.2 in InvokeAI: the format by all keys, the model by shapes.

Sources: `flux_format_from_state_dict` with the conversions that it chooses from, and `_is_flux2_lora_state_dict`.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping

from lora_inspect.caching import remembering_names
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.programs.known.invokeai_flux_diffusers import failure_of_dotted, failure_of_underscored
from lora_inspect.programs.known.invokeai_rules import (
    CLIP,
    FLAT,
    FLAT_PEFT,
    NOT_FOUND,
    PASSED,
    T5,
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
    FAILS,
    HIDING,
    INFIXED,
    LEAVES,
    TEXT_ENCODERS,
    WARNS,
    FileTest,
    Given,
    LoadFailure,
    OfKind,
    Rule,
    Strangers,
)
from lora_inspect.reading.adapter import Adapter

Tensors = Mapping[str, TensorInfo]
# The formats, by the ways in which they are converted.
_KOHYA, _ONETRAINER, _DIFFUSERS, _XLABS, _OWN, _LYCORIS = "kohya", "onetrainer", "diffusers", "xlabs", "own", "lycoris"
_TEXT = (
    r"|lora_te1_text_model_encoder_layers_\d+_(?:mlp|self_attn)_"
    r"|lora_te2_encoder_block_\d+_layer_\d+_(?:DenseReluDense|SelfAttention)_"
)
_KEY_OF_KOHYA = (
    r"lora_unet_\w+_blocks_\d+_(?:(?:img|txt)_(?:attn|mlp|mod)|linear[12]|modulation)|lora_unet_final_layer_linear"
    + _TEXT
)
_KEY_OF_ONETRAINER = r"lora_transformer_(?:single_)?transformer_blocks_\d+_\w+\." + _TEXT
_KEY_OF_XLABS = r"double_blocks\.\d+\.processor\.(?:qkv|proj)_lora[12]\.(?:down|up)\.weight"
_ENDS_OF_LORA = ("lora_A.weight", "lora_B.weight", "lora.down.weight", "lora.up.weight")
_ENDS_OF_LYCORIS = (
    *("lokr_w1", "lokr_w2", "lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
    *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
)
_ENDS_OF_BFL = ("lora_A.weight", "lora_B.weight", *_ENDS_OF_LYCORIS, "alpha", "dora_scale", "diff")
_PREFIXES = ("diffusion_model.", "base_model.model.")
_BLOCKS = tuple(f"{prefix}{blocks}_blocks." for prefix in _PREFIXES for blocks in ("double", "single"))
# Layers that only FLUX.2 has in diffusers.
_OF_FLUX2 = ("to_qkv_mlp_proj", "ff.linear_in", "ff_context.linear_in")
_FIRST = ("single_transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.add_q_proj")


@remembering_names
def _is_of_kohya(key: str) -> bool:
    return bool(re.match(_KEY_OF_KOHYA, key))


@remembering_names
def _is_of_onetrainer(key: str) -> bool:
    return bool(re.match(_KEY_OF_ONETRAINER, key))


def _is_of_diffusers(keys: Tensors) -> bool:
    if not all(key.endswith(_ENDS_OF_LORA) for key in keys):
        return False
    for prefix in ("transformer.", "base_model.model."):
        if all(f"{prefix}{layer}.lora_{side}.weight" in keys for layer in _FIRST for side in "AB"):
            return True
    starts = tuple(
        f"{prefix}{blocks}"
        for prefix in ("transformer.", "base_model.model.", "")
        for blocks in ("transformer_blocks.", "single_transformer_blocks.")
    )
    return _has_flux2(keys) and any(key.startswith(starts) for key in keys)


def _has_flux2(keys: Iterable[str]) -> bool:
    return any(part in key for key in keys for part in _OF_FLUX2)


def _is_of_ai_toolkit(metadata: Mapping[str, str]) -> bool:
    """Return True if InvokeAI takes dotted original names for ai-toolkit's.

    Its metadata must name ai-toolkit, or be empty.
    """
    if not metadata:
        return True
    try:
        software = json.loads(metadata.get("software", "{}"))
    except json.JSONDecodeError:
        return False
    return isinstance(software, dict) and software.get("name") == "ai-toolkit"


def format_of(adapter: Adapter) -> str | None:
    """Return the format of FLUX that InvokeAI detects, or None.

    A format is named by its conversion.
    """
    keys = tensors_of(adapter)
    if all(map(_is_of_kohya, keys)):
        return _KOHYA
    if all(map(_is_of_onetrainer, keys)):
        return _ONETRAINER
    if _is_of_diffusers(keys):
        return _DIFFUSERS
    if all(re.match(_KEY_OF_XLABS, key) for key in keys):
        return _XLABS
    is_lycoris = any(key.endswith(_ENDS_OF_LYCORIS) for key in keys)
    has_own = not is_lycoris and any(key.startswith(_BLOCKS[:2]) for key in keys)
    if has_own and _is_of_ai_toolkit(adapter.checkpoint.metadata):
        return _OWN
    if not all(key.endswith(_ENDS_OF_BFL) and key.startswith(_PREFIXES) for key in keys):
        return None
    if not any(key.startswith(_BLOCKS) for key in keys):
        return None
    # It does not ask the metadata again when it loads the file.
    return _OWN if has_own else _LYCORIS


# FLUX.2: the widths of its language model, its vectors, and layers that are not as wide as those of FLUX.1.
_CONTEXTS, _VECTORS = (7680, 12288, 15360), (2560, 4096, 5120)
_WIDTH = 3072
_FACTORS = ((".lokr_w1", ".lokr_w2"), (".lokr_w1_b", ".lokr_w2_b"))


def _size(keys: Tensors, module: str, side: int) -> int | None:
    """Return the inputs (1) or the rows (0) of a module, from LoRA or LoKR.

    They are the numbers that InvokeAI reads.
    """
    suffixes = (".lora_A.weight", ".lora_down.weight") if side else (".lora_B.weight", ".lora_up.weight")
    for suffix in suffixes:
        if module + suffix in keys:
            return keys[module + suffix].shape[side]
    parts = _FACTORS if side else (_FACTORS[0], (".lokr_w1_a", ".lokr_w2_a"))
    for first, second in parts:
        if module + first in keys and module + second in keys:
            return keys[module + first].shape[side] * keys[module + second].shape[side]
    return None


def _modules(keys: Iterable[str], prefixes: tuple[str, ...]) -> dict[str, None]:
    ends = ("lora_A.weight", "lora_down.weight", "lokr_w1", "lokr_w1_b")
    found = (key.removesuffix(end).removesuffix(".") for key in keys for end in ends if key.endswith("." + end))
    return dict.fromkeys(module for module in found if module.startswith(prefixes))


def is_flux2(adapter: Adapter) -> bool:
    """Return True if InvokeAI takes a file of one of its formats for FLUX.2."""
    keys = tensors_of(adapter)
    for prefix in ("transformer.", "base_model.model.", ""):
        for layer, widths in (
            ("context_embedder", _CONTEXTS),
            ("time_text_embed.text_embedder.linear_1", _VECTORS),
        ):
            if info := keys.get(f"{prefix}{layer}.lora_A.weight"):
                return info.shape[1] in widths
        fused = ("single_transformer_blocks.0.attn.to_qkv_mlp_proj", "transformer_blocks.0.ff.linear_in")
        if any(f"{prefix}{layer}.lora_A.weight" in keys for layer in fused):
            return True
    # Dotted names in kohya's spelling have no widths for it.
    spelled = {key: info for key, info in keys.items() if ".lora_down." not in key}
    modules = _modules(spelled, _PREFIXES)
    width = None
    for module in modules:
        own = _size(spelled, module, 1)
        if own is None:
            continue
        if module.endswith(".img_attn.proj"):
            width = own
            if width != _WIDTH:
                return True
        for part, widths in _TOLD:
            if part in module:
                return own in widths
    if _is_of_4b(spelled, modules, ".img_mlp.0", width):
        return True
    modules = _modules(keys, ("lora_unet_",))
    for part, widths in _TOLD:
        own = _size(keys, f"lora_unet_{part}", 1)
        if own is not None:
            return own in widths
    width = next((_size(keys, module, 1) for module in modules if module.endswith("_img_attn_proj")), None)
    return width not in (None, _WIDTH) or _is_of_4b(keys, modules, "_img_mlp_0", width)


_TOLD = (("txt_in", _CONTEXTS), ("vector_in", _VECTORS))


def _is_of_4b(keys: Tensors, modules: Iterable[str], end: str, width: int | None) -> bool:
    """Return True if the first wide layer has other rows than FLUX.1's.

    FLUX.1 is as wide as FLUX.2 Klein 4B.
    """
    first = next((module for module in modules if module.endswith(end)), None)
    return width == _WIDTH and first is not None and _size(keys, first, 0) not in (None, 4 * _WIDTH)


def _of_flux(adapter: Adapter) -> str | None:
    found = format_of(adapter)
    if found is None:
        return None if _for_control(adapter) else NOT_FLUX
    if is_flux2(adapter):
        return "the file is taken for one of FLUX.2"
    failure = _FAILURES.get(found)
    return (failure and failure(own_keys(adapter))) or _without_kind(found, adapter)


_FAILURES = {_ONETRAINER: failure_of_underscored, _DIFFUSERS: failure_of_dotted}


def _without_kind(found: str, adapter: Adapter) -> str | None:
    """Return the error for a file with a layer of no known kind.

    InvokeAI splits the keys of each format in another way.
    """
    keys = own_keys(adapter)
    if found in (_KOHYA, _ONETRAINER):
        # The conversion of diffusers' layers, OneTrainer's among them, takes both spellings.
        kept = (key for key in keys if not key.startswith("lora_unet_final_layer"))
        own = (key.replace(".lora_A.", ".lora_up.") if key.startswith("lora_transformer_") else key for key in kept)
        return UNSUPPORTED if flat_without_kind(own) else None
    if found != _OWN:
        return None
    parts = list(parted(keys, ()))
    if any("." not in layer for layer, _ in parts):
        return "not enough values to unpack (expected 2, got 1)"
    renamed = [
        (layer, end.replace("lora_A.", "lora_down.").replace("lora_B.", "lora_up."))
        for layer, end in parts
        if layer.startswith(_PREFIXES[0])
    ]
    return UNSUPPORTED if without_kind(renamed, takes_peft=False) else None


def _of_flux2(adapter: Adapter) -> str | None:
    found = format_of(adapter)
    if found is None:
        return NOT_FLUX
    if not is_flux2(adapter):
        return "the file is taken for one of FLUX.1"
    return _without_kind(found, adapter)


NOT_FLUX = "the file is in none of the formats of FLUX that it knows"


def _is(wanted: str | None) -> FileTest:
    def test(adapter: Adapter) -> bool:
        return format_of(adapter) == wanted

    return test


_IS = {name: _is(name) for name in (_KOHYA, _ONETRAINER, _DIFFUSERS, _XLABS, _OWN, _LYCORIS, None)}
_LORA = Rule(kinds={"lora": COMPUTES})
_ANY = FLAT._replace(dialects=("", "kohya", "lycoris", "peft", INFIXED))
_GUIDANCE = tuple(f"time_text_embed.guidance_embedder.linear_{number}" for number in (1, 2))


def _encoders() -> Iterator[Rule]:
    for rule in (FLAT_PEFT, FLAT):
        yield rule._replace(prefixes=("lora_te1_",), layouts=(CLIP,))
        yield rule._replace(prefixes=("lora_te2_",), layouts=(T5,))


def _flux() -> Iterator[Rule]:
    in_kohya = FLAT._replace(lacks=("final_layer.linear",), unfound=PASSED, says="")
    for rule in (FLAT_PEFT, in_kohya):
        yield rule._replace(prefixes=("lora_unet_",), layouts=("original",), where=_IS[_KOHYA])
    yield from _encoders()
    in_onetrainer = Rule(prefixes=("lora_transformer_",), layouts=("diffusers",), where=_IS[_ONETRAINER])
    in_peft = in_onetrainer._replace(dialects=("peft", INFIXED), says="AssertionError")
    yield in_peft._replace(alpha=True, kinds={"lora": FAILS})
    yield in_peft._replace(alpha=False, kinds={"lora": COMPUTES})
    yield FLAT._replace(prefixes=in_onetrainer.prefixes, layouts=in_onetrainer.layouts, where=in_onetrainer.where)
    in_diffusers = _LORA._replace(
        prefixes=("transformer.", "base_model.model."), dialects=("peft", INFIXED), where=_IS[_DIFFUSERS]
    )
    yield in_diffusers._replace(paths=("norm_out.linear",), kinds={}, says="AssertionError")
    # It gives both to a module that has no weight.
    yield in_diffusers._replace(paths=_GUIDANCE, kinds={}, says="KeyError: 'weight'")
    yield in_diffusers._replace(layouts=("diffusers",))
    yield Rule(where=_IS[_DIFFUSERS], layouts=(TEXT_ENCODERS,), says="AssertionError")
    yield _LORA._replace(layouts=("xlabs",), dialects=("", HIDING), prefixes=("",), where=_IS[_XLABS])
    yield from _dotted()


def _dotted() -> Iterator[Rule]:
    yield FLAT._replace(
        prefixes=("diffusion_model.",),
        layouts=("original",),
        dialects=("peft", "kohya", INFIXED),
        alpha=False,
        where=_IS[_OWN],
    )
    yield Rule(layouts=(TEXT_ENCODERS,), where=_IS[_OWN], unfound=Strangers(WARNS, "Unexpected submodel name"))
    yield _ANY._replace(prefixes=_PREFIXES, layouts=("original",), where=_IS[_LYCORIS])
    yield Rule(where=_IS[None])


# Of FLUX.2 it has the model in diffusers' layout, and cuts the fused layers of an attention into three parts.
_QKV = ("double_blocks.{i}.img_attn.qkv", "double_blocks.{i}.txt_attn.qkv")
_UNNAMED = ("final_layer.adaLN_modulation.1", "guidance_in.in_layer", "guidance_in.out_layer")
_NOT_CUT = Strangers(WARNS, "Unsupported layer type for QKV split")


@OfKind
def _cut_when_applied(given: Given) -> str | LoadFailure | Strangers | None:
    magnitude = given.contribution.magnitude
    is_plain = given.contribution.algorithm.name == "lora" and not (
        magnitude and magnitude.spelling.suffix == ".dora_scale"
    )
    return exceptions(given) if is_plain else NOT_FOUND


@OfKind
def _cut_when_loaded(given: Given) -> str | LoadFailure | Strangers | None:
    return exceptions(given) if given.contribution.algorithm.name in ("lora", "lokr") else _NOT_CUT


def _flux2() -> Iterator[Rule]:
    in_kohya = FLAT._replace(lacks=("final_layer.linear",), unfound=PASSED, says="")
    for rule in (FLAT_PEFT, in_kohya._replace(paths=_QKV, exceptions=_cut_when_applied), in_kohya):
        yield rule._replace(prefixes=("lora_unet_",), layouts=("original",), where=_IS[_KOHYA])
    yield _LORA._replace(
        prefixes=("transformer.", "base_model.model.", ""),
        layouts=("diffusers",),
        dialects=("peft", INFIXED),
        where=_IS[_DIFFUSERS],
    )
    for own in _dotted():
        rule = own._replace(lacks=_UNNAMED, unfound=own.unfound or NOT_FOUND, says="") if own.kinds else own
        is_loaded = own.prefixes == _PREFIXES
        if own.kinds:
            yield rule._replace(
                paths=_QKV,
                exceptions=_cut_when_loaded if is_loaded else _cut_when_applied,
                magnitudes=dict.fromkeys(rule.magnitudes, LEAVES) if is_loaded else rule.magnitudes,
            )
        yield rule


def _for_control(adapter: Adapter) -> str | None:
    """Return the unknown effect of an adapter that widens the input.

    InvokeAI has separate nodes for these, and they were not run.
    """
    info = adapter.checkpoint.tensors.get("img_in.lora_A.weight")
    is_wider = info is not None and "img_in.lora_B.bias" in adapter.checkpoint.tensors and info.shape[1] == _OF_CONTROL
    return "what becomes of an adapter that widens the input" if is_wider else None


_OF_CONTROL = 128
LOADERS = (loader_of("flux", _flux, _of_flux)._replace(unsure=_for_control), loader_of("flux2", _flux2, _of_flux2))
