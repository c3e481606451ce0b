"""The patches of InvokeAI: the kinds of a layer, which all its conversions share.

A conversion finds the layers of a file. Those must have one of its kinds of patches, and keys with the right ends.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping

from lora_inspect.files.safetensors.header import TensorInfo
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
from lora_inspect.reading.adapter import Adapter

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
    """Return the treatment of a contribution by the module's other changes."""
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
_BUNDLE = "bundle_emb"
_NAMED = re.compile(r"\.lora_([AB])\.([^.]+)\.weight$")


def own_keys(adapter: Adapter) -> list[str]:
    """Return the keys of `tensors_of` without embeddings.

    InvokeAI takes these out of a file first.
    """
    return [key for key in tensors_of(adapter) if not key.startswith(_BUNDLE)]


def tensors_of(adapter: Adapter) -> Mapping[str, TensorInfo]:
    """Return the tensors by key, without the only name of an adapter by PEFT."""
    tensors = adapter.checkpoint.tensors
    if len({match[2] for match in map(_NAMED.search, tensors) if match}) != 1:
        return tensors
    return {_NAMED.sub(r".lora_\1.weight", key): info for key, info in tensors.items()}


# The roots of text encoders.
CLIP, T5 = "text_model.encoder.layers.{i}", "encoder.block.{i}.layer.{i}"


def loader_of(family: str, make: Callable[[], Iterable[Rule]], refuses: Refusal) -> Loader:
    """Return the loader of a family: `make` makes rules, `refuses` checks a file."""
    rules = RulesByFamily((family,), lambda asked: make())
    return Loader(rules, BESIDE, (family,), others=PASSED, refuses=refuses)


# By these ends of its keys it tells the kind of a layer, and takes a layer without any for an error.
_MARKS = frozenset(("dora_scale", "lora_up.weight", "hada_w1_a", "lokr_w1", "lokr_w1_a", "diff", "on_input", "w_norm"))
_OF_PEFT = "lora_A.weight"
# The ends that it takes off a dotted key; off all others it takes two words, however many there are.
ENDS = (".lora_A.weight", ".lora_B.weight", ".lora_down.weight", ".lora_up.weight", ".dora_scale", ".alpha")


def parted(keys: Iterable[str], ends: tuple[str, ...] = ENDS) -> Iterator[tuple[str, str]]:
    """Yield the layer of each key and the rest, as InvokeAI splits dotted names."""
    for key in keys:
        end = next((end for end in ends if key.endswith(end)), None)
        if end:
            yield key[: -len(end)], end[1:]
        else:
            layer, *rest = key.rsplit(".", 2)
            yield layer, ".".join(rest)


def without_kind(parts: Iterable[tuple[str, str]], takes_peft: bool) -> bool:
    """Return True if the `parted` keys have a layer of no known kind."""
    layers: dict[str, bool] = {}
    for layer, end in parts:
        layers[layer] = layers.get(layer, False) or end in _MARKS or (takes_peft and end == _OF_PEFT)
    return not all(layers.values())


def flat_without_kind(keys: Iterable[str]) -> bool:
    """Return the same for underscored names, with layers that end at the first dot."""
    cut = (key.partition(".") for key in keys)
    return without_kind(((layer, end) for layer, _, end in cut), takes_peft=False)
