"""The `adapter_config.json` with which mlx-lm builds the layers that hold the tensors of an adapter.

Source: `load_adapters` of mlx-lm 0.32.2, which reads `fine_tune_type`, `num_layers` and of `lora_parameters` rank,
scale, dropout and keys: those are the names of layers below each of the last blocks, and full ones of all others.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

from lora_inspect.files.strict_json import json_number
from lora_inspect.reading.mlx_config import DORA, LORA, PARAMETERS, TYPE, is_mlx_config

# Of which blocks a module's path goes on.
_BLOCK = re.compile(r".*?\.layers\.[0-9]+\.")
# Every block: mlx-lm adapts those that the file has nothing of as well, which changes nothing of them.
_ALL = -1
# What earlier versions called what is said otherwise now, and an alpha that none reads.
_STALE = ("lora_layers", "use_dora")


def mlx_config(
    config: Mapping[str, Any] | None, paths: Collection[str], rank: int, scale: float, use_dora: bool
) -> dict[str, Any]:
    """The config that is true of modules at the dotted `paths`, all of one rank and scale.

    What it does not decide of is as in `config`, where that is one of mlx-lm.
    """
    own = dict(config) if config is not None and is_mlx_config(config) else {}
    said = own.get(PARAMETERS)
    parameters = {name: value for name, value in said.items() if name != "alpha"} if isinstance(said, dict) else {}
    dropout = json_number(parameters.get("dropout"))
    return {
        **{name: value for name, value in own.items() if name not in _STALE},
        TYPE: DORA if use_dora else LORA,
        "num_layers": _layers(own),
        PARAMETERS: {
            **parameters,
            "rank": rank,
            "scale": scale,
            "dropout": 0.0 if dropout is None else dropout,
            "keys": sorted({_BLOCK.sub("", path, count=1) for path in paths}),
        },
    }


def _layers(config: Mapping[str, Any]) -> int:
    """How many of the last blocks have layers of the adapter."""
    for name in ("num_layers", "lora_layers"):
        layers = config.get(name)
        if isinstance(layers, int) and not isinstance(layers, bool):
            return layers
    return _ALL
