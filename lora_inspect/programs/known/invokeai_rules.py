"""The patches of InvokeAI: the kinds of a layer, which all its conversions share.

A conversion finds the layers of a file. Those must have one of its kinds of patches, and keys with the right ends.
"""

from collections.abc import Callable, Iterable

from lora_inspect.programs.record import (
    COMPUTES,
    FAILS,
    INFIXED,
    LEAVES,
    OTHER_AXIS,
    SILENT,
    WARNS,
    Given,
    Loader,
    OfKind,
    Refusal,
    Rule,
    RulesByFamily,
    Strangers,
    one,
)

UNSUPPORTED = "Unsupported lora format"
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
    says=UNSUPPORTED,
)
# PEFT's spelling of the factors is no kind of its own there.
FLAT_PEFT = Rule(dialects=("peft",), kinds={"": FAILS}, says=UNSUPPORTED)
DOTTED = FLAT._replace(
    dialects=("", "kohya", "lycoris"),
    kinds={"lora": COMPUTES, "full_bias": COMPUTES, "lora_bias": LEAVES, "": FAILS},
    exceptions=_dotted,
    magnitudes={**_MAGNITUDES, **dict.fromkeys(_CUT, FAILS)},
)
# Of factors in PEFT's spelling it takes these alone: no alpha, and no magnitude.
DOTTED_PEFT = DOTTED._replace(
    dialects=("peft", INFIXED),
    scale=one,
    magnitudes={**dict.fromkeys(_MAGNITUDES, LEAVES), **dict.fromkeys(_CUT, FAILS)},
)

PASSED = Strangers(SILENT)
# The roots of text encoders.
CLIP, T5 = "text_model.encoder.layers.{i}", "encoder.block.{i}.layer.{i}"


def loader_of(family: str, make: Callable[[], Iterable[Rule]], refuses: Refusal) -> Loader:
    """The loader of one family: `make` makes its rules, and `refuses` is asked of a file as a whole."""
    rules = RulesByFamily((family,), lambda asked: make())
    return Loader(rules, BESIDE, (family,), others=PASSED, refuses=refuses)
