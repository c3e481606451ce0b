"""ComfyUI-WanVideoWrapper: ComfyUI's names of Wan, and names that it renames.

Names of the original repository count flat behind `lora_unet_`, and dotted behind `diffusion_model.`, `transformer.`,
`base_model.model.` and `pipe.dit.`. Without a prefix they count from `blocks.` on. It renames those behind
`lora_unet__` too, but only with the suffixes of LoRA. It takes both attentions of diffusers' names for the
cross-attention, and knows no feed-forward layer of these names. A file of PEFT with a layer that it looks for counts as
RS-LoRA with its rank as alpha.

By default it merges, and ComfyUI computes the weights. Unmerged, it multiplies the first two tensors of each change:
DoRA is lost, and every other algorithm makes it fail or becomes something else.

Sources: `nodes_model_loading.py`, `utils.py` and `custom_linear.py` of ComfyUI-WanVideoWrapper, run with ComfyUI's
`comfy/lora.py` and `comfy/model_patcher.py` on a small model.
"""

from collections.abc import Iterator

from lora_inspect.programs.known.comfyui import MAGNITUDES
from lora_inspect.programs.record import (
    COMPUTES,
    INFIXED,
    LEAVES,
    MISREADS,
    READ,
    SILENT,
    SLICED,
    WARNS,
    Given,
    Loader,
    LoadFailure,
    OfKind,
    Program,
    Rule,
    Strangers,
)
from lora_inspect.reading.adapter import Adapter

# The prefixes before dotted names, those that were run with diffusers' names, and the others.
_DOTTED = ("diffusion_model.", "transformer.", "base_model.model.")
_RUN, _UNRUN = ("transformer.",), ("diffusion_model.", "base_model.model.")
_MODEL = ("original",)
_LEAVES = ("to_q", "to_k", "to_v", "to_out.0")
_FIRST, _SECOND = (tuple(f"blocks.{{i}}.{one}.{leaf}" for leaf in _LEAVES) for one in ("attn1", "attn2"))
_ATTENTIONS = tuple(f"blocks.{{i}}.{one}.{leaf}" for one in ("self_attn", "cross_attn") for leaf in "qkvo")
_FEED_FORWARD = ("blocks.{i}.ffn.0", "blocks.{i}.ffn.2")
_OF_LYCORIS = ("blocks.{i}.ffn.net.0.proj", "blocks.{i}.ffn.net.2")
_OF_FUN = (*_ATTENTIONS, *_FEED_FORWARD)
# A key by which it takes a file of PEFT for RS-LoRA, and one by which it takes a file for a control adapter.
_OF_PEFT = "base_model.model.blocks.0.cross_attn.k.lora_A.weight"
_OF_CONTROL = "patch_embedding"


def _is_of_peft(adapter: Adapter) -> bool:
    return _OF_PEFT in adapter.checkpoint.tensors


def _is_of_control(adapter: Adapter) -> bool:
    """Return True if the file changes the first layer, as its control adapters do."""
    return any(module.name.body == _OF_CONTROL for module in adapter.modules.values())


@OfKind
def _as_root(given: Given) -> float | None:
    """Return the alpha that it gives RS-LoRA over the rank.

    That alpha is the rank times its root, rounded down.
    """
    rank = given.contribution.rank
    return None if rank is None else rank * rank // rank**0.5 / rank


def _of_first(given: Given) -> str | Strangers:
    """Return the treatment of a first attention in diffusers' names.

    Next to the second's same layer it is lost; without it, it changes the second.
    """
    twins = (info.name.replace(".attn1.", ".attn2.") for info in given.contribution.factors.values())
    return Strangers(SILENT) if any(twin in given.adapter.checkpoint.tensors for twin in twins) else MISREADS


@OfKind
def _is_odd(given: Given) -> str | None:
    """Return "" for cores, kernels and limited rotations, as their effect is unknown."""
    shapes = given.contribution.shapes
    is_limited = given.contribution.algorithm.name == "oft" and bool(given.contribution.alpha)
    odd = any(role in shapes for role in ("mid", "t1", "t2")) or any(len(shape) > 3 for shape in shapes.values())
    return "" if odd or is_limited else None


_NOT_LINEAR = "AttributeError: 'NoneType' object has no attribute 'to'"
_NOT_ONE_RANK = "RuntimeError: mat1 and mat2 shapes cannot be multiplied"


