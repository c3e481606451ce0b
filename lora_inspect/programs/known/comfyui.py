"""ComfyUI: its own names, kohya's, and mapped names of diffusers, at alpha/rank.

The loader makes a dictionary of names from the model. A name counts if it is there, for any spelling of the factors;
other names get a warning. Forge has the dictionary in an older form.

The rules are those of 0.33.0. The dictionary of 0.38 adds names of HiDream-O1 behind `model.`, of MiniMax H3 without a
prefix, and of Qwen-Image 2.1 for the halves of `img_mlp.gate_up`, but those not under ComfyUI's own prefixes. 0.38 also
splits Krea 2's fused `attn.to_qkv` of LoRA and LoKr, as SimpleTuner writes it.

Sources: `comfy/lora.py`, `comfy/lora_convert.py`, `comfy/weight_adapter/` and `comfy/utils.py` of ComfyUI, run on a
small model of every family here; `packages_3rdparty/comfyui_lora_collection` of Forge.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import product

from lora_inspect.architectures import by_name
from lora_inspect.architectures.record import is_parameter
from lora_inspect.architectures.text_encoders import ROOTS
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.programs.record import (
    BASE_NORM,
    COMPUTES,
    HIDING,
    INFIXED,
    LEAVES,
    MISREADS,
    SLICED,
    TEXT_ENCODERS,
    WARNS,
    FileTest,
    Given,
    Loader,
    LoadFailure,
    OfKind,
    Program,
    Rule,
    RulesByFamily,
    Strangers,
)
from lora_inspect.reading.adapter import Adapter

# Both divide by the norms of the base where the magnitudes are of outputs.
MAGNITUDES: Mapping[str, str] = {
    ".dora_scale output": BASE_NORM,
    ".dora_scale input": COMPUTES,
    **dict.fromkeys((".dora_layer.weight output", ".magnitude output", ".m output", ".m input"), LEAVES),
    **dict.fromkeys((".lora_magnitude_vector output", ".lora_magnitude_vector.weight output"), LEAVES),
}
# A key by which both know the control adapters of FLUX.1's own makers, and rename all keys of them.
BFL_CONTROL = ("img_in.lora_A.weight", "single_blocks.0.norm.key_norm.scale")


class Names(NamedTuple):
    """Names in the dictionary: `prefixes` before the paths of a `layout`.

    They count for the `families`. `lacks` are the paths that are not in it.
    """

    families: tuple[str, ...]
    layout: str
    prefixes: tuple[str, ...]
    lacks: tuple[str, ...] = ()


OWN = ("diffusion_model.", "lora_unet_")
UNETS = ("sd15", "sd2", "sdxl")
# The attentions of a UNet in diffusers' names, which are in the dictionary by the names of their processors alone.
_PLACES = ("down_blocks.{i}.attentions.{i}", "mid_block.attentions.0", "up_blocks.{i}.attentions.{i}")
_ATTENTIONS = tuple(
    f"{place}.transformer_blocks.{{i}}.{attention}.{leaf}"
    for place, attention, leaf in product(_PLACES, ("attn1", "attn2"), ("to_q", "to_k", "to_v", "to_out.0"))
)
OF_UNETS = (
    Names(UNETS, "original", OWN),
    Names(UNETS, "diffusers", ("lora_unet_", "lycoris_")),
    Names(UNETS, "diffusers", ("", "unet."), _ATTENTIONS),
)
# Norms of FLUX.1 and of what was made of it, whose weights are no `.weight` in older code.
NORMS = tuple(
    f"{block}.norm.{which}_norm"
    for block in ("double_blocks.{i}.img_attn", "double_blocks.{i}.txt_attn", "single_blocks.{i}")
    for which in ("query", "key")
)
# Text encoders, by the root of their blocks in place of a layout.
CLIP, T5 = "text_model.encoder.layers.{i}", "encoder.block.{i}.layer.{i}"
FIRST = ("lora_te_", "lora_te1_", "text_encoder.")
SECOND = ("lora_te2_", "text_encoder_2.")


def names_of(family: str, names: Iterable[Names]) -> list[Names]:
    """Return the names of one family."""
    return [one._replace(families=(family,)) for one in names if family in one.families]


def rules_of(names: Iterable[Names], loaded: Rule) -> Iterator[Rule]:
    """Yield the rules of these names.

    Parameters that are no weights have a name only under ComfyUI's own prefix.
    """
    for families, layout, prefixes, lacks in names:
        for family in families:
            norms = (path for one in by_name(family).layouts if layout in one.names for path in one.norms)
            parameters = tuple(path for path in norms if is_parameter(path))
            of_layout = loaded._replace(families=(family,), layouts=(layout,))
            for prefix in prefixes:
                own = () if prefix == "diffusion_model." else parameters
                yield of_layout._replace(prefixes=(prefix,), lacks=(*lacks, *own))


def left_of(names: Iterable[Names]) -> Iterator[Rule]:
    """Yield the rules of tried paths that are not in the dictionary.

    They are paths of the model or of an encoder.
    """
    tried = {one.layout in ROOTS for one in names}
    if False in tried:
        yield Rule(layouts=("original", "comfyui", "diffusers", "xlabs"))
    if True in tried:
        yield Rule(layouts=(TEXT_ENCODERS,))


def holds(*keys: str) -> FileTest:
    """Return a test for a file that has all these keys."""

    def test(adapter: Adapter) -> bool:
        return all(key in adapter.checkpoint.tensors for key in keys)

    return test


def families_of(names: Iterable[Names]) -> tuple[str, ...]:
    """Return the families of the names, each once."""
    return tuple(dict.fromkeys(family for one in names for family in one.families))


def is_replaced(given: Given, order: tuple[str, ...]) -> bool:
    """Return True if a later change of the module in `order` replaces this one."""
    algorithm = given.contribution.algorithm.name
    beside = {one.algorithm.name for one in given.module.contributions}
    return algorithm in order and not beside.isdisjoint(order[order.index(algorithm) + 1 :])


_KINDS: Mapping[str, str] = {
    **dict.fromkeys(("lora", "loha", "lokr", "glora", "old_glora", "oft", "lycoris_boft", "set_weight"), COMPUTES),
    **dict.fromkeys(("full", "full_bias", "norm", "norm_bias", "reshaped"), COMPUTES),
    # It makes the whole product, which is one of the exceptions.
    "lokr_rows": COMPUTES,
    # It multiplies their two factors as LoRA's, without the third.
    **dict.fromkeys(("adalora", "kasa"), MISREADS),
    # Its factors are spelled as LoRA's.
    "bdlora": "",
    # All else has suffixes that it never looks up.
    "": LEAVES,
}
_PARTS: Mapping[str, str] = {
    "lokr.t1": MISREADS,
    "oft.rescale": MISREADS,
    "glora.bm": MISREADS,
    "old_glora.bm": MISREADS,
}
# What changes a weight, in the order in which it is looked up: the last of a module takes the place of all before.
_OF_WEIGHTS = ("lora", "loha", "lokr", "glora", "old_glora", "oft", "lycoris_boft", "norm", "full", "set_weight")
# The core of a Tucker form in two dimensions, of which it computes no other.
_CORES = {"lora": "mid", "loha": "t1"}
_CORE_OF_CONV2D = 4
_OTHER_CORE = "RuntimeError: the shape of a core is invalid, which has to be of two dimensions"


# It logs an error where a change fails, and leaves the weight.
_LOGGED = {
    "lokr": "ERROR lokr, the weight and what PyTorch 2.13 says: view size is not compatible",
    "lokr_rows": "ERROR lokr, the weight and what PyTorch says of its shape",
    "lycoris_boft": "ERROR boft, the weight and '>' not supported between instances of 'NoneType' and 'int'",
}


@OfKind
def _exceptions(given: Given) -> str | LoadFailure | Strangers | None:
    """Return the treatment of a contribution by shapes, alpha and its module's changes."""
    algorithm, factors = given.contribution.algorithm.name, given.contribution.factors
    beside = {one.algorithm.name for one in given.module.contributions}
    if is_replaced(given, _OF_WEIGHTS):
        return MISREADS
    if algorithm == "norm_bias" and "norm" not in beside:
        return LEAVES
    if _is_logged(given):
        return Strangers(WARNS, _LOGGED[algorithm])
    if algorithm in ("oft", "lycoris_boft"):
        return _of_rotation(given)
    core = factors.get(_CORES.get(algorithm, ""))
    return LoadFailure(_OTHER_CORE) if core and len(core.shape) != _CORE_OF_CONV2D else None


