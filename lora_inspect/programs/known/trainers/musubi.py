"""musubi-tuner: LoRA, LoHa and LoKr in its own names behind `lora_unet_`.

The scale is alpha/rank, and all other keys get a warning. Its generation scripts merge while they load the model. A
weight of the base takes the factors under its own name with underscores, so a base with a prefix before its names takes
none. The scripts of FLUX.1 Kontext and HunyuanVideo first build a network of the file. It only holds LoRA of the layers
in the blocks, needs an alpha, and ignores the rest silently. FramePack's script also converts other names; the others
do not.

Its network modules are another program here, because they merge a file before training (`--base_weights`). They take
layers of the blocks with an alpha, and ignore the rest silently. `networks.lokr` does not get a factor there. It builds
its own module with sides as even as possible, and takes the scale from that: 1 if the second factor is whole.

Sources: `utils/lora_utils.py`, `networks/` and `training/trainer_base.py` of musubi-tuner, run on a small model of each
family.
"""

from collections.abc import Callable, Iterator, Mapping

from lora_inspect.algorithms.record import Shapes
from lora_inspect.programs.record import (
    COMPUTES,
    FAILS,
    INFIXED,
    LEAVES,
    MAGNITUDES_LEFT,
    READ,
    SILENT,
    SLICED,
    WARNS,
    Finder,
    Given,
    Loader,
    LoadFailure,
    OfKind,
    Program,
    Rule,
    RulesByFamily,
    Strangers,
    alpha_over_rank,
    one,
)
from lora_inspect.reading.adapter import Adapter
from lora_inspect.schemes import SCHEMES

PREFIX = "lora_unet_"
OTHER_PREFIXES = tuple({prefix: None for scheme in SCHEMES.values() for prefix in scheme.prefixes if prefix != PREFIX})
# The layout that it has a family's model in.
LAYOUTS: Mapping[str, str] = {
    "flux2": "original",
    "framepack": "diffusers",
    "hunyuan_video_1_5": "original",
    "krea2": "original",
    "qwen_image": "diffusers",
    "wan": "original",
    "z_image": "diffusers",
}
# Layouts whose names are not found in the model.
OTHER_LAYOUTS: Mapping[str, str] = {
    **dict.fromkeys(("wan", "flux2", "hunyuan_video_1_5", "krea2"), "diffusers"),
    "z_image": "original",
}
# The families of which the scripts that generate build a network.
_GENERATED = ("flux", "hunyuan_video")
# What the names of the layers begin with of which a network of a family has modules: those of the blocks, or of all.
_IN_BLOCKS: Mapping[str, tuple[str, ...]] = {
    "flux": ("double_blocks_", "single_blocks_"),
    "flux2": ("double_blocks_", "single_blocks_"),
    "framepack": ("transformer_blocks_", "single_transformer_blocks_"),
    "hunyuan_video": ("double_blocks_", "single_blocks_"),
    "hunyuan_video_1_5": ("double_blocks_",),
    "krea2": ("",),
    "qwen_image": ("transformer_blocks_",),
    "wan": ("blocks_",),
    "z_image": ("layers_", "noise_refiner_", "context_refiner_"),
}
# The names that FramePack's script converts, and training with HunyuanVideo alone.
_RENAMED = ("diffusion_model.", "transformer.")
_CONVERTED = {"hunyuan_video": _RENAMED}
# A model whose blocks `networks.loha` and `networks.lokr` do not know.
_UNDETECTED, _DETECTS_NONE = "krea2", "ValueError: Cannot auto-detect architecture"
_KINDS = ("lora", "loha", "lokr")


def has_several_kinds(adapter: Adapter) -> bool:
    """Return True for a file of several kinds; the first known key decides for all."""
    return len({one.algorithm.name for one in adapter.contributions} & set(_KINDS)) > 1


@OfKind
def _exceptions(given: Given) -> str | None:
    """Return LEAVES for LoKr with a product as first factor, else the usual treatment."""
    shapes = given.contribution.shapes
    if given.contribution.algorithm.name == "lokr" and "w1_a" in shapes:
        return LEAVES
    return _is_odd(shapes)


def in_blocks_of(family: str) -> Callable[[Adapter], Finder]:
    """Return a finder of the modules in the blocks that a network has for a family."""
    starts = _IN_BLOCKS[family]
    in_blocks = OfKind(lambda given: given.module.name.body.replace(".", "_").startswith(starts))

    def finds(adapter: Adapter) -> Finder:
        return in_blocks

    return finds


@OfKind
def _exceptions_of_network(given: Given) -> str | LoadFailure | None:
    """Return the error for a module without alpha, or the treatment of odd shapes.

    It knows convolutions, but the blocks have none.
    """
    shapes = given.contribution.shapes
    if given.module.alpha is None:
        return LoadFailure(f"KeyError: '{given.module.name.key}'")
    if given.contribution.algorithm.name == "lokr" and "w1_a" in shapes:
        return LoadFailure("KeyError: 'lokr_w1'")
    return _is_odd(shapes)


