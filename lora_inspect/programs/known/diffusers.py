"""diffusers: `load_lora_weights` of its pipelines, with a conversion by keys.

PEFT loads the result. A file in diffusers' own names goes to PEFT unchanged. Each pipeline has a conversion for other
names, which multiplies the scale into the factors and fails on a key that it leaves over. An embedded config decides
the scale in either case.

Sources: `loaders/lora_pipeline.py`, `loaders/lora_conversion_utils.py` and `loaders/peft.py` of diffusers.
"""

from functools import partial

from lora_inspect.programs.known.diffusers_flux import FLUX_LOADERS
from lora_inspect.programs.known.diffusers_others import OTHER_LOADERS
from lora_inspect.programs.known.diffusers_rules import (
    ALL_FAIL,
    DORA_SCALES,
    LAYER_SCALE,
    LEFT_OVER,
    NO_CORE,
    NO_DORA,
    NO_SCALE,
    NOT_LORA,
    ONLY_LORA,
    OUTPUTS,
    PEFT_DORA,
    SCALES_LEFT,
    UNDERSCORED_ENCODERS,
    UNEXPECTED,
    alphas_by_pattern,
    config_fails,
    converted,
    endless,
    own,
    own_rules,
    renamed_encoders,
    stored,
    untold_encoders,
    without_lokr,
    without_lora,
)
from lora_inspect.programs.record import (
    COMPUTES,
    FAILS,
    INFIXED,
    LEAVES,
    MISREADS,
    SILENT,
    WARNS,
    Given,
    Loader,
    LoadFailure,
    OfKind,
    Program,
    Rule,
    RulesByFamily,
    ScaleOfFile,
    Strangers,
)
from lora_inspect.reading.adapter import Adapter

_WAN_BLOCKS = tuple(
    f"blocks.{{i}}.{path}"
    for path in (*(f"{attn}.{one}" for attn in ("self_attn", "cross_attn") for one in "qkvo"), "ffn.0", "ffn.2")
)
_WAN_ENDS = (
    *("time_projection.1", "head.head", "text_embedding.0", "text_embedding.2"),
    *("time_embedding.0", "time_embedding.2"),
)
_WAN_IMAGES = ("blocks.{i}.cross_attn.k_img", "blocks.{i}.cross_attn.v_img")
_WAN_NORMS = (
    *(f"blocks.{{i}}.{attn}.norm_{one}" for attn in ("self_attn", "cross_attn") for one in "qk"),
    *("blocks.{i}.norm3", "blocks.{i}.modulation", "blocks.{i}", "head.modulation"),
)


@OfKind
def _removes_differences(given: Given) -> Strangers | LoadFailure | None:
    """Return SILENT for differences that the conversion removes.

    These are of weights, and of a convolution's bias.
    """
    own = given.contribution.algorithm.name
    is_removed = own == "full" or (own == "full_bias" and given.module.name.body == "patch_embedding")
    return Strangers(SILENT) if is_removed else endless(given)


def _has_both_images(adapter: Adapter) -> bool:
    """Return True if every block has both image layers.

    If not, the conversion leaves all of them over.
    """
    keys = adapter.checkpoint.tensors
    pictures = [sum(f"cross_attn_{leaf}_img.lora_down" in key for key in keys) for leaf in "kv"]
    blocks = sum("_cross_attn_q.lora_down" in key for key in keys)
    return pictures == [blocks, blocks]


