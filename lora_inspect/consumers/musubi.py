"""musubi-tuner: its own names behind `lora_unet_`, LoRA, LoHa and LoKr by alpha/rank, and a warning of all else.

Its scripts that generate merge while they load the model: a weight of the base takes the factors under its own name
with underscores, so that a base with a prefix before its names takes none. Of FLUX.1 Kontext and HunyuanVideo they
build a network of the file first, which holds LoRA of the layers in the blocks alone, needs an alpha, and says nothing
of the rest.
FramePack's script alone converts other names. Training goes on from dotted names too, which it converts as its
`convert_lora.py` does; that fails on a flag, whose key has no dot.

Sources: `utils/lora_utils.py`, `networks/` and `convert_lora.py` of musubi-tuner, run on a small model of each family.
"""

from collections.abc import Iterator, Mapping

from lora_inspect.consumers.record import (
    COMPUTES,
    INFIXED,
    LEAVES,
    READ,
    SILENT,
    SLICED,
    WARNS,
    Consumer,
    Failure,
    Finder,
    Given,
    Loader,
    OfKind,
    Rule,
    RulesByFamily,
    Strangers,
)
from lora_inspect.reading.adapter import Adapter
from lora_inspect.schemes import SCHEMES

PREFIX = "lora_unet_"
_OTHER_PREFIXES = tuple({prefix: None for scheme in SCHEMES.values() for prefix in scheme.prefixes if prefix != PREFIX})
# The layout that it has a family's model in.
_LAYOUTS: Mapping[str, str] = {
    "flux2": "original",
    "framepack": "diffusers",
    "hunyuan_video_1_5": "original",
    "krea2": "original",
    "qwen_image": "diffusers",
    "wan": "original",
    "z_image": "diffusers",
}
# Layouts whose names are not found in the model.
_OTHER_LAYOUTS: Mapping[str, str] = {
    **dict.fromkeys(("wan", "flux2", "hunyuan_video_1_5", "krea2"), "diffusers"),
    "z_image": "original",
}
# The families of which it builds a network, and what the names of its layers begin with.
_IN_BLOCKS = {"flux": ("double_blocks_", "single_blocks_"), "hunyuan_video": ("double_blocks_", "single_blocks_")}
_KINDS = ("lora", "loha", "lokr")
_MAGNITUDES = dict.fromkeys(
    (
        ".dora_scale output",
        ".dora_scale input",
        ".dora_layer.weight output",
        ".lora_magnitude_vector output",
        ".lora_magnitude_vector.weight output",
        ".magnitude output",
    ),
    LEAVES,
)


def _has_several_kinds(adapter: Adapter) -> bool:
    """It takes the kind of a whole file from the first of its keys that it knows."""
    return len({one.algorithm.name for one in adapter.contributions} & set(_KINDS)) > 1


@OfKind
def _exceptions(given: Given) -> str | None:
    """It knows no cores and kernels."""
    shapes = given.contribution.shapes
    if given.contribution.algorithm.name == "lokr" and "w1_a" in shapes:
        return LEAVES
    is_odd = any(role in shapes for role in ("mid", "t1", "t2")) or any(len(shape) > 2 for shape in shapes.values())
    return "" if is_odd else None


def _in_blocks(adapter: Adapter) -> Finder:
    starts = tuple({start for family in _IN_BLOCKS.values() for start in family})
    return OfKind(lambda given: given.module.name.body.startswith(starts))


@OfKind
def _exceptions_of_network(given: Given) -> str | Failure | None:
    """It asks for an alpha, and knows convolutions, which the blocks have none of."""
    if given.module.alpha is None:
        return Failure(f"KeyError: '{given.module.name.key}'")
    return "" if any(len(shape) > 2 for shape in given.contribution.shapes.values()) else None


_MERGED = Rule(
    prefixes=(PREFIX,),
    kinds={**dict.fromkeys(_KINDS, COMPUTES), "": LEAVES},
    exceptions=_exceptions,
    magnitudes=_MAGNITUDES,
)


def _merges(family: str) -> Iterator[Rule]:
    """The rules of a family's model that is merged while it is loaded."""
    own = _MERGED._replace(families=(family,), layouts=(_LAYOUTS[family],))
    yield own._replace(dialects=("peft",), kinds={"": LEAVES}, exceptions=None)
    yield own._replace(dialects=(SLICED, INFIXED), kinds={"": LEAVES}, exceptions=None, by=READ)
    yield own._replace(where=_has_several_kinds, kinds={**dict.fromkeys(_KINDS, ""), "": LEAVES})
    yield own
    if family != "framepack":
        yield Rule(families=(family,), prefixes=_OTHER_PREFIXES)
    if other := _OTHER_LAYOUTS.get(family):
        yield Rule(families=(family,), layouts=(other,), by=READ)


_NETWORK = Rule(
    families=tuple(_IN_BLOCKS),
    prefixes=(PREFIX,),
    layouts=("original",),
    kinds={"lora": COMPUTES, "": LEAVES},
    finds=_in_blocks,
    exceptions=_exceptions_of_network,
    magnitudes=_MAGNITUDES,
)
_NETWORKS = (
    _NETWORK._replace(dialects=("peft",), kinds={"": LEAVES}, exceptions=None),
    _NETWORK,
)

CONSUMER = Consumer(
    name="musubi",
    title="musubi-tuner",
    version="2026-06-24",
    loaders=(
        Loader(
            families=tuple(_LAYOUTS),
            rules=RulesByFamily(tuple(_LAYOUTS), _merges),
            strangers=Strangers(WARNS, "not all LoRA keys are used"),
        ),
        Loader(
            families=tuple(_IN_BLOCKS),
            rules=(*_NETWORKS, Rule(prefixes=_OTHER_PREFIXES)),
            strangers=Strangers(SILENT),
        ),
    ),
    schemes={"": "musubi"},
)
