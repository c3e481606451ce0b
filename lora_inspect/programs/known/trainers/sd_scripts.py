"""sd-scripts: LoRA in kohya's names, for the layers of its networks, at alpha/rank.

The rest is silently ignored. Its scripts that generate or continue a training build a network of the file. The scripts
of SD 1.5 and SDXL do without an alpha; those of later families fail. SDXL's also takes the names of diffusers' UNet
behind `lora_unet_`. They ignore LoHa, LoKr and everything else that is not LoRA.

`flux_merge_lora.py` uses the names in the base instead, so it is a program of its own here. It takes every layer, needs
no alpha, and warns of the rest. `sdxl_merge_lora.py` uses the names in its own UNet and encoders, so it finds none of
diffusers' names. A file without kohya's suffixes stops it.

Sources: `networks/` of sd-scripts, merged into a small model of each family, and its merges of FLUX.1 and SDXL.
"""

import re
from collections.abc import Mapping

from lora_inspect.programs.record import (
    COMPUTES,
    LEAVES,
    MAGNITUDES_LEFT,
    READ,
    RUN,
    SILENT,
    TEXT_ENCODERS,
    WARNS,
    Finder,
    Given,
    Loader,
    LoadFailure,
    OfKind,
    Program,
    Rule,
    Strangers,
)
from lora_inspect.reading.adapter import Adapter
from lora_inspect.schemes import SCHEMES

PREFIX = "lora_unet_"
# Of the layout that sd-scripts trains, what the names of the layers that its network adapts begin with, and those of
# layers that it leaves out; of others nothing is known.
_FOUND: Mapping[str, tuple[str, ...]] = {
    "anima": ("blocks_", "llm_adapter_blocks_", "t_embedder_", "x_embedder_", "final_layer_"),
    "chroma": ("double_blocks_", "single_blocks_"),
    "flux": ("double_blocks_", "single_blocks_", "img_in", "txt_in", "time_in_", "vector_in_", "guidance_in_"),
    "lumina2": (
        *("layers_", "noise_refiner_", "context_refiner_", "final_layer_"),
        *("x_embedder", "cap_embedder_", "t_embedder_"),
    ),
    "sd15": ("down_blocks_", "mid_block_", "up_blocks_"),
    "sd3": ("joint_blocks_",),
    "sdxl": ("input_blocks_", "middle_block_", "output_blocks_", "down_blocks_", "mid_block_", "up_blocks_"),
}
_LEFT_OUT: Mapping[str, tuple[str, ...]] = {
    "anima": ("llm_adapter_out_proj", "llm_adapter_embed"),
    "chroma": ("final_layer_",),
    "flux": ("final_layer_",),
    "sd15": ("time_embedding_", "conv_in", "conv_out"),
    "sdxl": ("time_embed_", "label_emb_"),
}
_LAYOUTS: Mapping[str, tuple[str, ...]] = {"sd15": ("diffusers",), "sdxl": ("original", "diffusers")}
# A convolution that no block holds; of such a name there is no other layer.
_FIRST_CONVOLUTION = re.compile("input_blocks_[0-9]+_[0-9]+")
_WITHOUT_ALPHA = ("sd15", "sdxl")
_ENCODERS: Mapping[str, tuple[str, ...]] = {
    "anima": ("lora_te_",),
    "flux": ("lora_te1_", "lora_te3_"),
    "lumina2": ("lora_te_",),
    "sd15": ("lora_te_",),
    "sd3": ("lora_te1_", "lora_te2_", "lora_te3_"),
    "sdxl": ("lora_te1_", "lora_te2_"),
}
# The families of which the networks of text encoders ran.
_WITH_ENCODERS = ("sd15", "sdxl")
_OTHER_PREFIXES = tuple(
    {
        prefix: None
        for scheme in SCHEMES.values()
        for prefix in scheme.prefixes
        if prefix != PREFIX and not prefix.startswith("lora_te")
    }
)


@OfKind
def _without_alpha(given: Given) -> str | LoadFailure | None:
    """Return the error for a layer without alpha, or the treatment of a core.

    The network asks for alpha by the layer's name, and does not build a layer around a core.
    """
    if given.module.alpha is None:
        return LoadFailure(f"KeyError: '{given.module.name.key}'")
    return _with_cores(given)


@OfKind
def _with_cores(given: Given) -> str | None:
    return "" if "mid" in given.contribution.shapes else None


def _finder(family: str) -> Finder:
    found, left_out = _FOUND[family], _LEFT_OUT.get(family, ())

    @OfKind
    def finds(given: Given) -> bool | None:
        body = given.module.name.body
        if body.startswith(left_out) or _FIRST_CONVOLUTION.fullmatch(body):
            return False
        return True if body.startswith(found) else None

    return finds


