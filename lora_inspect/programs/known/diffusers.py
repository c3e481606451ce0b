"""diffusers: its pipelines' `load_lora_weights`, which ask by a file's keys whose names it has, and hand it to PEFT.

A file in its own names goes to PEFT as it stands; for others each pipeline has a conversion, which multiplies the scale
into the factors and fails on a key that it leaves over. An embedded config decides the scale in either case.

Sources: `loaders/lora_pipeline.py`, `loaders/lora_conversion_utils.py` and `loaders/peft.py` of diffusers.
"""

from lora_inspect.programs.known.diffusers_flux import FLUX_LOADERS
from lora_inspect.programs.known.diffusers_rules import (
    ALL_FAIL,
    LEFT_OVER,
    NO_DORA,
    ONLY_LORA,
    SCALES_LEFT,
    UNDERSCORED_ENCODERS,
    UNEXPECTED,
    alphas_by_pattern,
    converted,
    endless,
    own,
    renamed_encoders,
    stored,
)
from lora_inspect.programs.record import COMPUTES, FAILS, INFIXED, Loader, Program, Rule, ScaleOfFile, Strangers
from lora_inspect.reading.adapter import Adapter

_WAN_BLOCKS = tuple(
    f"blocks.{{i}}.{path}"
    for path in (*(f"{attn}.{one}" for attn in ("self_attn", "cross_attn") for one in "qkvo"), "ffn.0", "ffn.2")
)
_WAN_ENDS = (
    *("time_projection.1", "head.head", "text_embedding.0", "text_embedding.2"),
    *("time_embedding.0", "time_embedding.2"),
)
_WAN = Rule(
    layouts=("original",), kinds=ONLY_LORA, magnitudes=NO_DORA, exceptions=endless, scale=stored, says=LEFT_OVER
)
_WAN_LOADERS = (
    converted(
        "wan",
        "^diffusion_model.",
        rules=lambda: (
            _WAN._replace(
                prefixes=("diffusion_model.",),
                paths=_WAN_BLOCKS,
                kinds={**ONLY_LORA, "full": "", "full_bias": COMPUTES},
            ),
            _WAN._replace(
                prefixes=("diffusion_model.",),
                paths=_WAN_ENDS,
                alpha=False,
                kinds={**ONLY_LORA, "full": "", "full_bias": ""},
            ),
            _WAN._replace(
                prefixes=("diffusion_model.",),
                paths=(*_WAN_ENDS, "patch_embedding"),
                kinds={**ALL_FAIL, "full": "", "full_bias": ""},
            ),
            Rule(
                prefixes=("diffusion_model.",), layouts=("diffusers",), kinds={**ALL_FAIL, "full": ""}, says=LEFT_OVER
            ),
        ),
    ),
    converted(
        "wan",
        "^lora_unet_",
        rules=lambda: (
            _WAN._replace(prefixes=("lora_unet_",), paths=_WAN_BLOCKS, dialects=("kohya",), alpha=True),
            _WAN._replace(
                prefixes=("lora_unet_",),
                paths=(*_WAN_BLOCKS, *_WAN_ENDS, "patch_embedding"),
                kinds=ALL_FAIL,
                says="KeyError: it wants alphas, and only layers of blocks",
            ),
            Rule(
                prefixes=("lora_unet_",), layouts=("diffusers",), kinds=ALL_FAIL, says="KeyError: it wants other names"
            ),
        ),
        complete=_WAN_BLOCKS,
    ),
    own("wan"),
)

_QWEN = Rule(
    layouts=("diffusers",),
    dialects=("kohya", "peft", "lycoris"),
    kinds=ONLY_LORA,
    magnitudes=SCALES_LEFT,
    exceptions=endless,
    scale=stored,
    says=LEFT_OVER,
)
_OTHER_PREFIXES = ("transformer.", "base_model.model.", "lycoris_", "lora_transformer_")
_NO_MATCH = Rule(
    prefixes=_OTHER_PREFIXES,
    dialects=("kohya", "peft", "lycoris", INFIXED),
    kinds=ALL_FAIL,
    says="ValueError: Target modules not found in the base model",
)
_ALPHAS = (".alpha$", "^lora_unet_", "^diffusion_model.", "default.")
_QWEN_LOADERS = (
    converted(
        "qwen_image",
        *_ALPHAS,
        rules=lambda: (
            _QWEN._replace(prefixes=("lora_unet_", "diffusion_model.")),
            _QWEN._replace(prefixes=("",), alpha=True),
            _NO_MATCH,
        ),
    ),
    own("qwen_image"),
)

