"""What the network modules of A1111's web UI do with a layer's tensors, and those of SD.Next, which come of them.

A layer is given to the first kind of network that finds all of its tensors; what else the layer has is passed over.
Sources: `extensions-builtin/Lora/network*.py` of A1111 and `modules/lora/network*.py` of SD.Next.
"""

from lora_inspect.programs.record import COMPUTES, FAILS, LEAVES, Given, OfKind, ScaleOfFile, ScaleRule, alpha_over_rank
from lora_inspect.reading.adapter import Adapter

# In the order in which the kinds of networks are asked for a layer.
_ORDER = ("lora", "loha", "lycoris_ia3", "oft", "lycoris_boft", "lokr", "full", "norm", "old_glora", "glora")
# Of GLoRA it has the products of LyCORIS before 3, and fails at the layers of others, which it counts.
_GLORA = ("old_glora", "glora")
# The kinds without which a change is nobody's, and those that have no use for the other.
_OF_BIAS = {"full_bias": "full", "norm_bias": "norm"}
KINDS = {
    **dict.fromkeys((*_ORDER, *_OF_BIAS), COMPUTES),
    "lora_bias": LEAVES,
    # Their factors are spelled as those of others.
    **dict.fromkeys(("adalora", "kasa", "bdlora", "lokr_rows"), ""),
    # None of them takes a layer of any other kind.
    "": FAILS,
}
_MATRIX = 2


def exceptions(given: Given, takes_bias: bool = False, alone: str = FAILS) -> str | None:
    """What becomes of a contribution for what stands beside it and for its shapes.

    `takes_bias` says that a difference of the bias is taken beside LoRA, `alone` what becomes of what no kind takes.
    """
    name, module = given.contribution.algorithm.name, given.module
    beside = {one.algorithm.name for one in module.contributions}
    if "norm" in beside and "norm_bias" not in beside:
        beside.discard("norm")
    if module.alpha is None:
        beside.difference_update(_GLORA)
    first = next((kind for kind in _ORDER if kind in beside), None)
    if first is None:
        return alone
    if name in _OF_BIAS:
        return None if first == _OF_BIAS[name] or (takes_bias and (name, first) == ("full_bias", "lora")) else LEAVES
    if name != first:
        return LEAVES
    if name == "glora":
        return LEAVES
    is_of_conv = any(len(info.shape) > _MATRIX for info in given.contribution.factors.values())
    return "" if name == "old_glora" and is_of_conv else None


def scale(of_glora: ScaleRule) -> ScaleOfFile:
    """The scale of these networks: a `.scale` tensor instead of alpha/rank, and for GLoRA that of `of_glora`."""

    def without_tensors(given: Given) -> float | None:
        return (of_glora if given.contribution.algorithm.name in _GLORA else alpha_over_rank)(given)

    def found(given: Given) -> float | None:
        name = f"{given.module.name.key}.scale"
        checkpoint = given.adapter.checkpoint
        if name in checkpoint.tensors and given.contribution.has_scale:
            number = checkpoint.numbers([name])[name]
            return None if number is None else float(number)
        return without_tensors(given)

    def of_file(adapter: Adapter) -> ScaleRule:
        has_tensors = any(key.endswith(".scale") for key in adapter.checkpoint.tensors)
        return found if has_tensors else OfKind(without_tensors)

    return ScaleOfFile(of_file)
