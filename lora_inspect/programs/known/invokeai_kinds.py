"""What InvokeAI makes of a layer that it has found: which kinds of patches it knows, and how the keys have to end.

Sources: `invokeai/backend/patches/layers/` of InvokeAI, and `_group_by_layer` in its `lora_conversions`.
"""

from lora_inspect.programs.record import COMPUTES, FAILS, LEAVES, OTHER_AXIS, WARNS, Given, OfKind, Rule, Strangers, one

_UNSUPPORTED = "Unsupported lora format"
# What it says of names that it looks for in vain, and of what else a layer has.
NOT_FOUND = Strangers(WARNS, "Failed to find module for LoRA layer key")
BESIDE = Strangers(WARNS, "Unexpected keys found in LoRA/LyCORIS layer, model might work incorrectly!")
# In the order in which a layer is looked at: the first kind that it has counts.
_ORDER = ("lora", "loha", "lokr", "full", "lycoris_ia3", "norm")
_OF_BIAS = {"full_bias": "full", "norm_bias": "norm"}
_MAGNITUDES = {
    ".dora_scale output": OTHER_AXIS,
    ".dora_scale input": COMPUTES,
    **dict.fromkeys((".dora_layer.weight output", ".lora_magnitude_vector.weight output"), LEAVES),
    **dict.fromkeys((".lora_magnitude_vector output", ".magnitude output", ".m output", ".m input"), LEAVES),
}
# Of a name with dots it takes two words off a key that ends in none of those it knows, and so a part of the path.
_CUT = (".lora_magnitude_vector output", ".magnitude output")


@OfKind
def exceptions(given: Given) -> str | None:
    """What becomes of a contribution for what stands beside it."""
    name = given.contribution.algorithm.name
    beside = {one.algorithm.name for one in given.module.contributions}
    first = next((kind for kind in _ORDER if kind in beside), None)
    if first is None:
        return FAILS
    if name in _OF_BIAS:
        return None if first == _OF_BIAS[name] else LEAVES
    if name != first:
        return LEAVES
    magnitude = given.contribution.magnitude
    # A magnitude is only one of LoRA's two factors.
    return FAILS if magnitude and magnitude.spelling.suffix == ".dora_scale" and name != "lora" else None


@OfKind
def _dotted(given: Given) -> str | None:
    return FAILS if given.contribution.algorithm.name == "full_bias" else exceptions(given)


FLAT = Rule(
    kinds={**dict.fromkeys((*_ORDER, *_OF_BIAS), COMPUTES), "lora_bias": LEAVES, "": FAILS},
    exceptions=exceptions,
    magnitudes=_MAGNITUDES,
    says=_UNSUPPORTED,
)
# PEFT's spelling of the factors is no kind of its own there.
FLAT_PEFT = Rule(dialects=("peft",), kinds={"": FAILS}, says=_UNSUPPORTED)
DOTTED = FLAT._replace(
    dialects=("", "kohya", "lycoris"),
    kinds={"lora": COMPUTES, "full_bias": COMPUTES, "lora_bias": LEAVES, "": FAILS},
    exceptions=_dotted,
    magnitudes={**_MAGNITUDES, **dict.fromkeys(_CUT, FAILS)},
)
# Of factors in PEFT's spelling it takes these alone: no alpha, and no magnitude.
DOTTED_PEFT = DOTTED._replace(
    dialects=("peft",),
    scale=one,
    magnitudes={**dict.fromkeys(_MAGNITUDES, LEAVES), **dict.fromkeys(_CUT, FAILS)},
)