_Z_ENDS = ("x_embedder", "final_layer.linear", "final_layer.adaLN_modulation.1")
_Z_FED = tuple(
    f"{blocks}.{{i}}.{leaf}"
    for blocks in ("layers", "noise_refiner", "context_refiner")
    for leaf in ("feed_forward.w1", "feed_forward.w2", "feed_forward.w3", "adaLN_modulation.0")
)
_Z_FED = (*_Z_FED, "cap_embedder.1", "t_embedder.mlp.0", "t_embedder.mlp.2")
_Z_OUT = tuple(f"{blocks}.{{i}}.attention.out" for blocks in ("layers", "noise_refiner", "context_refiner"))
_Z_QKV = tuple(f"{blocks}.{{i}}.attention.qkv" for blocks in ("layers", "noise_refiner", "context_refiner"))


def _feeds(adapter: Adapter) -> bool:
    """Whether one of the modules is found at least; PEFT refuses a file with none."""
    return any("feed_forward" in key or "adaLN" in key or "embedder.mlp" in key for key in adapter.checkpoint.tensors)


_Z_RULE = _QWEN._replace(layouts=("original",), dialects=("kohya", "peft"), prefixes=("diffusion_model.",))
_Z_KOHYA = _QWEN._replace(prefixes=("lora_unet_",), dialects=("kohya", "lycoris"))
_Z_LOADERS = (
    # Whether PEFT makes the same factors depends on the shapes of all modules.
    converted("z_image", ".lokr_", rules=lambda: ()),
    converted(
        "z_image",
        *_ALPHAS,
        rules=lambda: (
            _Z_KOHYA,
            _Z_KOHYA._replace(layouts=("original",), dialects=("kohya",), paths=_Z_ENDS, kinds={}, says=""),
            _Z_KOHYA._replace(layouts=("original",)),
            _QWEN._replace(prefixes=("",), alpha=True),
            _QWEN._replace(prefixes=("diffusion_model.",)),
            _Z_RULE._replace(paths=_Z_FED),
            _Z_RULE._replace(paths=_Z_OUT, dialects=("kohya",)),
            _Z_RULE._replace(paths=_Z_OUT, dialects=("peft",), alpha=True, kinds=ALL_FAIL),
            _Z_RULE._replace(paths=(*_Z_OUT, *_Z_QKV, *_Z_ENDS), where=_feeds, kinds={}, says=""),
            _Z_RULE._replace(dialects=("lycoris",), kinds={**ALL_FAIL, "lora": ""}),
            _NO_MATCH,
        ),
        strangers=UNEXPECTED,
        others=Strangers(FAILS, LEFT_OVER),
    ),
    own("z_image"),
)

_RENAMED = "ValueError: The following keys have not been correctly renamed"
_UNET = Rule(
    prefixes=("lora_unet_",),
    layouts=("diffusers",),
    dialects=("kohya", "lycoris"),
    kinds=ONLY_LORA,
    magnitudes=SCALES_LEFT,
    scale=ScaleOfFile(alphas_by_pattern),
    says=_RENAMED,
)
_UNET_ENCODERS = renamed_encoders(_RENAMED, ScaleOfFile(alphas_by_pattern), *UNDERSCORED_ENCODERS[:3])


def _of_unet(family: str, *rules: Rule) -> tuple[Loader, ...]:
    """Kohya's names, where all keys have them, and diffusers' own."""
    return (
        converted(
            family,
            *(f"^lora_{part}_" for part in ("te", "unet", "te1", "te2")),
            rules=lambda: (*rules, _UNET, _UNET_ENCODERS),
            all_marked=True,
            strangers=UNEXPECTED,
        ),
        own(family, "unet"),
    )


_UNET_LOADERS = (
    *_of_unet(
        "sdxl",
        _UNET._replace(layouts=("original",)),
        _UNET._replace(
            dialects=("kohya",), paths=("add_embedding.linear_1", "add_embedding.linear_2"), kinds={}, says=""
        ),
    ),
    *_of_unet("sd15"),
    *_of_unet("sd2"),
)

# Families of which the names of diffusers alone were tried, each with what its pipeline calls the model.
_OTHERS = {
    **dict.fromkeys(
        (
            *("anima", "auraflow", "cosmos", "framepack", "hidream_i1", "hunyuan_video", "ideogram4", "kandinsky5"),
            *("krea2", "ltx2", "ltx_video", "lumina2"),
        ),
        "transformer",
    ),
}
_OTHER_LOADERS = (
    *(own(family, pipeline, marks=(f"^{pipeline}.",)) for family, pipeline in _OTHERS.items()),
    # It has no conversion.
    own("sd3"),
)

PROGRAM = Program(
    name="diffusers",
    title="diffusers",
    version="0.42.1 with PEFT 0.21.2",
    loaders=(*_WAN_LOADERS, *FLUX_LOADERS, *_QWEN_LOADERS, *_Z_LOADERS, *_UNET_LOADERS, *_OTHER_LOADERS),
    schemes={"": "diffusers"},
)
