"""Families of diffusers with small conversions, or none.

A conversion knows a prefix or the names of one layout.

Sources: the loaders of each family in `loaders/lora_pipeline.py` of diffusers, run on a tiny model of it.
"""

from functools import partial

from lora_inspect.architectures import by_name
from lora_inspect.programs.known.diffusers_rules import (
    ALL_FAIL,
    NO_KEYS,
    PEFT_DORA,
    UNEXPECTED,
    converted,
    own,
    stored,
    without_lora,
)
from lora_inspect.programs.record import COMPUTES, FAILS, Loader, Rule, Strangers

# It hands these to another model of the pipeline, which was not tried.
_ADAPTER = tuple(
    f"llm_adapter.{leaf}"
    for leaf in (
        *(f"blocks.{{i}}.{attn}.{one}_proj" for attn in ("self_attn", "cross_attn") for one in "qkvo"),
        *("blocks.{i}.mlp.0", "blocks.{i}.mlp.2", "embed", "out_proj"),
    )
)
_ANIMA = Rule(
    prefixes=("diffusion_model.",),
    layouts=("original",),
    dialects=("peft",),
    kinds={"lora": COMPUTES, "lora_bias": COMPUTES},
    magnitudes=PEFT_DORA,
    scale=stored,
)

# Families of which the names of diffusers alone were tried.
_OTHERS = ("ideogram4", "kandinsky5", "krea2")
# Families without a conversion, or with one of other names than these.
_UNCONVERTED = ("auraflow", "cosmos", "sd3")


def _prefixed(family: str, title: str, layout: str, **fields: object) -> Loader:
    """Return the loader for ComfyUI's names, if the conversion only knows their prefix."""
    rule = Rule(
        prefixes=("diffusion_model.",),
        layouts=(layout,),
        dialects=("peft",),
        kinds={"lora": COMPUTES, "lora_bias": COMPUTES},
        magnitudes=PEFT_DORA,
        scale=stored,
    )
    loader = converted(
        family,
        "^diffusion_model.",
        rules=lambda: (
            # It renames no more, and PEFT has no layers of these names.
            rule._replace(paths=_renamed_of(family), kinds={}, unfound=UNEXPECTED),
            rule,
            rule._replace(dialects=("kohya",), kinds=ALL_FAIL, says="IndexError: list index out of range"),
        ),
        strangers=Strangers(FAILS, f"ValueError: Invalid LoRA state dict for {title}"),
        refuses=partial(without_lora, "transformer"),
    )
    return loader._replace(**fields)  # type: ignore[arg-type]


def _renamed_of(family: str) -> tuple[str, ...]:
    """Return the paths that only the original layout has, or a path of no layer."""
    layouts = {name: layout for layout in by_name(family).layouts for name in layout.names}
    own = layouts["diffusers"].named
    return tuple(path for path in layouts["original"].named if path not in own) or ("none",)


OTHER_LOADERS = (
    *(own(family, marks=("^transformer.",)) for family in _OTHERS),
    *map(own, _UNCONVERTED),
    # HunyuanVideo's, which looks for its own original names.
    converted("framepack", "img_attn_qkv", rules=lambda: ()),
    own("framepack"),
    _prefixed("ltx_video", "LTX-Video", "original"),
    own("ltx_video"),
    _prefixed("hidream_i1", "HiDream", "diffusers"),
    own("hidream_i1"),
    # Its names are renamed one by one, and what has another prefix is passed on.
    converted(
        "anima",
        "^diffusion_model.",
        rules=lambda: (
            _ANIMA._replace(paths=_ADAPTER, kinds={"": ""}),
            _ANIMA,
            _ANIMA._replace(dialects=("kohya",), kinds=ALL_FAIL, says="IndexError: list index out of range"),
        ),
        strangers=NO_KEYS,
        refuses=partial(without_lora, "transformer"),
    ),
    own("anima"),
    converted("lumina2", "^diffusion_model.", rules=lambda: ()),
    own("lumina2"),
)
