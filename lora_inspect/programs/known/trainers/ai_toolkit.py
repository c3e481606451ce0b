"""ai-toolkit: files to train on from, loaded into a network of the kind, the rank and the alpha that its user sets.

It looks every key up in its network, and prints those that are not there. All newer models keep diffusers' dotted
names, and for these alpha is dropped: the scale is 1. The UNets have kohya's prefix before diffusers' names, at the
alpha of the settings over the rank. In dotted names it does not find the magnitudes of DoRA again that it saved itself,
and begins at the norms of the base.

Sources: `load_weights` in `toolkit/network_mixins.py`, `toolkit/lora_special.py` and the models of ai-toolkit, run with
their renaming on a small model of each family.
"""

from collections.abc import Iterator, Mapping

from lora_inspect.programs.record import (
    COMPUTES,
    INFIXED,
    LEAVES,
    MISREADS,
    READ,
    RUN,
    SLICED,
    TEXT_ENCODERS,
    UNTRAINED,
    WARNS,
    Given,
    Loader,
    OfKind,
    OfKindInFile,
    Program,
    Rule,
    RulesByFamily,
    ScaleOfFile,
    ScaleRule,
    Strangers,
    one,
)
from lora_inspect.reading.adapter import Adapter
from lora_inspect.schemes import SCHEMES

_OWN, _COMFYUI, _FLAT = "transformer.", "diffusion_model.", "lora_unet_"
_UNETS = ("sd15", "sdxl")
# The prefixes of CLIP's layers, of which a UNet is trained with.
_CLIP: Mapping[str, tuple[str, ...]] = {"sd15": ("lora_te_",), "sdxl": ("lora_te1_", "lora_te2_")}
_ENCODERS = ("lora_te_", "lora_te1_", "lora_te2_", "lora_te3_", "text_encoder.", "text_encoder_2.", "text_encoder_3.")
# The layouts that it finds of a family, and the prefixes before their names.
_NAMES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    **dict.fromkeys(_UNETS, (("diffusers",), (_FLAT,))),
    **dict.fromkeys(("flux", "lumina2", "sd3"), (("diffusers",), (_OWN,))),
    **dict.fromkeys(("hidream_i1", "qwen_image", "z_image"), (("diffusers",), (_OWN, _COMFYUI))),
    **dict.fromkeys(("chroma", "flux2"), (("original",), (_OWN, _COMFYUI))),
    "wan": (("diffusers", "original"), (_OWN, _COMFYUI)),
}
_PREFIXES = tuple({prefix: None for scheme in SCHEMES.values() for prefix in scheme.prefixes})
_SPELLED = (
    ".dora_scale output",
    ".dora_scale input",
    ".dora_layer.weight output",
    ".lora_magnitude_vector output",
    ".lora_magnitude_vector.weight output",
)
_UNTRAINED: Mapping[str, str] = dict.fromkeys(_SPELLED, UNTRAINED)


def _needs(adapter: Adapter) -> str | None:
    """The settings that are those of the file."""
    rank = max((one.rank or 0 for one in adapter.contributions), default=0)
    alphas = {one.alpha for one in adapter.contributions if one.alpha is not None}
    is_unet = any(module.name.prefix == _FLAT for module in adapter.modules.values())
    alpha = f" and its alpha of {max(alphas):g}" if alphas and is_unet else ""
    return f"with the file's kind{f', its rank {rank}' if rank else ''}{alpha} in the settings"


@OfKind
def _exceptions(given: Given) -> str | None:
    """Nobody tried kernels of LoKr, cores, and factors of LoKr that its own rule would not have made."""
    name, shapes = given.contribution.algorithm.name, given.contribution.shapes
    if name == "lora":
        return "" if "mid" in shapes or any(len(shape) not in (2, 4) for shape in shapes.values()) else None
    if name != "lokr":
        return None
    if any(len(shape) > 2 for shape in shapes.values()):
        return ""
    if {"w1", "w2"} <= shapes.keys():
        return None
    is_split = "w1" in shapes and "w2_a" in shapes
    return None if is_split and 2 * shapes["w2_a"][1] < max(shapes["w2_a"][0], shapes["w2_b"][1]) else ""


