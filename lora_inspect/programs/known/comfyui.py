"""ComfyUI: its own names of the model, kohya's, and diffusers' where it has a map of them; alpha/rank everywhere.

A name counts where it is in a dictionary that the loader makes of the model, whatever the spelling of the factors: what
is not there is passed over with a warning. Sources: `comfy/lora.py`, `comfy/lora_convert.py`, `comfy/weight_adapter/`
and `comfy/utils.py` of ComfyUI, run on a small model of every family here.
"""

from collections.abc import Iterator, Mapping

from lora_inspect.programs.known.dictionary import (
    BFL_CONTROL,
    CLIP,
    FIRST,
    MAGNITUDES,
    NORMS,
    OF_UNETS,
    OWN,
    SECOND,
    T5,
    UNETS,
    Names,
    families_of,
    holds,
    is_replaced,
    left_of,
    names_of,
    rules_of,
)
from lora_inspect.programs.record import (
    COMPUTES,
    HIDING,
    INFIXED,
    LEAVES,
    MISREADS,
    SLICED,
    WARNS,
    Consumer,
    Failure,
    Given,
    Loader,
    OfKind,
    Rule,
    RulesByFamily,
    Strangers,
)
from lora_inspect.reading.adapter import Adapter

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
def _exceptions(given: Given) -> str | Failure | Strangers | None:
    """What becomes of a contribution for what stands beside it, its shapes and its alpha."""
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
    return Failure(_OTHER_CORE) if core and len(core.shape) != _CORE_OF_CONV2D else None


def _is_logged(given: Given) -> bool:
    """Whether its change of the weight fails: of rows of a product, LoKr with a core, BOFT without alpha."""
    algorithm = given.contribution.algorithm.name
    if algorithm == "lycoris_boft":
        return given.module.alpha is None
    return algorithm == "lokr_rows" or (algorithm == "lokr" and "t2" in given.contribution.factors)


def _of_rotation(given: Given) -> str | None:
    """It takes alpha itself for the limit of a norm, not alpha times the rows: the numbers decide what that does."""
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
        yield from rules_of(own, _LOADED)
        yield from left_of(own)

    families = families_of(names)
    return Loader(families=families, rules=RulesByFamily(families, rules), strangers=_STRANGERS)


_NOW = Consumer(
    name="comfyui",
    title="ComfyUI",
    version="0.33.0",
    loaders=(_loader((*_COMMON, *_SINCE, *_ENCODERS, *_ENCODERS_SINCE)),),
    schemes={"": "comfyui"},
)
CONSUMERS = (
    _NOW,
    _NOW._replace(
        name="comfyui-0.3.64",
        version="0.3.64",
        loaders=(_loader((*_COMMON, *_BEFORE, *_ENCODERS)),),
    ),
)