# The name of a bias that it makes of the rows of a layer, and does not find in the model.
_OF_ROWS = Strangers(WARNS, "NOT LOADED ().bias")


@OfKind
def _exceptions_of_rows(given: Given) -> str | LoadFailure | Strangers | None:
    """Return the treatment under names of rows, or of reordered rows, of a layer.

    ComfyUI takes no bias under these names.
    """
    return _OF_ROWS if given.contribution.algorithm.name == "full_bias" else _exceptions(given)


def _paths_of_rows(family: str) -> tuple[str, ...]:
    """Return the paths of such names.

    Modulations that ComfyUI swaps only in the last block are not among them.
    """
    arranged = [one for one in by_name(family).correspondence.relations if one.arrangement is not None]
    if not arranged:
        return ()
    from lora_inspect.architectures.rows import PairSwapped

    return tuple(path for one in arranged if not isinstance(one.arrangement, PairSwapped) for path in one.parts)


def _is_logged(given: Given) -> bool:
    """Return True if the change of the weight fails with a logged error.

    It does so for rows of a product, LoKr with a core, and BOFT without alpha.
    """
    algorithm = given.contribution.algorithm.name
    if algorithm == "lycoris_boft":
        return given.module.alpha is None
    return algorithm == "lokr_rows" or (algorithm == "lokr" and "t2" in given.contribution.factors)


