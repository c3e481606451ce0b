"""DiffSynth-Studio: LoRA in the names of its models, at alpha/rank.

The names are bare or behind `diffusion_model.`. It looks for the keys of up, takes the module's name from them, and
adds the product to the layer of that name. It ignores everything else: it applies DoRA as plain LoRA, and other
algorithms have no effect. It prints the number of layers that it found, and nothing about the others.

Sources: `diffusion/base_pipeline.py` and `utils/lora/general.py` of DiffSynth-Studio. Its `load_lora` was run on small
layers; the names are those of its models, which were built without weights. FLUX.1, SDXL, Krea 2 and MiniMax H3 have
converters of their own, which nobody has tried.
"""

from collections.abc import Iterator, Mapping

from lora_inspect.architectures import by_name
from lora_inspect.programs.record import (
    COMPUTES,
    INFIXED,
    LEAVES,
    READ,
    SILENT,
    SLICED,
    Given,
    Loader,
    OfKind,
    Program,
    Rule,
    RulesByFamily,
    Strangers,
)
from lora_inspect.schemes import SCHEMES

# The layout that its model of a family has.
_LAYOUTS: Mapping[str, str] = {
    "wan": "original",
    "qwen_image": "diffusers",
    "z_image": "diffusers",
    "flux2": "diffusers",
    "anima": "original",
    "ltx2": "original",
}
_PREFIXES = ("", "diffusion_model.")
_OTHER_PREFIXES = tuple(
    {prefix: None for scheme in SCHEMES.values() for prefix in scheme.prefixes if prefix not in _PREFIXES}
)
# Layers that the model has only for some of the checkpoints.
_SOMETIMES = ("vace_", "addition_t_embedding", "gate_logits", "prompt_adaln")
_MAGNITUDES = dict.fromkeys(
    (
        ".dora_scale output",
        ".dora_scale input",
        ".dora_layer.weight output",
        ".lora_magnitude_vector output",
        ".lora_magnitude_vector.weight output",
    ),
    LEAVES,
)
_LOADED = Rule(
    prefixes=_PREFIXES,
    kinds={
        "lora": COMPUTES,
        **dict.fromkeys(("loha", "lokr", "oft", "full", "full_bias", "lora_bias", "lycoris_ia3"), LEAVES),
    },
    magnitudes=_MAGNITUDES,
)


@OfKind
def _is_odd(given: Given) -> str | None:
    """Return "" for cores and kernels, as their effect is unknown."""
    shapes = given.contribution.shapes
    return "" if "mid" in shapes or any(len(shape) > 2 for shape in shapes.values()) else None


def _rules(family: str) -> Iterator[Rule]:
    """Yield the rules of one family's model."""
    own = _LOADED._replace(families=(family,), layouts=(_LAYOUTS[family],), exceptions=_is_odd)
    paths = (path for layout in by_name(family).layouts if _LAYOUTS[family] in layout.names for path in layout.paths)
    if some := tuple(path for path in paths if any(part in path for part in _SOMETIMES)):
        yield own._replace(paths=some, kinds={"": ""})
    yield own
    yield own._replace(dialects=(INFIXED,), kinds={"lora": COMPUTES})
    yield own._replace(dialects=(SLICED,), kinds={"": ""})
    yield Rule(families=(family,), prefixes=_OTHER_PREFIXES)
    yield Rule(families=(family,), prefixes=_PREFIXES, layouts=("original", "comfyui", "diffusers"), by=READ)


PROGRAM = Program(
    name="diffsynth",
    title="DiffSynth-Studio",
    version="2.0.0 (2026-08-20)",
    ran="2026-12-01",
    loaders=(
        Loader(
            families=tuple(_LAYOUTS),
            rules=RulesByFamily(tuple(_LAYOUTS), _rules),
            strangers=Strangers(SILENT),
        ),
    ),
    # No scheme writes the names of diffusers' layers behind nothing, or behind ComfyUI's prefix.
    schemes={**dict.fromkeys(("wan", "qwen_image", "anima", "ltx2"), "comfyui"), "": ""},
)
