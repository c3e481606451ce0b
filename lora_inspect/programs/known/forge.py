"""Forge (stable-diffusion-webui-forge): an older dictionary of ComfyUI's names.

It ignores a whole file with more than 12 tensors that neither the model nor its text encoders use. Alphas, flags,
magnitudes and all other keys without a match count.

Sources: `extensions-builtin/sd_forge_lora/networks.py`, `backend/patcher/lora.py` and `packages_3rdparty/` of Forge,
run on a small model of every family here.
"""

from collections.abc import Iterator

from lora_inspect.programs.known.comfyui import (
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
    FAILS,
    HIDING,
    INFIXED,
    LEAVES,
    MISREADS,
    SLICED,
    WARNS,
    Given,
    Loader,
    OfKind,
    Program,
    Rule,
    RulesByFamily,
    Strangers,
)

_OF_WEIGHTS = ("lora", "loha", "lokr", "glora", "old_glora", "norm", "full", "set_weight")


@OfKind
def _exceptions(given: Given) -> str | None:
    if is_replaced(given, _OF_WEIGHTS):
        return MISREADS
    beside = {one.algorithm.name for one in given.module.contributions}
    return LEAVES if given.contribution.algorithm.name == "norm_bias" and "norm" not in beside else None


_LOADED = Rule(
    kinds={
        **dict.fromkeys((*_OF_WEIGHTS, "full_bias", "norm_bias"), COMPUTES),
        # It multiplies two factors as LoRA's, without the third.
        "kasa": MISREADS,
        # It makes the whole product, of another shape than the weight.
        "lokr_rows": FAILS,
        # Its factors are spelled as LoRA's.
        "bdlora": "",
        # All else has suffixes that it never looks up.
        "": LEAVES,
    },
    # An error is raised where ComfyUI logs it.
    parts={"lokr.t2": FAILS, "lokr.t1": MISREADS, "glora.bm": MISREADS, "old_glora.bm": MISREADS},
    magnitudes=MAGNITUDES,
    exceptions=_exceptions,
)
_NAMES = (
    *OF_UNETS,
    Names(("sd3",), "original", OWN),
    Names(("flux", "chroma"), "original", OWN, NORMS),
    Names(("flux",), "diffusers", ("transformer.", "lycoris_", "lora_transformer_")),
    Names(("sd15", "sd2", "flux"), CLIP, FIRST),
    Names(("sdxl", "sd3"), CLIP, (*FIRST, *SECOND)),
    Names(("flux", "chroma", "sd3"), T5, ("lora_te1_", "lora_te2_", "lora_te3_")),
)

_FAMILIES = families_of(_NAMES)


def _rules(family: str) -> Iterator[Rule]:
    own = names_of(family, _NAMES)
    yield Rule(families=("flux",), layouts=("original",), prefixes=("",), where=holds(*BFL_CONTROL), kinds={"": ""})
    yield _LOADED._replace(families=UNETS, layouts=("diffusers",), prefixes=("", "unet."), dialects=(HIDING,))
    yield from rules_of(own, Rule(dialects=(SLICED, INFIXED, "gguf", "bare"), kinds={"": LEAVES}))
    yield from rules_of(own, _LOADED)
    yield from left_of(own)


PROGRAM = Program(
    name="forge",
    title="Forge",
    version="2025-06-26",
    ran="2026-11-26",
    loaders=(
        Loader(
            families=_FAMILIES,
            rules=RulesByFamily(_FAMILIES, _rules),
            strangers=Strangers(
                WARNS, "loading with unmatched keys, and their names", most=12, beyond="LoRA version mismatch"
            ),
        ),
    ),
    schemes={"": "kohya"},
)