def _of_rotation(given: Given) -> str | None:
    """Return "" for a rotation with alpha or a magnitude, as its result is unknown.

    ComfyUI takes alpha itself as the limit of a norm, not alpha times the rows, so the numbers decide the effect.
    """
    is_limited = bool(given.contribution.alpha)
    return "" if is_limited or given.contribution.magnitude else None


_LOADED = Rule(kinds=_KINDS, magnitudes=MAGNITUDES, parts=_PARTS, exceptions=_exceptions)
# Factors of slices, those with an adapter's name inside and those of GGUF are not looked up.
_PASSED = Rule(dialects=(SLICED, INFIXED, "gguf"), kinds={"": LEAVES})
# Of names inside there is one exception.
_DEFAULTS = (".lora_A.default.weight", ".lora_B.default.weight")


def _has_defaults(adapter: Adapter) -> bool:
    infixed = (key for key in adapter.checkpoint.tensors if ".lora_A." in key and not key.endswith(".lora_A.weight"))
    return all(key.endswith(_DEFAULTS) for key in infixed)


_OF_DIFFUSERS = ("transformer.", "lycoris_", "lora_transformer_")
_OF_CHROMA = (
    *("distilled_guidance_layer.in_proj", "distilled_guidance_layer.out_proj", "distilled_guidance_layer.norms.{i}"),
    *("distilled_guidance_layer.layers.{i}.linear_1", "distilled_guidance_layer.layers.{i}.linear_2"),
)
_OF_FLUX2 = (
    *(f"{which}.linear" for which in ("double_stream_modulation_img", "double_stream_modulation_txt")),
    "single_stream_modulation.linear",
    *(
        f"time_guidance_embed.{which}_embedder.{linear}"
        for which in ("guidance", "timestep")
        for linear in ("linear_1", "linear_2")
    ),
)
# The older names of HunyuanVideo's embedders and norms, which it does not know.
_EMBEDDERS = (
    *("time_in.mlp.0", "time_in.mlp.2", "txt_in.t_embedder.mlp.0", "txt_in.t_embedder.mlp.2"),
    *("txt_in.c_embedder.linear_1", "txt_in.c_embedder.linear_2"),
    *(f"double_blocks.{{i}}.{side}_attn_{which}_norm" for side in ("img", "txt") for which in ("q", "k")),
)
_GUIDANCE = (*("guidance_in.mlp.0", "guidance_in.mlp.2"), *("single_blocks.{i}.q_norm", "single_blocks.{i}.k_norm"))
_SPLIT = tuple(f"double_blocks.{{i}}.{side}_attn_{which}" for side in ("img", "txt") for which in ("q", "k", "v"))
# Its own names of these, which it knows under its own prefixes alone.
_RENAMED = (
    *(f"double_blocks.{{i}}.{side}_attn.{leaf}" for side in ("img", "txt") for leaf in ("qkv", "proj")),
    *(f"double_blocks.{{i}}.{side}_{leaf}" for side in ("img", "txt") for leaf in ("mlp.0", "mlp.2", "mod.lin")),
    *(
        f"txt_in.individual_token_refiner.blocks.{{i}}.{leaf}"
        for leaf in ("mlp.0", "mlp.2", "self_attn.qkv", "self_attn.proj")
    ),
)
# What Lumina's names have in common with the names of Z-Image, which it takes them for.
_NOT_OF_Z_IMAGE = (
    *("x_embedder", "final_layer.linear", "final_layer.adaLN_modulation.1"),
    *("layers.{i}.adaLN_modulation.1", "noise_refiner.{i}.adaLN_modulation.1"),
    *(
        f"{block}.{{i}}.attention.{leaf}"
        for block in ("layers", "noise_refiner", "context_refiner")
        for leaf in ("qkv", "out", "q_norm", "k_norm")
    ),
)
# In both versions, though not all norms are in the earlier one.
_COMMON = (
    *OF_UNETS,
    Names(("sd3", "wan", "lumina2", "auraflow", "ltx_video", "cosmos", "ace_step"), "original", OWN),
    Names(("qwen_image", "hidream_i1"), "diffusers", (*OWN, "transformer.", "lycoris_")),
    Names(("sd3",), "diffusers", ("base_model.model.", *_OF_DIFFUSERS)),
    Names(("flux",), "diffusers", _OF_DIFFUSERS),
    Names(("chroma",), "diffusers", _OF_DIFFUSERS, _OF_CHROMA),
    Names(("qwen_image", "ace_step"), "original", ("",)),
    Names(("auraflow",), "diffusers", ("transformer.",)),
    Names(("hunyuan_video",), "original", ("transformer.", "diffusion_model."), (*_EMBEDDERS, *_GUIDANCE)),
    Names(("hunyuan_video",), "comfyui", ("transformer.",), (*_RENAMED, "single_blocks.{i}.modulation.lin")),
)
_BEFORE = (
    Names(("flux", "chroma"), "original", OWN, NORMS),
    Names(("hunyuan_video", "hunyuan_image"), "comfyui", OWN, NORMS),
)
_SINCE = (
    Names(("flux", "chroma"), "original", OWN),
    Names(("hunyuan_video", "hunyuan_image"), "comfyui", OWN),
    Names(("flux2", "z_image", "kandinsky5", "ltx2", "anima", "ideogram4", "krea2"), "original", OWN),
    Names(("hunyuan_video_1_5", "hidream_o1", "ace_step_1_5"), "comfyui", OWN),
    Names(("flux",), "diffusers", ("",)),
    Names(("chroma",), "diffusers", ("",), _OF_CHROMA),
    Names(("flux2",), "diffusers", ("", *_OF_DIFFUSERS), _OF_FLUX2),
    Names(("kandinsky5",), "diffusers", ("", "transformer.")),
    Names(("ltx_video", "ltx2"), "original", ("",)),
    Names(("z_image", "krea2"), "diffusers", ("", "diffusion_model.", "transformer.", "lycoris_")),
    Names(("lumina2",), "original", ("", "transformer.", "lycoris_"), _NOT_OF_Z_IMAGE),
    Names(("hunyuan_video_1_5",), "original", ("transformer.", "diffusion_model."), (*_EMBEDDERS, *_SPLIT)),
    Names(("hunyuan_video_1_5",), "comfyui", ("transformer.",), _RENAMED),
    Names(("ace_step_1_5",), "original", ("base_model.model.", "lycoris_")),
)


