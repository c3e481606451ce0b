"""Adapters of single experts in PEFT with transformers 5, which fuses them into parameters.

PEFT ran on `qwen3_moe`, `qwen3_next`, `mixtral`, `minimax_m2`, `olmoe` and `glm4_moe`, and on `qwen2_moe`, of which it
fuses the tensors and not the config. It knows more types by the same names; these were not run. Names alone do not tell
`qwen2_moe` from `qwen3_next`, the types with a `shared_expert`.

- All routed experts and routers get the `r` of the config: a key of `rank_pattern` counts only if it matches the
  parameter, such as `mlp.experts.down_proj`. Gate and up are one parameter of twice the rank and twice the alpha.
- RS-LoRA therefore multiplies gate and up by √2.
- A layer that lacks one of the experts is an error, and so is a config without one of gate and up. Without down, gate
  and up are lost.
- `target_modules` that end in the name of an expert's layer choose no other layer any more: shared experts and dense
  layers of these names are lost.

Source: `_convert_peft_config_moe`, `convert_peft_adapter_state_dict_for_transformers` and `ParamWrapper` of PEFT.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from lora_inspect.files.strict_json import json_count, json_number
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.model.contribution import Contribution
from lora_inspect.reading.peft.fused_experts import (
    DOWN,
    GATE_UP,
    OF_MIXTRAL,
    OF_QWEN,
    FusedLayer,
    fused_layer,
    is_of_mixture,
)
from lora_inspect.reading.peft.peft_config import LORA_TYPE, ModuleSettings
from lora_inspect.reading.peft.regex import Steps

# The settings of a config with which PEFT adapts no parameter, in the order in which it looks, and its words for them.
_REFUSED_SETTINGS = {
    "lora_dropout": "work with lora_dropout != 0",
    "fan_in_fan_out": "work with fan_in_fan_out",
    "lora_bias": "work with lora_bias=True",
    "use_dora": "work with use_dora=True",
    "velora_config": "work when `velora_config` is set",
    "kasa_config": "work when `kasa_config` is set",
}
# The name of the shared expert of qwen2_moe and qwen3_next, which PEFT treats differently.
_AMBIGUOUS = ".shared_expert."


class FusedExperts:
    """The layers of an adapter that PEFT puts into parameters, by a `config` of LoRA.

    It is false without such a layer.
    """

    def __init__(self, adapter: Adapter, config: Mapping[str, Any]) -> None:
        paths = {one.config_path: one for one in adapter.contributions if one.algorithm.name == "lora"}
        is_lora = config.get("peft_type", LORA_TYPE) == LORA_TYPE
        self._config, self._paths = config, tuple(paths)
        self._is_mixture = is_lora and any(map(is_of_mixture, paths))
        self._layers: dict[str, FusedLayer] = {}
        if self._is_mixture:
            self._layers = {path: layer for path in paths if (layer := fused_layer(path))}
        self._contributions = {path: paths[path] for path in self._layers}
        is_mixtral = any(layer.leaf in OF_MIXTRAL and layer.leaf not in OF_QWEN for layer in self._layers.values())
        self._parameters = OF_MIXTRAL if is_mixtral else OF_QWEN
        self._is_ambiguous = any(_AMBIGUOUS in f".{path}" for path in paths)
        targets = config.get("target_modules")
        self._targets = targets if isinstance(targets, list) else None
        # An expression is matched with the layers of the model, which the file does not show.
        self._is_open = self._is_mixture and isinstance(targets, str)

    @cached_property
    def _leaves(self) -> frozenset[str]:
        """The names of experts' layers and routers that `target_modules` end in."""
        targets = [name for name in self._targets or () if isinstance(name, str)]
        return frozenset(name.rpartition(".")[2] for name in targets) & self._parameters.keys()

    @cached_property
    def _fused_leaves(self) -> list[str]:
        return [leaf for leaf, parameter in self._parameters.items() if parameter == GATE_UP]

    @cached_property
    def _settings(self) -> ModuleSettings:
        """The config's ranks and alphas of parameters, as PEFT completes them."""
        completed = dict(self._config)
        for field, number in (
            ("rank_pattern", json_count(self._config.get("r"))),
            ("alpha_pattern", json_number(self._config.get("lora_alpha", 8))),
        ):
            own = self._config.get(field)
            doubled = {} if number is None else {rf".*\.{GATE_UP}": len(self._fused_leaves) * number}
            # Of several matching keys the first counts.
            completed[field] = {**(own if isinstance(own, dict) else {}), **doubled}
        return ModuleSettings(completed, Steps())

    def __bool__(self) -> bool:
        return bool(self._layers)

    def has(self, path: str) -> bool:
        """Return True if PEFT makes the layer at the dotted path a parameter."""
        return path in self._layers and not self._is_open

    def covers(self, path: str) -> bool:
        """Return True if `finds` decides on the layer at the dotted path: a router, or a layer named as an expert's."""
        return self._is_mixture and path.rpartition(".")[2] in self._parameters

    def finds(self, path: str) -> bool | None:
        """Return whether PEFT loads a layer that it `covers`; None if it depends on the model."""
        leaf = path.rpartition(".")[2]
        if self._is_open or self._is_ambiguous:
            return None
        layer = self._layers.get(path)
        if layer is None or leaf not in self._leaves:
            return False
        needs_down = self._parameters[leaf] == GATE_UP
        return not needs_down or any(self._parameters[one] == DOWN for one in self._leaves)

    def scale(self, path: str) -> float | None:
        """Return the scale of the parameter that holds the layer; None if the config has no valid one."""
        parameter = self._layers[path].parameter
        rank, alpha = self._settings.rank(parameter), self._settings.alpha(parameter)
        if not rank or alpha is None:
            return None
        return alpha / (math.sqrt(rank) if self._config.get("use_rslora") else rank)

    def refused(self) -> str | None:
        """Return the error of loading them."""
        if not self._layers or self._is_open:
            return None
        return next(self._errors(), None)

    def obstacle(self) -> str | None:
        """Return the reason, as the end of a sentence on PEFT, why no config makes it load all layers."""
        if not self._is_mixture or self._is_ambiguous:
            return None
        for parameter, experts in self._experts_by_parameter().items():
            if len(experts) < self._expert_count:
                return f"needs factors of all experts of a layer, and {parameter} has those of {len(experts)} only"
        leaves = {layer.leaf for layer in self._layers.values()}
        expected = [leaf for leaf, parameter in self._parameters.items() if parameter in (GATE_UP, DOWN)]
        missing = [leaf for leaf in expected if leaf not in leaves]
        if leaves & set(self._fused_leaves) and missing:
            return f"needs factors of {', '.join(expected)} of all experts, and the file has none of {missing[0]}"
        lost = next((path for path in self._paths if self.covers(path) and path not in self._layers), None)
        return f"loads no {lost} of a mixture of experts with transformers 5" if lost else None

    @property
    def _expert_count(self) -> int:
        return 1 + max((layer.expert for layer in self._layers.values() if layer.expert is not None), default=-1)

    def _experts_by_parameter(self) -> dict[str, set[int]]:
        experts: dict[str, set[int]] = defaultdict(set)
        for layer in self._layers.values():
            if layer.expert is not None:
                experts[layer.parameter].add(layer.expert)
        return experts

    def _errors(self) -> Iterator[str]:
        chosen = [leaf for leaf in self._fused_leaves if leaf in self._leaves]
        if missing := [leaf for leaf in self._fused_leaves if leaf not in self._leaves and chosen]:
            yield (
                f"ValueError: Cannot convert PEFT target(s) {chosen[0]} without also targeting {', '.join(missing)} "
                f"because they are fused into {GATE_UP}"
            )
        if self._leaves:
            for field, words in _REFUSED_SETTINGS.items():
                if self._config.get(field):
                    yield f"ValueError: lora.ParamWrapper does not {words}, and experts and routers are parameters"
        yield from self._mismatches()

    def _mismatches(self) -> Iterator[str]:
        """Yield the parameters whose factors are not of the size that the config gives them."""
        members: dict[str, dict[str, Contribution]] = defaultdict(dict)
        for path, layer in self._layers.items():
            if self.finds_by_name(path):
                members[layer.parameter][path] = self._contributions[path]
        for parameter, own in members.items():
            ranks = self._ranks_of_experts(own)
            rank = self._settings.rank(parameter)
            key = next(iter(own.values())).module.key
            if any(number != rank for number in ranks.values()):
                yield (
                    f"RuntimeError: size mismatch for {key}, as with transformers 5 experts and routers have the rank "
                    f"of the config, r {json_count(self._config.get('r'))}"
                )
            if None not in ranks and len(ranks) < self._expert_count:
                yield f"RuntimeError: size mismatch for {key}, as other experts of its layer have no factors"

    def finds_by_name(self, path: str) -> bool:
        """Return True if the config names a layer that becomes a parameter."""
        return self._layers[path].leaf in self._leaves

    def _ranks_of_experts(self, members: Mapping[str, Contribution]) -> dict[int | None, int]:
        """Return the rank of each expert's share of a parameter: that of gate and up is the sum of both."""
        ranks: dict[int | None, int] = defaultdict(int)
        for path, contribution in members.items():
            ranks[self._layers[path].expert] += contribution.rank or 0
        return ranks
