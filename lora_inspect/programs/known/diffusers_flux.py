"""The FLUX pipeline of diffusers: it first looks for kohya's suffixes.

It expects one width of layers.

Sources: `_convert_kohya_flux_lora_to_diffusers` and `FluxLoraLoaderMixin` of diffusers.
"""

import re
from functools import partial

from lora_inspect.programs.known.diffusers_rules import (
    ALL_FAIL,
    CANNOT_INFER,
    DORA_SCALES,
    FOREIGN,
    LAYER_SCALE,
    NO_KEYS,
    NO_SCALE,
    NOT_LORA,
    PEFT_DORA,
    SCALES_LEFT,
    UNDERSCORED_ENCODERS,
    alphas_by_pattern,
    config_fails,
    converted,
    endless,
    no_lora,
    own,
    own_encoders,
    renamed_encoders,
    stored,
    unsure,
    untold_encoders,
)
from lora_inspect.programs.record import (
    COMPUTES,
    FAILS,
    HIDING,
    INFIXED,
    LEAVES,
    SILENT,
    TEXT_ENCODERS,
    Given,
    LoadFailure,
    OfKind,
    Rule,
    ScaleOfFile,
    Strangers,
    one,
)
from lora_inspect.reading.adapter import Adapter

# The pipelines of Chroma load adapters by the same code.
_FAMILIES = ("flux", "chroma")
_GUIDANCE = (
    *("distilled_guidance_layer.in_proj", "distilled_guidance_layer.out_proj"),
    *(f"distilled_guidance_layer.layers.{{i}}.{leaf}" for leaf in ("in_layer", "out_layer")),
)
# What the conversion of kohya's FLUX takes for granted of `linear1`.
_FLUX_ROWS = 21504
_FLUX_ENDS = (
    *("time_in.in_layer", "time_in.out_layer", "vector_in.in_layer", "vector_in.out_layer"),
    *("guidance_in.in_layer", "guidance_in.out_layer", "img_in", "txt_in"),
    *("final_layer.linear", "final_layer.adaLN_modulation.1"),
)


@OfKind
def _exceptions(given: Given) -> str | LoadFailure | None:
    if never := endless(given):
        return never
    body = given.module.name.body.replace("_", ".")
    return FAILS if body.endswith(".linear1") and given.contribution.shape[0] != _FLUX_ROWS else None


_FLUX_MIXED = (
    *(f"transformer_blocks.{{i}}.attn.{leaf}" for leaf in ("to_q", "to_k", "to_v", "to_out.0", "to_add_out")),
    *(f"transformer_blocks.{{i}}.attn.add_{leaf}_proj" for leaf in "qkv"),
    *(f"single_transformer_blocks.{{i}}.attn.to_{leaf}" for leaf in "qkv"),
    *("context_embedder", "x_embedder", "norm_out.linear", "proj_out"),
    *(f"time_text_embed.{part}_embedder.linear_{at}" for part in ("timestep", "guidance", "text") for at in (1, 2)),
)
_INCOMPATIBLE = "ValueError: Incompatible keys detected"


def _refused(adapter: Adapter) -> str | None:
    """Return the refusal of model keys that the conversion leaves over, or of a config."""
    if any(key.startswith(("lora_unet_", "diffusion_model.")) for key in adapter.unclaimed):
        return _INCOMPATIBLE
    return config_fails("transformer", adapter)


_FLUX_KOHYA = Rule(
    prefixes=("lora_unet_", "diffusion_model."),
    layouts=("original",),
    dialects=("kohya", "lycoris"),
    kinds={"lora": COMPUTES, "lora_bias": FAILS, "full_bias": LEAVES},
    magnitudes=SCALES_LEFT,
    exceptions=_exceptions,
    scale=stored,
    says=_INCOMPATIBLE,
)
_FLUX_OWN = Rule(
    prefixes=("transformer.",),
    layouts=("diffusers",),
    dialects=("peft", "lycoris"),
    kinds={"lora": COMPUTES, "lora_bias": COMPUTES, "full_bias": LEAVES},
    magnitudes={**PEFT_DORA, LAYER_SCALE: LEAVES},
    scale=ScaleOfFile(alphas_by_pattern),
)


