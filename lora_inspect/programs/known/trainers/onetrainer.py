"""OneTrainer: files to train on from, in the names of every trainer, loaded into the modules that its user sets.

It renames a file by the one prefix that it finds, and every key has to come out as a layer's. The kind, the rank and
the layers are those of its settings, and modules that miss a tensor or have another size stop it: here they are set as
the file has them, one rank for all. Fused layers ask for an output format that fuses too. A flag of RS-LoRA, like any
other tensor of no adapter that it trains, is refused. It swaps the halves of the last modulation between the original
names and its own in LoRA's factors, and not in those of LoHa and LoKr.

Sources: `modules/util/load_lora_util.py`, `modules/modelLoader/mixin/LoRALoaderMixin.py` and
`modules/module/LoRAModule.py` of OneTrainer, run with its classes of models on a small model of each family.
"""

from collections.abc import Iterator, Mapping

from lora_inspect.architectures import by_name
from lora_inspect.programs.record import (
    COMPUTES,
    FAILS,
    INFIXED,
    MISREADS,
    READ,
    TEXT_ENCODERS,
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

_NO_KIND = "RuntimeError: this LoRA file uses an adapter type OneTrainer can't load for training"
_NO_NAME = "RuntimeError: No conversion found for key"
_SIZES = "RuntimeError: Error during loading of module key"
_FLAT, _BARE = ("lora_unet_", "lycoris_"), ("", "base_model.model.")
# Families of which it has the layers under diffusers' names alone.
_AS_DIFFUSERS = ("hidream_i1", "qwen_image", "z_image")
# The families in the names of its first versions, and the layout of their original names where it renames those.
_OF_LEGACY = ("chroma", "flux", "flux2", "hunyuan_video", "sd3")
_ORIGINAL: Mapping[str, str] = dict.fromkeys((*_OF_LEGACY, "sdxl"), "original")
# The prefixes of text encoders of CLIP, which ran, and of others.
_CLIP: Mapping[str, tuple[str, ...]] = {
    "sd15": ("lora_te_", "lora_te1_", "text_encoder."),
    "sdxl": ("lora_te1_", "lora_te2_", "text_encoder.", "text_encoder_2."),
    "flux": ("lora_te1_", "text_encoder.", "text_encoders.clip_l.transformer."),
}
_OTHERS: Mapping[str, tuple[str, ...]] = {
    "flux": ("lora_te2_", "text_encoder_2."),
    "sd3": ("lora_te1_", "lora_te2_", "lora_te3_", "text_encoder.", "text_encoder_2.", "text_encoder_3."),
}
_FAMILIES = ("sd15", *_ORIGINAL, *_AS_DIFFUSERS)


def _refused(adapter: Adapter) -> str | None:
    """Returns the error of a module that has another kind or rank than the settings."""
    kinds = {one.algorithm.name for one in adapter.contributions} & {"lora", "loha", "lokr"}
    if len(kinds) > 1:
        return f"{_SIZES}, as the file has {' and '.join(sorted(kinds))}"
    ranks = {one.rank for one in adapter.contributions if one.rank and one.algorithm.name in ("lora", "loha")}
    return f"{_SIZES}, as the file has ranks {min(ranks)} and {max(ranks)}" if len(ranks) > 1 else None


def _needs(adapter: Adapter) -> str | None:
    """The settings that are those of the file."""
    rank = max((one.rank or 0 for one in adapter.contributions), default=0)
    whole = next((one.alpha for one in adapter.contributions if {"w1", "w2"} <= one.shapes.keys() and one.alpha), None)
    size = f"its rank {rank} " if rank else f"a dimension of {whole:g} " if whole else ""
    return f"with the file's kind, {size}and its layers in the settings"


@OfKind
def _exceptions(given: Given) -> str | LoadFailure | None:
    """It asks for the alpha of LoHa and LoKr; nobody tried kernels of these, and of LoRA but those of images."""
    name, shapes = given.contribution.algorithm.name, given.contribution.shapes
    if name in ("loha", "lokr") and given.module.alpha is None:
        return LoadFailure(f'{_SIZES} "{given.module.name.key}."')
    # The alpha of two whole factors is over a dimension of the settings.
    if name == "lokr" and {"w1", "w2"} <= shapes.keys():
        return None if (given.contribution.alpha or 0.5).is_integer() else ""
    if name == "lokr" and ("w1" not in shapes or "w2_a" not in shapes):
        return ""
    # It has a whole second factor where the rank is not below half of its larger side.
    if name == "lokr" and 2 * shapes["w2_a"][1] >= max(shapes["w2_a"][0], shapes["w2_b"][1]):
        return LoadFailure(f'{_SIZES} "{given.module.name.key}."')
    sides = {len(shape) for shape in shapes.values()}
    return "" if "mid" in shapes or not sides <= ({2, 4} if name == "lora" else {2}) else None


@OfKind
def _exceptions_of_original(given: Given) -> str | LoadFailure | None:
    """It does not swap the halves of other factors than LoRA's."""
    body = given.module.name.body.replace(".", "_")
    is_swapped = body.endswith("adaLN_modulation_1") and body.startswith("final_layer")
    if is_swapped and given.contribution.algorithm.name in ("loha", "lokr") and given.module.alpha is not None:
        return MISREADS
    return _exceptions(given)


_LOADED = Rule(
    dialects=("", "kohya", "peft", "lycoris", INFIXED),
    kinds={"lora": COMPUTES, "loha": COMPUTES, "lokr": COMPUTES, "peft_oft": "", "": FAILS},
    exceptions=_exceptions,
    magnitudes={
        ".dora_scale output": COMPUTES,
        ".dora_scale input": COMPUTES,
        ".lora_magnitude_vector.weight output": COMPUTES,
        ".lora_magnitude_vector output": FAILS,
        ".dora_layer.weight output": FAILS,
    },
    says=_NO_KIND,
)


def _rules(family: str) -> Iterator[Rule]:
    own = f"{by_name(family).pipeline_name}."
    legacy = ("lora_transformer_",) if family in _OF_LEGACY else ()
    unnamed = Rule(kinds={"": FAILS}, says=_NO_NAME)
    of_comfyui = "diffusion_model."
    in_diffusers = (*_FLAT, *legacy, *_BARE, own)
    if family in _AS_DIFFUSERS:
        in_diffusers = (*in_diffusers, of_comfyui)
    yield _LOADED._replace(layouts=("diffusers",), prefixes=in_diffusers)
    if layout := _ORIGINAL.get(family):
        original = _LOADED._replace(layouts=(layout,), exceptions=_exceptions_of_original)
        yield original._replace(prefixes=("lora_unet_", of_comfyui))
        yield original._replace(prefixes=("lycoris_", *_BARE, own), by=READ)
        yield unnamed._replace(layouts=("diffusers",), prefixes=(of_comfyui,))
    elif family == "sd15":
        yield _LOADED._replace(layouts=("original",), prefixes=(of_comfyui,))
        yield unnamed._replace(layouts=("diffusers",), prefixes=(of_comfyui,))
    else:
        yield unnamed._replace(layouts=("diffusers",), prefixes=("lora_transformer_",), says=_SIZES)
    if family == "z_image":
        yield unnamed._replace(layouts=("original",), prefixes=("lora_unet_", of_comfyui))
    if family == "hunyuan_video":
        yield unnamed._replace(layouts=("comfyui",), prefixes=(of_comfyui,))
    if family in _ORIGINAL:
        yield unnamed._replace(prefixes=("oft_unet_",), by=READ)
    yield unnamed._replace(layouts=("xlabs",), says=_NO_KIND, by=READ)
    if family == "flux":
        yield unnamed._replace(prefixes=("lora_te3_",), by=READ)
    if family in _CLIP:
        yield _LOADED._replace(layouts=("text_model.encoder.layers.{i}",), prefixes=_CLIP[family])
    if family in _OTHERS:
        yield _LOADED._replace(layouts=(TEXT_ENCODERS,), prefixes=_OTHERS[family], by=READ)


PROGRAM = Program(
    name="onetrainer",
    title="OneTrainer",
    version="2026-08-19",
    ran="2026-12-01",
    loaders=(
        Loader(
            families=_FAMILIES,
            rules=RulesByFamily(_FAMILIES, _rules),
            strangers=Strangers(FAILS, _NO_NAME),
            others=Strangers(FAILS, _NO_KIND),
            refuses=_refused,
            needs=_needs,
        ),
    ),
    schemes={"": "onetrainer"},
    uniform=True,
    sets_multiplier=False,
)