@OfKind
def _exceptions_of_unet(given: Given) -> str | None:
    """It also takes the scale for no part of the norms of DoRA; of LoKr nobody tried factors of a product."""
    contribution = given.contribution
    magnitude = contribution.magnitude
    if magnitude is not None and magnitude.spelling.suffix == ".magnitude" and contribution.scale != 1.0:
        return MISREADS
    if contribution.algorithm.name == "lokr" and not {"w1", "w2"} <= contribution.shapes.keys():
        return ""
    return _exceptions(given)


def _scales(adapter: Adapter) -> ScaleRule:
    """The alpha of the settings, which is that of the first layer here, over their rank, which is the largest."""
    ranks = [one.rank for one in adapter.contributions if one.rank]
    alphas = [one.alpha for one in adapter.contributions if one.alpha is not None and one.module is not None]
    has_alpha = any(module.alpha is not None for module in adapter.modules.values())
    scale = alphas[0] / max(ranks) if has_alpha and alphas and ranks else 1.0
    return OfKindInFile(lambda given: scale if given.contribution.rank else 1.0)


_LOADED = Rule(
    dialects=("", "kohya", "peft", "lycoris"),
    kinds={"lora": COMPUTES, "lokr": COMPUTES, "": LEAVES},
    exceptions=_exceptions,
    scale=one,
    magnitudes=_UNTRAINED,
)
_IN_UNETS = _LOADED._replace(
    exceptions=_exceptions_of_unet,
    scale=ScaleOfFile(_scales),
    magnitudes={**_UNTRAINED, ".magnitude output": COMPUTES},
)


def _rules(family: str) -> Iterator[Rule]:
    layouts, prefixes = _NAMES[family]
    yield Rule(prefixes=prefixes, dialects=(INFIXED, SLICED), by=READ)
    own = _IN_UNETS if family in _UNETS else _LOADED._replace(magnitudes={**_UNTRAINED, ".magnitude output": UNTRAINED})
    yield own._replace(layouts=layouts, prefixes=prefixes)
    if family in _CLIP:
        yield own._replace(layouts=("text_model.encoder.layers.{i}",), prefixes=_CLIP[family])
    yield Rule(prefixes=_ENCODERS, layouts=(TEXT_ENCODERS,), by=RUN if family in _CLIP else READ)
    # Its names of a UNet's original layers are in no file of its own.
    yield Rule(prefixes=prefixes, layouts=("original", "comfyui", "diffusers"))
    others = tuple(prefix for prefix in _PREFIXES if prefix not in (*prefixes, "lycoris_") and "text" not in prefix)
    yield Rule(prefixes=tuple(prefix for prefix in others if not prefix.startswith("lora_te")))
    # Models of older versions have LoKr in these names.
    yield Rule(prefixes=("lycoris_",), kinds={"lokr": "", "": LEAVES})


def _loader(families: tuple[str, ...]) -> Loader:
    return Loader(
        families=families,
        rules=RulesByFamily(families, _rules),
        strangers=Strangers(WARNS, "Missing keys: [...]"),
        needs=_needs,
    )


_DOTTED = tuple(family for family in _NAMES if family not in _UNETS)
PROGRAM = Program(
    name="ai-toolkit",
    title="ai-toolkit",
    version="2026-08-21",
    ran="2026-12-01",
    loaders=(_loader(_UNETS), _loader(_DOTTED)._replace(unit_scale=True)),
    schemes={
        **dict.fromkeys(_UNETS, "onetrainer"),
        **dict.fromkeys(("chroma", "flux2"), "comfyui"),
        "": "diffusers",
    },
    uniform=True,
    sets_multiplier=False,
)