@OfKind
def _unmerged(given: Given) -> str | LoadFailure | Strangers | None:
    """Return the treatment if it multiplies the first two tensors.

    Biases are ignored, and most other algorithms fail.
    """
    algorithm, shapes = given.contribution.algorithm.name, given.contribution.shapes
    if algorithm == "full_bias":
        return Strangers(SILENT)
    if algorithm == "lokr":
        return LoadFailure(_NOT_ONE_RANK if {"w1", "w2"} <= shapes.keys() else _NOT_LINEAR)
    if algorithm == "oft":
        return LoadFailure(_NOT_LINEAR)
    if algorithm == "loha":
        return MISREADS
    return _is_odd(given)


_COMPUTED = dict.fromkeys(("lora", "loha", "lokr", "oft", "full", "full_bias"), COMPUTES)
_ASKED = {**_COMPUTED, "lora_bias": LEAVES}
_MERGED = Rule(families=("wan",), layouts=_MODEL, kinds=_ASKED, magnitudes=MAGNITUDES, exceptions=_is_odd)
_UNMERGED = _MERGED._replace(magnitudes=dict.fromkeys(MAGNITUDES, LEAVES), exceptions=_unmerged)


def _rules(loaded: Rule) -> Iterator[Rule]:
    """Yield the rules of names, with weights computed as `loaded` says."""
    yield Rule(families=("wan",), where=_is_of_control, kinds={"": ""})
    peft = loaded._replace(prefixes=("base_model.model.",), where=_is_of_peft, dialects=("peft",), scale=_as_root)
    yield peft
    yield loaded._replace(prefixes=(*_DOTTED, "lora_unet_"))
    yield loaded._replace(prefixes=_DOTTED, dialects=(INFIXED,), kinds={"lora": COMPUTES})
    in_blocks = loaded._replace(prefixes=("",), paths=_OF_FUN)
    yield in_blocks
    yield in_blocks._replace(dialects=(INFIXED,), kinds={"lora": COMPUTES})
    # LyCORIS's names of the original layers, of which it renames those of the attentions.
    yield loaded._replace(prefixes=("lycoris_",), paths=_ATTENTIONS)
    yield Rule(families=("wan",), prefixes=("lycoris_",), paths=_FEED_FORWARD)
    yield loaded._replace(
        prefixes=("lora_unet__",),
        paths=_OF_FUN,
        kinds={"lora": COMPUTES, **dict.fromkeys(("loha", "lokr", "oft", "full", "full_bias", "lora_bias"), LEAVES)},
        magnitudes=dict.fromkeys(MAGNITUDES, LEAVES),
    )
    yield from _of_diffusers(loaded, _RUN)
    yield from (rule._replace(by=READ) for rule in _of_diffusers(loaded, _UNRUN))
    yield from _of_diffusers(loaded, ("",))
    yield loaded._replace(layouts=("diffusers",), prefixes=("lycoris_",), paths=_OF_LYCORIS)
    yield Rule(families=("wan",), layouts=("diffusers",), prefixes=("lycoris_",), paths=(*_FIRST, *_SECOND))
    yield Rule(families=("wan",), layouts=("diffusers",), prefixes=("lora_unet_", "lora_transformer_"), by=READ)
    yield Rule(families=("wan",), dialects=(SLICED,), kinds={"": ""})


def _of_diffusers(loaded: Rule, prefixes: tuple[str, ...]) -> Iterator[Rule]:
    """Yield the rules of diffusers' names, with the second attention for both.

    The first changes the second if it is alone, and is lost next to it.
    """
    own = loaded._replace(prefixes=prefixes, layouts=("diffusers",))
    yield own._replace(paths=_SECOND)
    yield own._replace(paths=_FIRST, exceptions=_of_first)
    yield Rule(families=("wan",), prefixes=prefixes, layouts=("diffusers",), paths=_OF_LYCORIS)


_NOT_LOADED = Strangers(WARNS, "lora key not loaded: KEY")
_MERGES = Program(
    name="wanvideo",
    title="WanVideoWrapper",
    version="2026-02-01",
    ran="2026-12-01",
    loaders=(Loader(families=("wan",), rules=tuple(_rules(_MERGED)), strangers=_NOT_LOADED),),
    schemes={"": "comfyui"},
)
_KEEPS = _MERGES._replace(
    name="wanvideo-unmerged",
    title="WanVideoWrapper (unmerged)",
    loaders=(
        Loader(
            families=("wan",),
            rules=tuple(_rules(_UNMERGED)),
            strangers=_NOT_LOADED,
            leaves=Strangers(SILENT),
        ),
    ),
)
PROGRAMS = (_MERGES, _KEEPS)
