"""SGLang: PEFT's folders with one rank and one scale, `lora_alpha` over `r`.

It fuses the factors of query, key and value, and of gate and up, so some modules need others next to them.

Sources: `srt/lora/lora_config.py`, `lora.py`, `utils.py`, `mem_pool.py` and `lora_manager.py` of SGLang. The first
four ran, up to the buffers of a Llama's layers; the manager was read.
"""

import re
from collections import defaultdict
from collections.abc import Mapping

from lora_inspect.files.strict_json import json_number
from lora_inspect.programs.known.peft import OF_BLOCKS, config_of, is_of_blocks, leaf_of, names_in, replaced_weight
from lora_inspect.programs.record import (
    COMPUTES,
    FAILS,
    INFIXED,
    LEAVES,
    READ,
    SILENT,
    Finder,
    Given,
    Loader,
    OfKindInFile,
    Program,
    Rule,
    Strangers,
)
from lora_inspect.reading.adapter import Adapter

_REQUIRED = ("target_modules", "r", "lora_alpha", "peft_type")
_FUSED = {"q_proj": "qkv_proj", "k_proj": "qkv_proj", "v_proj": "qkv_proj"}
_FUSED |= {"gate_proj": "gate_up_proj", "up_proj": "gate_up_proj"}
_EMBEDDINGS = ("embed_tokens", "lm_head")
# The part of a fused layer without which the others are not found.
_NEEDED = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
_SHORTHANDS = ("all", "all-linear")
# Every tensor of a block is taken for a factor, and needs a place in the buffers.
_OF_BLOCK = re.compile(r"layers\.\d+\.")
# Tensors of added tokens, of which it serves none.
_ADDED = ("input_embeddings", "output_embeddings")


def _refused(adapter: Adapter) -> str | None:
    """Return the error that loading or the first request raises."""
    config = config_of(adapter)
    if isinstance(config, str):
        return config
    if missing := next((name for name in _REQUIRED if name not in config), None):
        return f"KeyError: {missing!r}"
    if config.get("use_dora"):
        return "ValueError: LoRA serving currently doesn't support DoRA adapters"
    targets = config["target_modules"]
    if isinstance(targets, str) and targets not in _SHORTHANDS:
        return "ValueError: Only 'all' or 'all-linear' can be used as the string for target module"
    rank = config["r"]
    for contribution in adapter.contributions:
        if contribution.rank is not None and contribution.rank != rank:
            return (
                f"LoRA buffer shape does not match weight shape: {contribution.module.key} has rank "
                f"{contribution.rank}, and r is {rank}"
            )
    for parent, leaves in _siblings(adapter).items():
        if "q_proj" in leaves and "v_proj" not in leaves:
            return f"KeyError: '{parent}.v_proj.lora_A.weight', as q_proj needs v_proj next to it"
    return _homeless(adapter, config)


def _homeless(adapter: Adapter, config: Mapping[str, object]) -> str | None:
    """Return the error for a tensor that has no place among the buffers of a block, or of added tokens."""
    keys = set(adapter.checkpoint.tensors)
    # A shorthand names no layer and means all of them.
    named = {_fused(leaf_of(name)) for name in names_in(config, "target_modules") or OF_BLOCKS}
    for key in sorted(keys):
        if _OF_BLOCK.search(key):
            if "q_proj" in key and key.replace("q_proj", "v_proj") not in keys:
                return f"KeyError, as {key} has none like it of v_proj"
            if not any(name in _fused_key(key, keys) for name in named):
                return f"ValueError: Cannot find target module name for {key}"
        elif any(part in key for part in _ADDED) and not any(part in key for part in _EMBEDDINGS):
            return f"AssertionError: lora_added_tokens_size is not the number of rows of {key}"
    return None


def _fused_key(key: str, keys: set[str]) -> str:
    """Return the name of a tensor after the fusion of its layer with others, where that has its first part."""
    for part, whole in _FUSED.items():
        if part in key and whole not in key and key.replace(part, _NEEDED.get(part, part)) in keys:
            return key.replace(part, whole)
    return key


def _never(adapter: Adapter) -> str | None:
    """Return the problem of parts of fused layers that lack others."""
    for parent, leaves in _siblings(adapter).items():
        if "q_proj" in leaves and "v_proj" not in leaves:
            return f"fails on {parent}.q_proj, which has no v_proj next to it"
        if lonely := next((leaf for leaf in sorted(leaves) if _NEEDED.get(leaf, leaf) not in leaves), None):
            return f"fails on {parent}.{lonely}, which has no {_NEEDED[lonely]} next to it"
    return None


def _siblings(adapter: Adapter) -> dict[str, set[str]]:
    """Return the adapted layers, by the module that holds them."""
    found: dict[str, set[str]] = defaultdict(set)
    for key in adapter.modules:
        parent, _, leaf = key.rpartition(".")
        found[parent].add(leaf)
    return found


def _finds(adapter: Adapter) -> Finder:
    """Return a finder of targeted layers with the parts that their fused layer needs."""
    found, siblings = config_of(adapter), _siblings(adapter)
    config = {} if isinstance(found, str) else found
    is_shorthand = isinstance(config.get("target_modules"), str)
    named = {_fused(leaf_of(name)) for name in names_in(config, "target_modules")}
    has_odd = any(map(_OF_BLOCK.search, adapter.unclaimed))

    def finds(given: Given) -> bool | None:
        path = given.module.name.body
        leaf, parent = leaf_of(path), given.module.name.key.rpartition(".")[0]
        if has_odd:
            return None
        if given.contribution.algorithm.name == "saved":
            return None if _OF_BLOCK.search(given.module.name.key) else True
        if not (is_of_blocks(path) or leaf in _EMBEDDINGS):
            return None
        is_named = is_shorthand or _fused(leaf) in named
        return is_named and _NEEDED.get(leaf, leaf) in siblings[parent]

    return finds


def _fused(leaf: str) -> str:
    return _FUSED.get(leaf, leaf)


@OfKindInFile
def _scale(given: Given) -> float | None:
    """Return `lora_alpha` over `r`; the rest of the config does not count."""
    config = config_of(given.adapter)
    if isinstance(config, str):
        return None
    alpha, rank = json_number(config.get("lora_alpha")), json_number(config.get("r"))
    return None if alpha is None or not rank else alpha / rank


_FILE = Rule(
    prefixes=("base_model.model.", ""),
    layouts=("hf", "hf-backbone"),
    dialects=("peft", INFIXED),
    magnitudes={".lora_magnitude_vector output": FAILS},
    kinds={"lora": COMPUTES, "lora_embedding": COMPUTES, "lora_bias": LEAVES, "lora_tokens": LEAVES, "": FAILS},
    finds=_finds,
    scale=_scale,
    by=READ,
)

PROGRAM = Program(
    name="sglang",
    title="SGLang",
    version="0.5.23",
    ran="2026-12-01",
    sets_multiplier=False,
    loaders=(
        Loader(
            families=("llm",),
            # Modules that are saved whole have no suffix of their own.
            rules=(_FILE, Rule(prefixes=_FILE.prefixes, kinds={"saved": LEAVES, "": FAILS}, finds=_finds, by=READ)),
            strangers=Strangers(SILENT),
            refuses=_refused,
            never=_never,
            unsure=replaced_weight,
        ),
    ),
    schemes={"": "peft"},
    uniform=True,
)