def _is_odd(shapes: Shapes) -> str | None:
    """Return "" for cores and kernels, as their effect is unknown."""
    odd = any(role in shapes for role in ("mid", "t1", "t2")) or any(len(shape) > 2 for shape in shapes.values())
    return "" if odd else None


@OfKind
def _scale_of_network(given: Given) -> float | None:
    """Return alpha/rank, but 1 for an alpha of 0.

    LoKr gets the scale of the module that is built without the file's factor.
    """
    contribution = given.contribution
    if contribution.alpha == 0:
        return 1.0
    if contribution.algorithm.name != "lokr":
        return alpha_over_rank(given)
    from lora_inspect.algorithms.lokr import factorise, weight_shape

    shapes = contribution.shapes
    rank = shapes["w2_a"][1] if "w2_a" in shapes else max(shapes["w2"])
    larger = max(factorise(size)[1] for size in weight_shape(shapes))
    # The module has a product in the place of its second factor while the rank is below half of its larger side.
    if rank >= larger / 2:
        return 1.0
    return None if contribution.alpha is None else contribution.alpha / rank


MERGED = Rule(
    prefixes=(PREFIX,),
    kinds={**dict.fromkeys(_KINDS, COMPUTES), "": LEAVES},
    exceptions=_exceptions,
    magnitudes=MAGNITUDES_LEFT,
)


def _merges(family: str) -> Iterator[Rule]:
    """Yield the rules of a family that merges the file while its model loads."""
    own = MERGED._replace(families=(family,), layouts=(LAYOUTS[family],))
    yield own._replace(dialects=("peft",), kinds={"": LEAVES}, exceptions=None)
    yield own._replace(dialects=(SLICED, INFIXED), kinds={"": LEAVES}, exceptions=None, by=READ)
    yield own._replace(where=has_several_kinds, kinds={**dict.fromkeys(_KINDS, ""), "": LEAVES})
    yield own
    if family == "framepack":
        # Of dotted names it renames the factors, and makes an alpha of the rank.
        yield own._replace(
            prefixes=_RENAMED, dialects=("peft",), kinds={"lora": COMPUTES, "": LEAVES}, exceptions=None, scale=one
        )
    else:
        yield Rule(families=(family,), prefixes=OTHER_PREFIXES)
    if other := OTHER_LAYOUTS.get(family):
        yield Rule(families=(family,), layouts=(other,), by=READ)


NETWORK = Rule(
    prefixes=(PREFIX,),
    kinds={"lora": COMPUTES, "": LEAVES},
    exceptions=_exceptions_of_network,
    scale=_scale_of_network,
    magnitudes=MAGNITUDES_LEFT,
)


def _generates(family: str) -> Iterator[Rule]:
    """Yield the rules of a LoRA network, for a file of any algorithm."""
    own = NETWORK._replace(families=(family,), layouts=("original",), finds=in_blocks_of(family))
    yield own._replace(dialects=("peft",), kinds={"": LEAVES}, exceptions=None)
    yield own
    yield Rule(families=(family,), prefixes=OTHER_PREFIXES)


def _trains(family: str) -> Iterator[Rule]:
    """Yield the rules of the network module for the file's algorithm.

    It merges the file before training.
    """
    own = NETWORK._replace(
        families=(family,),
        layouts=(LAYOUTS.get(family, "original"),),
        kinds={**dict.fromkeys(_KINDS, COMPUTES), "": LEAVES},
        finds=in_blocks_of(family),
    )
    if family == _UNDETECTED:
        own = own._replace(kinds={"lora": COMPUTES, "loha": FAILS, "lokr": FAILS, "": LEAVES}, says=_DETECTS_NONE)
    yield own._replace(dialects=("peft",), kinds={"": LEAVES}, exceptions=None, says="")
    # The module that is named decides what is read of it.
    yield own._replace(where=has_several_kinds, kinds={**dict.fromkeys(_KINDS, ""), "": LEAVES}, says="")
    yield own
    converted = _CONVERTED.get(family, ())
    yield Rule(families=(family,), prefixes=tuple(prefix for prefix in OTHER_PREFIXES if prefix not in converted))
    if other := OTHER_LAYOUTS.get(family):
        yield Rule(families=(family,), layouts=(other,), by=READ)


_MUSUBI = Program(
    name="musubi",
    title="musubi-tuner",
    version="2026-06-24",
    ran="2026-11-26",
    loaders=(
        Loader(
            families=tuple(LAYOUTS),
            rules=RulesByFamily(tuple(LAYOUTS), _merges),
            strangers=Strangers(WARNS, "not all LoRA keys are used"),
        ),
        Loader(families=_GENERATED, rules=RulesByFamily(_GENERATED, _generates), strangers=Strangers(SILENT)),
    ),
    schemes={"": "musubi"},
)
_NETWORKS = _MUSUBI._replace(
    name="musubi-networks",
    title="musubi-tuner (networks)",
    loaders=(
        Loader(
            families=tuple(_IN_BLOCKS),
            rules=RulesByFamily(tuple(_IN_BLOCKS), _trains),
            strangers=Strangers(SILENT),
        ),
    ),
)
PROGRAMS = (_MUSUBI, _NETWORKS)
