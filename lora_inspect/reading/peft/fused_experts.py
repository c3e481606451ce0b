"""Mixtures of experts in PEFT with transformers 5: single experts and routers become parameters of their layer.

The classes of transformers 5 hold all experts of a layer in two parameters, and the router as one. PEFT fits an adapter
of single experts to them: factors of all experts of a layer become those of a parameter, which have one rank and one
scale, and `target_modules` with the names of experts and routers become `target_parameters`.

Source: `_convert_peft_config_moe` and `convert_peft_adapter_state_dict_for_transformers` of PEFT 0.21.2.
"""

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from lora_inspect.fast_namedtuple import NamedTuple

ROUTER = "gate.weight"
GATE_UP, DOWN = "gate_up_proj", "down_proj"
# The parameters of transformers 5 by the former names of layers, as Qwen's and as Mixtral's models have them.
OF_QWEN: Mapping[str, str] = MappingProxyType(
    {"gate": ROUTER, "gate_proj": GATE_UP, "up_proj": GATE_UP, "down_proj": DOWN}
)
OF_MIXTRAL: Mapping[str, str] = MappingProxyType({"gate": ROUTER, "w1": GATE_UP, "w3": GATE_UP, "w2": DOWN})
# The parents of routers; transformers 5 calls both `mlp`.
_BLOCKS = ("mlp", "block_sparse_moe")
_BLOCK = rf"(?:(?P<root>.*)\.)?(?:{'|'.join(_BLOCKS)})"
_EXPERT = re.compile(_BLOCK + r"\.experts\.(?P<number>[0-9]{1,9})\.(?P<leaf>[^.]+)")
_ROUTER = re.compile(_BLOCK + r"\.gate")
_SHARED = re.compile(_BLOCK + r"\.shared_experts?\.[^.]+")


class FusedLayer(NamedTuple):
    """A router, or a layer of a single expert: its `parameter` in transformers 5, by its path.

    `leaf` is the layer's own name, and `expert` the number of the expert, None of a router.
    """

    parameter: str
    leaf: str
    expert: int | None


def fused_layer(path: str) -> FusedLayer | None:
    """Return the parameter that holds the layer at the dotted `path`; None for a layer that stays one."""
    if found := _EXPERT.fullmatch(path):
        leaf = found["leaf"]
        if parameter := OF_QWEN.get(leaf) or OF_MIXTRAL.get(leaf):
            holder = _below(found["root"], f"{_BLOCKS[0]}.experts.{parameter}")
            return FusedLayer(holder, leaf, int(found["number"]))
    if found := _ROUTER.fullmatch(path):
        return FusedLayer(_below(found["root"], f"{_BLOCKS[0]}.{ROUTER}"), "gate", None)
    return None


def is_of_mixture(path: str) -> bool:
    """Return True if the layer at the dotted `path` shows a mixture of experts: a router, or a layer of an expert."""
    return fused_layer(path) is not None or is_of_shared_expert(path)


def is_of_shared_expert(path: str) -> bool:
    """Return True for a layer of an expert that every token passes."""
    return _SHARED.fullmatch(path) is not None


def has_fused_layers(paths: Iterable[str]) -> bool:
    """Return True if a layer at one of the dotted paths becomes a parameter."""
    return any(fused_layer(path) for path in paths)


def _below(root: str | None, path: str) -> str:
    return f"{root}.{path}" if root else path
