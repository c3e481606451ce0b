"""blissful-tuner: a fork of musubi-tuner with scripts that convert dotted names.

The scripts of Wan, Qwen-Image, HunyuanVideo and FLUX.1 Kontext look for the first key with a known prefix. They rename
a file of dotted names before they merge it. They split each key that they check at its first dot, and fail on one
without a dot, such as RS-LoRA's flag. FramePack's script converts only factors of `lora_A`, and forgets alpha. All
apply DoRA as plain LoRA.

Sources: `wan_generate_video.py`, the same script of each family, `convert_lora.py`, `utils/lora_utils.py` and
`networks/` of blissful-tuner. The part of each script that loads adapters was run on the weights of a small model.
"""

from collections.abc import Iterable, Iterator

from lora_inspect.programs.known.trainers.musubi import (
    LAYOUTS,
    MERGED,
    NETWORK,
    OTHER_LAYOUTS,
    OTHER_PREFIXES,
    PREFIX,
    has_several_kinds,
    in_blocks_of,
)
from lora_inspect.programs.record import (
    COMPUTES,
    INFIXED,
    LEAVES,
    READ,
    SILENT,
    SLICED,
    WARNS,
    Finder,
    Given,
    Loader,
    OfKind,
    Program,
    Rule,
    RulesByFamily,
    Strangers,
    one,
)
from lora_inspect.reading.adapter import Adapter

# The prefixes that a script renames, and those of two that it does not look for.
_DOTTED = ("diffusion_model.", "transformer.")
_UNNAMED = tuple(prefix for prefix in OTHER_PREFIXES if prefix not in _DOTTED)
# Families whose scripts merge while they load, those of them that convert first, and those that build a network.
_MERGED = ("flux2", "hunyuan_video_1_5", "qwen_image", "wan", "z_image")
_CONVERTING = ("qwen_image", "wan")
_OF_NETWORK = ("flux", "hunyuan_video")
_NOT_SPLIT = "ValueError: not enough values to unpack (expected 2, got 1)"


def _fails_on_a_key(adapter: Adapter) -> str | None:
    """Return the error for a key without a dot.

    It splits keys up to the first with a known prefix, and each key of a file that it converts.
    """
    keys = adapter.checkpoint.tensors
    for key in keys:
        prefix, dot, _ = key.partition(".")
        if not dot:
            return _NOT_SPLIT
        if f"{prefix}." in _DOTTED:
            return _NOT_SPLIT if _has_no_dot(keys) else None
        if "lora_unet" in prefix:
            return None
    return None


def _renames_some(adapter: Adapter) -> bool:
    """Return True for dotted and other names in one file.

    A script drops the other names, if a dotted one comes first.
    """
    prefixes = {module.name.prefix for module in adapter.modules.values()}
    return not prefixes.isdisjoint(_DOTTED) and not prefixes <= {*_DOTTED}


def _merges(family: str) -> Iterator[Rule]:
    """Yield the rules of a family that merges the file while its model loads."""
    own = MERGED._replace(families=(family,), layouts=(LAYOUTS[family],))
    left = own._replace(kinds={"": LEAVES}, exceptions=None)
    if family in _CONVERTING:
        yield Rule(families=(family,), where=_renames_some, prefixes=(PREFIX, *_DOTTED), kinds={"": ""})
    yield left._replace(dialects=("peft",))
    yield left._replace(dialects=(SLICED, INFIXED), by=READ)
    yield own._replace(where=has_several_kinds, kinds={**dict.fromkeys(MERGED.kinds, ""), "": LEAVES})
    yield own
    if family in _CONVERTING:
        dotted = own._replace(prefixes=_DOTTED)
        yield left._replace(prefixes=_DOTTED, dialects=(SLICED, INFIXED), by=READ)
        yield dotted._replace(where=has_several_kinds, kinds={**dict.fromkeys(MERGED.kinds, ""), "": LEAVES})
        yield dotted
    yield Rule(families=(family,), prefixes=_UNNAMED if family in _CONVERTING else OTHER_PREFIXES)
    if other := OTHER_LAYOUTS.get(family):
        yield Rule(families=(family,), layouts=(other,), by=READ)