_MODEL, _BARE_MODEL = "model.layers.{i}", "layers.{i}"
_CLIP_L, _CLIP_G, _T5XXL = (f"text_encoders.{name}.transformer." for name in ("clip_l", "clip_g", "t5xxl"))
_ENCODERS = (
    Names(("sd15", "flux", "hunyuan_video"), CLIP, (*FIRST, _CLIP_L)),
    Names(("sd2",), CLIP, (*FIRST, "text_encoders.clip_h.transformer.")),
    Names(("sdxl", "sd3", "hidream_i1"), CLIP, (*FIRST, *SECOND, _CLIP_L, _CLIP_G)),
    Names(("sd3", "hidream_i1"), T5, ("lora_te3_", _T5XXL)),
    Names(("flux",), T5, ("lora_te2_", "lora_te3_", _T5XXL)),
    Names(("chroma", "ltx_video"), T5, ("lora_te1_", _T5XXL)),
    Names(("wan",), T5, ("text_encoders.umt5xxl.transformer.",)),
    Names(("auraflow",), T5, ("text_encoders.pile_t5xl.transformer.",)),
    Names(("hidream_i1", "hunyuan_video"), _MODEL, ("text_encoders.llama.transformer.",)),
    Names(("qwen_image", "hunyuan_image"), _MODEL, ("text_encoders.qwen25_7b.transformer.",)),
    Names(("lumina2",), _MODEL, ("text_encoders.gemma2_2b.transformer.",)),
)
_ENCODERS_SINCE = (
    Names(("kandinsky5",), CLIP, (*FIRST, _CLIP_L)),
    Names(("kandinsky5", "hunyuan_video_1_5"), _MODEL, ("text_encoders.qwen25_7b.transformer.",)),
    Names(("z_image",), _MODEL, ("text_encoders.qwen3_4b.transformer.",)),
    Names(("anima",), _MODEL, ("text_encoders.qwen3_06b.transformer.",)),
    # Where the language model is the only encoder, without the name of its root.
    Names(("qwen_image", "lumina2", "z_image", "anima", "flux2", "krea2", "ideogram4"), _BARE_MODEL, ("lora_te_",)),
)
# Keys by which it knows the files of a program, and renames all keys of them.
_WAN_FUN = "lora_unet__blocks_0_cross_attn_k.lora_down.weight"
_USO = ("single_blocks.37.processor.qkv_lora.up.weight", "double_blocks.18.processor.qkv_lora2.up.weight")
_RECOGNISED = (
    _LOADED._replace(families=("wan",), layouts=("original",), prefixes=("lora_unet__",), where=holds(_WAN_FUN)),
    _LOADED._replace(families=("flux",), layouts=("xlabs",), prefixes=("",), where=holds(*_USO)),
    # Its other names, and an input that it widens, were not tried.
    Rule(families=("flux",), layouts=("original",), prefixes=("",), where=holds(*BFL_CONTROL), kinds={"": ""}),
    # The processors of old files are in the dictionary, where the attentions of new ones are not.
    _LOADED._replace(families=UNETS, layouts=("diffusers",), prefixes=("", "unet."), dialects=(HIDING,)),
)