def _of(family: str) -> tuple[Rule, ...]:
    """Return the rules of a family: LoRA of adapted layers, spelled as kohya does."""

    finder = _finder(family)

    def finds(adapter: Adapter) -> Finder:
        return finder

    own = Rule(
        families=(family,),
        prefixes=(PREFIX,),
        layouts=_LAYOUTS.get(family, ("original",)),
        kinds={"lora": COMPUTES, "": LEAVES},
        finds=finds,
        exceptions=_with_cores if family in _WITHOUT_ALPHA else _without_alpha,
        magnitudes=MAGNITUDES_LEFT,
    )
    encoders = own._replace(
        prefixes=_ENCODERS.get(family, ()),
        layouts=(TEXT_ENCODERS,),
        dialects=("kohya",),
        finds=None,
        by=RUN if family in _WITH_ENCODERS else READ,
    )
    others = encoders._replace(dialects=("peft", "lycoris"), kinds={"": LEAVES}, exceptions=None)
    return (
        own._replace(dialects=("peft",), kinds={"": LEAVES}, exceptions=None),
        own,
        *([encoders, others] if family in _ENCODERS else []),
    )


_NETWORKS = Program(
    name="sd-scripts",
    title="sd-scripts",
    version="2026-02-16",
    ran="2026-11-26",
    loaders=(
        Loader(
            families=tuple(_FOUND),
            rules=(
                *(rule for family in _FOUND for rule in _of(family)),
                Rule(prefixes=_OTHER_PREFIXES),
            ),
            strangers=Strangers(SILENT),
        ),
    ),
    schemes={"": "kohya"},
)
_IN_BASE = Rule(
    prefixes=(PREFIX,),
    layouts=("original",),
    kinds={"lora": COMPUTES, "": LEAVES},
    exceptions=_with_cores,
    magnitudes=MAGNITUDES_LEFT,
)
_NOT_FOUND = Strangers(WARNS, "no module found for LoRA weight")
_OPTIONS = {"lora_te1_": "--clip_l", "lora_te3_": "--t5xxl"}


def _needs_encoders(adapter: Adapter) -> str | None:
    """Return the options by which it gets the text encoders that the file changes."""
    prefixes = {module.name.prefix for module in adapter.modules.values()}
    options = [option for prefix, option in _OPTIONS.items() if prefix in prefixes]
    return f"with {' and '.join(options)}, as it leaves the text encoder out otherwise" if options else None


_IN_ENCODERS = _IN_BASE._replace(prefixes=tuple(_OPTIONS), layouts=(TEXT_ENCODERS,))
_FLUX_MERGE = _NETWORKS._replace(
    name="sd-scripts-flux-merge",
    title="sd-scripts (flux_merge_lora)",
    loaders=(
        Loader(
            families=("flux",),
            rules=(
                _IN_BASE._replace(dialects=("peft",), kinds={"": LEAVES}, exceptions=None),
                _IN_BASE,
                _IN_ENCODERS._replace(dialects=("peft", "lycoris"), kinds={"": LEAVES}, exceptions=None),
                _IN_ENCODERS,
                Rule(prefixes=_OTHER_PREFIXES),
            ),
            strangers=Strangers(WARNS, "Unused keys in LoRA model"),
            needs=_needs_encoders,
        ),
    ),
)


def _has_no_method(adapter: Adapter) -> str | None:
    """Return the error for a file without any key of LoRA or OFT.

    The script looks for such a key first, and for the names of their layers after that.
    """
    marks = ("lora_up", "lora_down", "oft_blocks")
    has_some = any(mark in key for key in adapter.checkpoint.tensors for mark in marks)
    return None if has_some else "UnboundLocalError: cannot access local variable 'target_replace_modules'"


# Layers of its UNet that are in no block of transformers or of convolutions.
_OUT_OF_BLOCKS = ("time_embed.{i}", "label_emb.{i}.{i}", "out.{i}")
_IN_SDXL = _IN_BASE._replace(dialects=("kohya",), exceptions=_with_cores)
_SDXL_MERGE = _NETWORKS._replace(
    name="sd-scripts-sdxl-merge",
    title="sd-scripts (sdxl_merge_lora)",
    loaders=(
        Loader(
            families=("sdxl",),
            rules=(
                Rule(prefixes=(PREFIX,), paths=_OUT_OF_BLOCKS),
                _IN_SDXL,
                Rule(prefixes=(PREFIX,), layouts=("original",), dialects=("peft", "lycoris"), kinds={"": LEAVES}),
                _IN_SDXL._replace(prefixes=("lora_te1_", "lora_te2_"), layouts=(TEXT_ENCODERS,)),
                Rule(prefixes=(PREFIX,), layouts=("diffusers",), unfound=_NOT_FOUND),
                Rule(prefixes=_OTHER_PREFIXES),
            ),
            strangers=Strangers(SILENT),
            refuses=_has_no_method,
        ),
    ),
)
PROGRAMS = (_NETWORKS, _FLUX_MERGE, _SDXL_MERGE)