def _is_renamed(adapter: Adapter) -> bool:
    return any(".lora_down.weight" in key for key in adapter.checkpoint.tensors)


def _is_not_renamed(adapter: Adapter) -> bool:
    return not _is_renamed(adapter)


_NOT_EMPTY = "ValueError: Expected an empty state dict at this point"
_MIXED = Rule(
    prefixes=("lora_transformer_",),
    layouts=("diffusers",),
    dialects=("kohya",),
    paths=_FLUX_MIXED,
    alpha=True,
    kinds={"lora": COMPUTES, "lora_bias": FAILS, "full_bias": FAILS},
    magnitudes=SCALES_LEFT,
    exceptions=endless,
    scale=stored,
    says=_NOT_EMPTY,
)
_MIXED_ENCODER = renamed_encoders(_NOT_EMPTY, stored, "lora_te1_")._replace(families=("flux",))


# The names before a block's number.
_XLABS_BLOCKS = tuple(
    f"{root}{blocks}" for root in ("", "diffusion_model.") for blocks in ("double_blocks", "single_blocks")
)
_NUMBERED = re.compile(r"(?:double|single)_blocks\.\d")
_XLABS_LEFT = "ValueError: `old_state_dict` should be at this point"


def _refused_of_xlabs(adapter: Adapter) -> str | None:
    """Return the error for an unknown key of a fused layer, or of a block without a number."""
    for key in adapter.unclaimed:
        if "qkv" in key:
            return f"KeyError: '{key}'" if key.startswith(_XLABS_BLOCKS) else _XLABS_LEFT
        if key.startswith(_XLABS_BLOCKS) and not _NUMBERED.search(key):
            return "AttributeError: 'NoneType' object has no attribute 'group'"
    return config_fails("transformer", adapter)


def _unsure_of_xlabs(adapter: Adapter) -> str | None:
    """Return the unknown effect of a key that it may take for a factor of the block."""
    odd = (key for key in adapter.unclaimed if key.startswith(_XLABS_BLOCKS) and ("up" in key or "down" in key))
    first = next(odd, None)
    return f"its use of {first}" if first else unsure(adapter)


# It knows none of T5's names as names of the first encoder, which is a CLIP in FLUX and a T5 in Chroma.
_OF_T5 = Rule(layouts=("encoder.block.{i}.layer.{i}",), kinds=ALL_FAIL, says=CANNOT_INFER)
_OF_CLIP = Rule(
    families=("chroma",),
    layouts=("text_model.encoder.layers.{i}",),
    kinds=ALL_FAIL,
    says="IndexError: list index out of range",
)


@OfKind
def _no_alpha(given: Given) -> LoadFailure:
    return LoadFailure(f"KeyError: '{given.module.name.key}.alpha'")