_STRANGERS = Strangers(WARNS, "lora key not loaded")


def _loader(names: tuple[Names, ...]) -> Loader:
    def rules(family: str) -> Iterator[Rule]:
        own = names_of(family, names)
        yield from _RECOGNISED
        yield from rules_of(own, _LOADED._replace(dialects=(INFIXED,), where=_has_defaults))
        yield _PASSED
        of_rows = _paths_of_rows(family)
        for rule in rules_of(own, _LOADED):
            if of_rows and rule.layouts == ("diffusers",):
                yield rule._replace(paths=of_rows, exceptions=_exceptions_of_rows)
            yield rule
        yield from left_of(own)

    families = families_of(names)
    return Loader(families=families, rules=RulesByFamily(families, rules), strangers=_STRANGERS)


_NOW = Program(
    name="comfyui",
    title="ComfyUI",
    version="0.33.0",
    ran="2026-12-01",
    loaders=(_loader((*_COMMON, *_SINCE, *_ENCODERS, *_ENCODERS_SINCE)),),
    schemes={"": "comfyui"},
)
PROGRAMS = (
    _NOW,
    _NOW._replace(
        name="comfyui-0.3.64",
        version="0.3.64",
        ran="2026-11-26",
        loaders=(_loader((*_COMMON, *_BEFORE, *_ENCODERS)),),
    ),
)