def _generates(family: str) -> Iterator[Rule]:
    """Yield the rules of a LoRA network.

    A file that is converted gets its rank as alpha if it has none.
    """
    own = NETWORK._replace(families=(family,), layouts=("original",), finds=in_blocks_of(family))
    yield Rule(families=(family,), where=_renames_some, prefixes=(PREFIX, *_DOTTED), kinds={"": ""})
    yield own._replace(dialects=("peft",), kinds={"": LEAVES}, exceptions=None)
    yield own
    yield own._replace(prefixes=_DOTTED, exceptions=_is_odd_in_network)
    # Renamed, they are no layers of a model in the original layout.
    yield Rule(families=(family,), prefixes=_DOTTED, layouts=("diffusers",))
    yield Rule(families=(family,), prefixes=_UNNAMED)


@OfKind
def _is_odd_in_network(given: Given) -> str | None:
    """Return "" for kernels, as their effect is unknown: the blocks have none."""
    return "" if any(len(shape) > 2 for shape in given.contribution.shapes.values()) else None


def _frames(family: str) -> Iterator[Rule]:
    """Yield the rules of FramePack's script.

    It renames LoRA's factors in dotted names, and sets alpha to the rank.
    """
    yield from (rule for rule in _merges(family) if rule.prefixes != OTHER_PREFIXES)
    dotted = MERGED._replace(families=(family,), prefixes=_DOTTED, layouts=(LAYOUTS[family],), exceptions=None)
    yield dotted._replace(dialects=("peft",), kinds={"lora": COMPUTES, "": LEAVES}, scale=one)
    yield Rule(families=(family,), prefixes=OTHER_PREFIXES)


def _fails_on_a_key_of_frames(adapter: Adapter) -> str | None:
    """Return the error for a key without a dot in a dotted file with `lora_A`."""
    keys = adapter.checkpoint.tensors
    is_dotted = any(key.startswith(_DOTTED) for key in keys) and any("lora_A" in key for key in keys)
    return _NOT_SPLIT if is_dotted and not next(iter(keys)).startswith(PREFIX) and _has_no_dot(keys) else None


def _has_no_dot(keys: Iterable[str]) -> bool:
    return any("." not in key for key in keys)


def _builds_kandinsky(family: str) -> Iterator[Rule]:
    """Yield the rules of Kandinsky 5's network; its script converts nothing."""
    own = NETWORK._replace(families=(family,), layouts=("original",), finds=_in_blocks_of_kandinsky)
    yield own._replace(dialects=("peft",), kinds={"": LEAVES}, exceptions=None)
    yield own
    yield Rule(families=(family,), prefixes=OTHER_PREFIXES)


_is_in_block_of_kandinsky = OfKind(
    lambda given: given.module.name.body.startswith(("visual_transformer_blocks_", "text_transformer_blocks_"))
)


def _in_blocks_of_kandinsky(adapter: Adapter) -> Finder:
    return _is_in_block_of_kandinsky


_UNUSED = Strangers(WARNS, "Warning: not all LoRA keys are used")
_PLAIN = tuple(family for family in _MERGED if family not in _CONVERTING)
PROGRAM = Program(
    name="blissful",
    title="blissful-tuner",
    version="2026-04-15",
    ran="2026-12-01",
    loaders=(
        Loader(
            families=_CONVERTING,
            rules=RulesByFamily(_CONVERTING, _merges),
            strangers=_UNUSED,
            refuses=_fails_on_a_key,
        ),
        Loader(families=_PLAIN, rules=RulesByFamily(_PLAIN, _merges), strangers=_UNUSED),
        Loader(
            families=("framepack",),
            rules=RulesByFamily(("framepack",), _frames),
            strangers=_UNUSED,
            refuses=_fails_on_a_key_of_frames,
        ),
        Loader(
            families=_OF_NETWORK,
            rules=RulesByFamily(_OF_NETWORK, _generates),
            strangers=Strangers(SILENT),
            refuses=_fails_on_a_key,
        ),
        Loader(
            families=("kandinsky5",),
            rules=RulesByFamily(("kandinsky5",), _builds_kandinsky),
            strangers=Strangers(SILENT),
        ),
    ),
    schemes={"": "musubi"},
)