def _has_images(adapter: Adapter) -> bool:
    """Return True if a key is of each image layer; the conversion leaves over those of one without the other."""
    keys = adapter.checkpoint.tensors
    return all(any(leaf in key for key in keys) for leaf in ("k_img", "v_img"))


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
                kinds={**ONLY_LORA, "full": COMPUTES, "full_bias": COMPUTES},
                exceptions=_removes_differences,
            ),
            _WAN._replace(prefixes=("diffusion_model.",), paths=_WAN_IMAGES, where=_has_images),
            _WAN._replace(prefixes=("diffusion_model.",), paths=_WAN_IMAGES, kinds=ALL_FAIL),
            Rule(prefixes=("diffusion_model.",), paths=_WAN_NORMS, unfound=Strangers(SILENT)),
            _WAN._replace(
                prefixes=("diffusion_model.",),
                paths=_WAN_ENDS,
                alpha=False,
                kinds={**ONLY_LORA, "full": "", "full_bias": ""},
            ),
            _WAN._replace(
                prefixes=("diffusion_model.",),
                paths=("patch_embedding",),
                kinds={**ALL_FAIL, "full": COMPUTES, "full_bias": COMPUTES},
                exceptions=_removes_differences,
            ),
            _WAN._replace(
                prefixes=("diffusion_model.",),
                paths=_WAN_ENDS,
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
                prefixes=("lora_unet_",), paths=_WAN_IMAGES, dialects=("kohya",), alpha=True, where=_has_both_images
            ),
            _WAN._replace(
                prefixes=("lora_unet_",),
                paths=(*_WAN_BLOCKS, *_WAN_IMAGES, *_WAN_ENDS, "patch_embedding"),
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
            # DiffSynth-Studio's, by which the conversion knows them.
            _QWEN._replace(prefixes=("",), dialects=(INFIXED,)),
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
    """Return True if the program finds a module; PEFT refuses a file with none."""
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
            _QWEN._replace(prefixes=("",), dialects=(INFIXED,)),
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
# The pipeline infers the names of each encoder by itself.
_UNTOLD = (*untold_encoders(*UNDERSCORED_ENCODERS[:2]), *untold_encoders(UNDERSCORED_ENCODERS[2]))
_UNET_ENCODERS = renamed_encoders(_RENAMED, ScaleOfFile(alphas_by_pattern), *UNDERSCORED_ENCODERS[:3])


def _of_unet(family: str, *rules: Rule) -> tuple[Loader, ...]:
    """Return the loaders for kohya's names in all keys, and for diffusers' own."""
    return (
        converted(
            family,
            *(f"^lora_{part}_" for part in ("te", "unet", "te1", "te2")),
            rules=lambda: (*rules, _UNET, *_UNTOLD, _UNET_ENCODERS),
            all_marked=True,
            strangers=UNEXPECTED,
            others=Strangers(FAILS, _RENAMED),
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

_EMPTY = "ValueError: `original_state_dict` should be empty at this point"
_FLUX2_UNSUPPORTED = Strangers(WARNS, "Unsupported keys for Kohya Flux2 LoRA conversion")
_FLUX2 = Rule(prefixes=("lora_unet_",), layouts=("original",), dialects=("kohya",), parts=NO_CORE, scale=stored)
_FLUX2_LOADERS = (
    converted(
        "flux2",
        ".lora_down.weight",
        rules=lambda: (
            _FLUX2._replace(
                paths=(
                    *("guidance_in.in_layer", "guidance_in.out_layer", "final_layer.adaLN_modulation.1"),
                    *("double_stream_modulation_img.lin", "double_stream_modulation_txt.lin"),
                    "single_stream_modulation.lin",
                )
            ),
            _FLUX2._replace(
                kinds={"lora": COMPUTES, "": LEAVES},
                magnitudes=dict.fromkeys((*OUTPUTS, *DORA_SCALES, LAYER_SCALE), LEAVES),
                exceptions=endless,
            ),
            # It takes the underscored names for kohya's, and has no others.
            Rule(prefixes=("diffusion_model.", "lycoris_", "lora_transformer_")),
        ),
        strangers=_FLUX2_UNSUPPORTED,
        leaves=_FLUX2_UNSUPPORTED,
    ),
    converted("flux2", ".lokr_", rules=lambda: ()),
    converted(
        "flux2",
        "^diffusion_model.",
        "^base_model.model.",
        rules=lambda: (
            # It renames the layer without swapping the halves of its rows.
            _FLUX2._replace(
                prefixes=("diffusion_model.",),
                dialects=("peft",),
                alpha=False,
                paths=("final_layer.adaLN_modulation.1",),
                kinds={"lora": MISREADS, "": FAILS},
                magnitudes=SCALES_LEFT,
                says=_EMPTY,
            ),
            _FLUX2._replace(
                prefixes=("diffusion_model.",),
                dialects=("peft",),
                alpha=False,
                kinds={"lora": COMPUTES, "": FAILS},
                magnitudes=SCALES_LEFT,
                says=_EMPTY,
            ),
            _FLUX2._replace(
                prefixes=("diffusion_model.",), dialects=("peft", "kohya", "lycoris"), kinds=ALL_FAIL, says=_EMPTY
            ),
        ),
        strangers=Strangers(FAILS, _EMPTY),
    ),
    own("flux2", refuses=partial(without_lokr, "transformer")),
)


def _without_lora_in_model(adapter: Adapter) -> str | None:
    """Return the refusal of the model's keys; the pipeline ignores all other keys."""
    keys = (key for key in adapter.checkpoint.tensors if key.startswith("diffusion_model."))
    has_odd = any("lora" not in key and "dora_scale" not in key for key in keys)
    return NOT_LORA if has_odd else config_fails("transformer", adapter)


_LTX2_LOADERS = (
    converted(
        "ltx2",
        "^diffusion_model.",
        rules=lambda: (
            Rule(
                prefixes=("diffusion_model.",),
                layouts=("original",),
                dialects=("peft",),
                kinds={"lora": COMPUTES, "lora_bias": COMPUTES},
                magnitudes=PEFT_DORA,
                scale=stored,
            ),
            Rule(
                prefixes=("diffusion_model.",),
                layouts=("original",),
                dialects=("kohya",),
                kinds=ALL_FAIL,
                says="IndexError: list index out of range",
            ),
        ),
        strangers=Strangers(SILENT),
        leaves=NO_SCALE,
        refuses=_without_lora_in_model,
    ),
    own("ltx2"),
)

# The rows that the conversion of HunyuanVideo takes for granted of `linear1`.
_HUNYUAN_ROWS = 21504


@OfKind
def _of_other_width(given: Given) -> str | None:
    is_fused = given.module.name.body.endswith("linear1")
    return FAILS if is_fused and given.contribution.shape[0] != _HUNYUAN_ROWS else None


_HUNYUAN = Rule(layouts=("original",), dialects=("peft",), parts=NO_CORE)
_HUNYUAN_NAMES = ("transformer.", "diffusion_model.", "")
_HUNYUAN_LOADERS = (
    converted(
        "hunyuan_video",
        "img_attn_qkv",
        rules=lambda: (
            # It takes their smaller factor apart too.
            _HUNYUAN._replace(
                prefixes=_HUNYUAN_NAMES,
                paths=("txt_in.individual_token_refiner.blocks.{i}.self_attn_qkv",),
                kinds=ALL_FAIL,
            ),
            # Of both factors it swaps the halves, which only the rows of the change have.
            _HUNYUAN._replace(
                prefixes=_HUNYUAN_NAMES,
                paths=("final_layer.adaLN_modulation.1",),
                alpha=False,
                kinds={"lora": MISREADS},
                magnitudes=dict.fromkeys(DORA_SCALES, LEAVES),
                scale=stored,
            ),
            _HUNYUAN._replace(
                prefixes=_HUNYUAN_NAMES,
                alpha=False,
                kinds={"lora": COMPUTES},
                exceptions=_of_other_width,
                magnitudes=dict.fromkeys(DORA_SCALES, LEAVES),
                scale=stored,
                says="RuntimeError: split_with_sizes expects other sizes",
            ),
            _HUNYUAN._replace(
                prefixes=_HUNYUAN_NAMES,
                dialects=("peft", "kohya", "lycoris"),
                kinds=ALL_FAIL,
                says="RuntimeError: chunk expects at least a 1-dimensional tensor",
            ),
            _HUNYUAN._replace(prefixes=("lora_unet_",), dialects=("kohya", "lycoris"), kinds=ALL_FAIL),
        ),
        refuses=partial(without_lora, "transformer"),
    ),
    own(
        "hunyuan_video",
        rules=RulesByFamily(
            ("hunyuan_video",),
            lambda family: (
                Rule(
                    prefixes=("transformer.",),
                    layouts=("original", "comfyui"),
                    dialects=("peft",),
                    kinds=ALL_FAIL,
                    says="NoMatchingPeftModuleError: Target modules not found in the base model",
                ),
                *own_rules("transformer", family),
            ),
        ),
    ),
)

PROGRAM = Program(
    name="diffusers",
    title="diffusers",
    version="0.42.1 with PEFT 0.21.2",
    ran="2026-12-01",
    distributions={"diffusers": "0.42.1", "peft": "0.21.2"},
    loaders=(
        *(*_WAN_LOADERS, *FLUX_LOADERS, *_QWEN_LOADERS, *_Z_LOADERS, *_UNET_LOADERS, *_FLUX2_LOADERS),
        *(*_LTX2_LOADERS, *_HUNYUAN_LOADERS, *OTHER_LOADERS),
    ),
    schemes={"": "diffusers"},
)