_BIASES_LEFT = {"lora": COMPUTES, "lora_bias": LEAVES, "full_bias": LEAVES}
FLUX_LOADERS = (
    # Its own names under kohya's suffixes are renamed, and the alphas beside them dropped.
    own(
        "flux",
        families=_FAMILIES,
        marks=("^transformer.",),
        rules=(
            _FLUX_OWN,
            _FLUX_OWN._replace(
                dialects=("kohya",),
                alpha=False,
                kinds={"lora": COMPUTES, "lora_bias": LEAVES, "full_bias": LEAVES},
                scale=stored,
            ),
            _FLUX_OWN._replace(
                dialects=("kohya",),
                kinds={"lora": COMPUTES},
                magnitudes=dict.fromkeys((*DORA_SCALES, LAYER_SCALE), LEAVES),
                scale=one,
            ),
            # Beside renamed ones it keeps those of the transformer alone.
            Rule(prefixes=("text_encoder.",), where=_is_renamed, unfound=Strangers(SILENT)),
            *own_encoders("flux", ScaleOfFile(alphas_by_pattern), families=("flux",)),
            _OF_T5._replace(prefixes=("text_encoder.",), dialects=("peft",)),
            _OF_CLIP._replace(prefixes=("text_encoder.",), dialects=("peft",)),
        ),
        leaves=Strangers(SILENT),
        refuses=partial(no_lora, "transformer"),
        others=Strangers(SILENT),
    ),
    converted(
        _FAMILIES,
        "^lora_transformer_",
        rules=lambda: (
            Rule(
                prefixes=("lora_transformer_", *UNDERSCORED_ENCODERS),
                where=_is_not_renamed,
                unfound=NO_KEYS,
            ),
            # It asks first for the names of other encoders.
            Rule(
                prefixes=UNDERSCORED_ENCODERS[:1] + UNDERSCORED_ENCODERS[2:],
                kinds=ALL_FAIL,
                says="AssertionError: all_unique_keys",
            ),
            _MIXED,
            _MIXED._replace(paths=(), alpha=False, kinds={"lora": COMPUTES}, exceptions=_no_alpha),
            # They are renamed to the name of their block, which is no layer.
            _MIXED._replace(paths=(), kinds={"lora": FAILS}, says="ValueError: Target module is not supported"),
            _OF_T5._replace(prefixes=("lora_te1_",), dialects=("kohya",), alpha=True, says=_NOT_EMPTY),
            _OF_CLIP._replace(prefixes=("lora_te1_",), dialects=("kohya",), alpha=True),
            _MIXED_ENCODER._replace(alpha=False, exceptions=_no_alpha),
            _MIXED_ENCODER._replace(exceptions=endless),
        ),
    ),
    converted(
        _FAMILIES,
        ".lora_down.weight",
        rules=lambda: (
            # They are renamed without the name of the model before them, which finds nothing.
            _FLUX_KOHYA._replace(paths=_FLUX_ENDS, dialects=("kohya",), kinds={}, says="", unfound=Strangers(SILENT)),
            _FLUX_KOHYA._replace(families=("chroma",), paths=_GUIDANCE, kinds=ALL_FAIL),
            _FLUX_KOHYA,
            _OF_T5._replace(prefixes=UNDERSCORED_ENCODERS[:2], dialects=("kohya",)),
            _OF_CLIP._replace(prefixes=UNDERSCORED_ENCODERS[:2], dialects=("kohya",)),
            *(rule._replace(families=("flux",)) for rule in untold_encoders(*UNDERSCORED_ENCODERS[:2])),
            renamed_encoders(_INCOMPATIBLE, stored, *UNDERSCORED_ENCODERS[:2])._replace(
                families=("flux",), exceptions=endless
            ),
            # It takes these for encoders too, and hands them to none.
            Rule(prefixes=UNDERSCORED_ENCODERS[2:], layouts=(TEXT_ENCODERS,)),
            Rule(
                prefixes=("lora_unet_", "diffusion_model."), layouts=("diffusers",), kinds=ALL_FAIL, says=_INCOMPATIBLE
            ),
            Rule(prefixes=("lycoris_",), kinds=ALL_FAIL, says=NOT_LORA),
        ),
        strangers=NO_KEYS,
        leaves=NO_SCALE,
        others=Strangers(SILENT),
        refuses=_refused,
    ),
    converted(
        _FAMILIES,
        "processor",
        rules=lambda: (
            Rule(
                prefixes=("",),
                layouts=("xlabs",),
                dialects=("", HIDING),
                alpha=False,
                kinds={"lora": COMPUTES},
                scale=one,
            ),
        ),
        # It hands on unknown keys, and the pipeline ignores them.
        others=Strangers(SILENT),
        refuses=_refused_of_xlabs,
        unsure=_unsure_of_xlabs,
    ),
    converted(
        _FAMILIES,
        "base_model",
        rules=lambda: (
            Rule(
                layouts=("diffusers",),
                dialects=("peft", "kohya", "lycoris", INFIXED),
                kinds=ALL_FAIL,
                says="KeyError: it wants names of the original layout",
            ),
        ),
    ),
    own("flux", families=_FAMILIES, rules=FOREIGN, refuses=partial(no_lora, "transformer"), others=Strangers(SILENT)),
)
