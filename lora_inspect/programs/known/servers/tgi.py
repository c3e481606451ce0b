"""TGI: PEFT's folders with one `lora_alpha` and a rank for each kind of layer.

It goes through the kinds of layers in its own order and pads the factors of each to a rank of its kernels. It then
takes that rank for the next kind. A kind of layer counts if every block has one; all other keys are ignored.

Sources: `get_model_with_lora_adapters` in `models/__init__.py`, `utils/adapter.py` and `adapters/lora.py` of TGI. They
were run on a stand-in of its Llama as on one GPU, with the functions that pad from its backend for Gaudi. The product
of its kernels was read.
"""

import os
import re
from collections import defaultdict
from collections.abc import Mapping
from math import sqrt
from typing import Any

from lora_inspect.caching import remembering_names
from lora_inspect.files.discovery import ADAPTER_CONFIG
from lora_inspect.files.strict_json import json_number
from lora_inspect.programs.known.peft import leaf_of
from lora_inspect.programs.record import (
    COMPUTES,
    LEAVES,
    SILENT,
    WARNS,
    Finder,
    Given,
    Loader,
    OfKindInFile,
    Program,
    Rule,
    ScaleOfFile,
    ScaleRule,
    Strangers,
)
from lora_inspect.reading.adapter import Adapter

# The kinds of layers in the order in which it goes through them.
_ORDER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "qkv_proj")
_OF_BLOCK = re.compile(r"model\.layers\.(\d+)\.(?:self_attn\.(?:q|k|v|o|qkv)_proj|mlp\.(?:gate|up|down)_proj)")
_PREFIX = "base_model.model."
# Its kernels take ranks from the first on, and multiples of the second. Nobody tried more than the third.
_LEAST, _STEP, _MOST = 8, 16, 128
# PEFT's defaults for fields that a config leaves out.
_DEFAULT = 8
# Parts of names of files that it passes over.
_NO_WEIGHTS = ("arguments", "args", "training")
_UNUSED = Strangers(WARNS, "unused adapter weights")


@remembering_names
def _block_of(path: str) -> str:
    """Return the number of a layer's block, or "" if TGI does not look for it."""
    found = _OF_BLOCK.fullmatch(path)
    return found[1] if found else ""


def _padded(rank: int) -> int:
    return _LEAST if rank <= _LEAST else -(-rank // _STEP) * _STEP


def _ranks(adapter: Adapter) -> dict[str, dict[str, int]]:
    """Return the ranks by block, for kinds of layers that every block has."""
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for contribution in adapter.contributions:
        path = contribution.module.body
        if contribution.rank and _block_of(path) and contribution.module.key.startswith(_PREFIX):
            found[leaf_of(path)][_block_of(path)] = contribution.rank
    blocks = {str(number) for number in range(1 + max((int(at) for own in found.values() for at in own), default=0))}
    return {leaf: found[leaf] for leaf in _ORDER if leaf in found and found[leaf].keys() == blocks}


def _refused(adapter: Adapter) -> str | None:
    """Return the error that loading raises."""
    config = adapter.checkpoint.config
    if config is None:
        return f"ValueError: Can't find '{ADAPTER_CONFIG}'"
    if config.get("peft_type") not in ("LORA", None):
        return "AttributeError: the config has no fields of LoRA"
    names = [os.path.basename(file) for file in adapter.checkpoint.files]
    if any(part in name for name in names for part in _NO_WEIGHTS):
        return "FileNotFoundError: No adapter weights found"
    for leaf, ranks in _ranks(adapter).items():
        if len(set(map(_padded, ranks.values()))) > 1:
            return f"RuntimeError: stack expects each tensor to be equal size, as {leaf} has several ranks"
    return None


def _never(adapter: Adapter) -> str | None:
    """Return the problem that no conversion solves."""
    ranks = _ranks(adapter)
    for module in adapter.modules.values():
        path = module.name.body
        if not _block_of(path):
            return f"ignores {path}"
        if leaf_of(path) not in ranks:
            return f"ignores {path}, as not every block has a {leaf_of(path)}"
    return None


def _finds(adapter: Adapter) -> Finder:
    """Return a finder of the layers of complete kinds.

    It depends on the model if the config may exclude blocks at its end.
    """
    config, whole = adapter.checkpoint.config or {}, _ranks(adapter)
    is_open = _chooses_blocks(config)

    def finds(given: Given) -> bool | None:
        path, rank = given.module.name.body, given.contribution.rank
        if not _block_of(path) or leaf_of(path) not in whole:
            return False
        return None if is_open or (rank or 0) > _MOST else True

    return finds


def _chooses_blocks(config: Mapping[str, Any]) -> bool:
    """Return True if a config may exclude whole blocks."""
    targets, excluded = config.get("target_modules"), config.get("exclude_modules")
    names = [*(excluded if isinstance(excluded, list) else [excluded]), targets if isinstance(targets, str) else None]
    return config.get("layers_to_transform") is not None or any(
        isinstance(name, str) and ("layers" in name or any(map(str.isdigit, name))) for name in names
    )


def _scales(adapter: Adapter) -> ScaleRule:
    """Return the scale of each kind of layer: `lora_alpha` over the rank or its root.

    The rank is the one that the kind before left in the config.
    """
    config = adapter.checkpoint.config or {}
    alpha, rank = (json_number(config.get(field, _DEFAULT)) for field in ("lora_alpha", "r"))
    scales: dict[str, float] = {}
    for leaf, ranks in _ranks(adapter).items():
        if alpha is None or not rank:
            break
        scales[leaf] = alpha / (sqrt(rank) if config.get("use_rslora") else rank)
        rank = _padded(ranks["0"])
    return OfKindInFile(lambda given: scales.get(leaf_of(given.module.name.body)))


_MAGNITUDES = dict.fromkeys((".lora_magnitude_vector output", ".lora_magnitude_vector.weight output"), LEAVES)
_FILE = Rule(
    prefixes=(_PREFIX,),
    layouts=("hf",),
    dialects=("peft",),
    kinds={"lora": COMPUTES, "": LEAVES},
    finds=_finds,
    unfound=_UNUSED,
    scale=ScaleOfFile(_scales),
    magnitudes=_MAGNITUDES,
)

PROGRAM = Program(
    name="tgi",
    title="TGI",
    version="2026-01-08",
    ran="2026-12-01",
    sets_multiplier=False,
    loaders=(
        # Names are looked up in a dictionary.
        Loader(
            families=("llm",),
            rules=(_FILE, Rule()),
            strangers=Strangers(SILENT),
            refuses=_refused,
            never=_never,
            ranks=(_LEAST, *range(_STEP, _MOST + 1, _STEP)),
        ),
    ),
    schemes={"": "peft"},
    uniform=True,
)
