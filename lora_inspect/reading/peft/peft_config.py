"""PEFT's saved LoraConfig: alpha and scale rule per module, and settings that change the tensors' meaning.

It also finds the modules that PEFT adapts by a config: `target_modules`, without the modules that other fields remove.
Source: `check_target_module_exists` of PEFT.
"""

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from lora_inspect.files.strict_json import json_count, json_number, parse_json
from lora_inspect.reading.peft.regex import Steps

if TYPE_CHECKING:
    from lora_inspect.reading.peft.config_patterns import EndNames, ParameterTargets, PatternMap, Targets

EMBEDDED_KEY = "lora_adapter_metadata"
# The `peft_type` of LoRA, which a config without one is of.
LORA_TYPE = "LORA"
# The field by which PEFT gives the head of a tied embedding the same change.
WEIGHT_TYING = "ensure_weight_tying"
# The layers of which a target has to choose one before PEFT reads that field: its `EMBEDDING_LAYER_NAMES`. It then
# finds the tied embedding itself, under any name.
TYING_TARGETS = ("lm_head", "embed_tokens")

_WITH_PEFT = "use it with PEFT"
_UNBUILT = "which lora-inspect does not support yet; merge it with the program that trained it"
# Settings under which lora_A and lora_B are not (only) factors of an additive change of the named modules: what they do
# then, and the way out. Sources: the variants of LoRA and `replicate_layers` in PEFT 0.21.
FOREIGN_SETTINGS = {
    "use_qalora": f"QA-LoRA pools the input of lora_A on GPTQ layers, into which PEFT merges nothing; {_WITH_PEFT}",
    "arrow_config": f"Arrow mixes several adapters for each token, which changes no weight; {_WITH_PEFT}",
    "layer_replication": (
        "layer_replication repeats layers of the base, so the adapter is for a model with more layers, "
        f"and PEFT merges nothing into that; {_WITH_PEFT}"
    ),
    "alora_invocation_tokens": f"aLoRA acts from an invocation token on and changes no weight; {_WITH_PEFT}",
}


def is_peft_config(config: Mapping[str, Any]) -> bool:
    """Return True for an `adapter_config.json` of PEFT (mlx-lm writes one of the same name)."""
    return "peft_type" in config


def embedded_object(metadata: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the object that diffusers embeds, empty if there is none; None if it is not a JSON object."""
    try:
        found = parse_json(metadata.get(EMBEDDED_KEY) or "{}")
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def embedded_configs(metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return the LoraConfigs that diffusers embeds, by component prefix ("transformer.", …; "" without one)."""
    flat = embedded_object(metadata) or {}
    configs: dict[str, dict[str, Any]] = {}
    for key, value in flat.items():
        component, dot, field = key.rpartition(".")
        configs.setdefault(component + dot, {})[field] = value
    return {prefix: config for prefix, config in configs.items() if "r" in config or "lora_alpha" in config}


class ModuleSettings:
    """The settings of a LoraConfig for single modules; all configs that came with one file share the `steps`.

    `refused` names a pattern that is not compared with modules, and the reason: then nothing is known of any module. It
    is None as long as there is no such pattern.
    """

    def __init__(self, config: Mapping[str, Any], steps: Steps) -> None:
        self._config, self._steps = config, steps
        self._maps: dict[str, PatternMap] = {}
        self._targets: Targets | None = None
        self._named: dict[str, EndNames] = {}
        self._parameters: ParameterTargets | None = None
        self.refused: str | None = None

    def rank(self, path: str) -> int | None:
        """Return the config's rank for the module at the dotted `path`; None if it is no valid rank."""
        return json_count(self._value("rank_pattern", path, self._config.get("r")))

    def alpha(self, path: str) -> float | None:
        """Return the config's alpha for the module at the dotted `path`; PEFT's default is 8, None is no number."""
        name = "lora_alpha" if self._config.get("peft_type", LORA_TYPE) == LORA_TYPE else "alpha"
        return json_number(self._value("alpha_pattern", path, self._config.get(name, 8)))

    @property
    def tells_apart(self) -> bool:
        """True if rank and alpha may differ between modules with different paths."""
        return bool(self._config.get("rank_pattern") or self._config.get("alpha_pattern"))

    def is_target(self, path: str) -> bool:
        """Return True if the config's `target_modules` choose the module at the dotted `path`."""
        from lora_inspect.reading.peft.config_patterns import RefusedKey, Targets

        try:
            if self._targets is None:
                self._targets = Targets(self._config.get("target_modules"), self._steps)
            return self._targets.choose(path)
        except RefusedKey as key:
            self.refused = f"target_modules {key}"
            return False

    def chooses(self, field: str, path: str) -> bool | None:
        """Return True if `field` names the module at the dotted `path` by its end or by an expression.

        Returns None if the field is neither a list nor a text, or cannot be compared.
        """
        names = self._config.get(field)
        if self.refused or not isinstance(names, (str, list)):
            return None
        from lora_inspect.reading.peft.config_patterns import EndNames, RefusedKey

        try:
            if field not in self._named:
                self._named[field] = EndNames(names, self._steps)
            return self._named[field].choose(path)
        except RefusedKey as key:
            self.refused = f"{field} {key}"
            return None

    def parameters_of(self, path: str, without_parent: bool) -> list[str]:
        """Return the parameters of the module at the dotted `path` that the config's `target_parameters` choose.

        A name without its module's counts only if `without_parent`.
        """
        from lora_inspect.reading.peft.config_patterns import RefusedKey

        try:
            return self._parameter_targets().of(path, without_parent)
        except RefusedKey as key:
            self.refused = f"target_parameters {key}"
            return []

    def is_parameter(self, path: str) -> bool:
        """Return True if the config's `target_parameters` choose the parameter at the dotted `path`."""
        from lora_inspect.reading.peft.config_patterns import RefusedKey

        try:
            return self._parameter_targets().choose(path)
        except RefusedKey as key:
            self.refused = f"target_parameters {key}"
            return False

    def _parameter_targets(self) -> "ParameterTargets":
        from lora_inspect.reading.peft.config_patterns import ParameterTargets

        if self._parameters is None:
            self._parameters = ParameterTargets(self._config.get("target_parameters"), self._steps)
        return self._parameters

    def _value(self, field: str, path: str, default: Any) -> Any:
        if self.refused:
            return None
        if not self._config.get(field):
            return default
        from lora_inspect.reading.peft.config_patterns import PatternMap, RefusedKey

        try:
            if field not in self._maps:
                self._maps[field] = PatternMap(self._config.get(field), self._steps)
            return self._maps[field].value(path, default)
        except RefusedKey as key:
            self.refused = f"the key of {field} {key}"
            return None


def ties_weights(config: Mapping[str, Any] | None) -> bool:
    """Return True if PEFT gives a head with the weight of an embedding the change of the embedding, by a config.

    Source: `BaseTuner._check_tied_modules` of PEFT, which ignores the field unless a target is called as one of two.
    """
    return config is not None and config.get(WEIGHT_TYING) is True and names_tied_layer(config)


def names_tied_layer(config: Mapping[str, Any]) -> bool:
    """Return True if a config adapts or saves a layer by a name that PEFT knows as a tied one."""
    targets, saved = config.get("target_modules"), config.get("modules_to_save")
    if isinstance(targets, str) and any(map(ModuleSettings(config, Steps()).is_target, TYING_TARGETS)):
        return True
    names = [name for names in (targets, saved) if isinstance(names, list) for name in names]
    return any(str(name).rpartition(".")[2] in TYING_TARGETS for name in names)


def fan_in_fan_out(config: Mapping[str, Any]) -> bool | None:
    """Return True if the config says that weights are stored as (in, out).

    PEFT's default is no; None is for a value that is not a yes or no.
    """
    says = config.get("fan_in_fan_out", False)
    return says if isinstance(says, bool) else None


def foreign_settings(config: Mapping[str, Any]) -> list[str]:
    """Return the config's settings that make the tensors something else than plain LoRA factors."""
    found = [says for key, says in FOREIGN_SETTINGS.items() if config.get(key) not in (None, False, [], {}, "")]
    bias, modules = config.get("bias"), config.get("modules_to_save") or []
    if bias not in (None, "none", "all") and not (isinstance(bias, str) and bias.endswith("_only")):
        found.append(f"bias is {bias}, so a part of the base was trained too, {_UNBUILT}")
    if not isinstance(modules, list) or not all(isinstance(name, str) and name for name in modules):
        found.append(f"modules_to_save is not a list of names, so a part of the base was trained too, {_UNBUILT}")
    return found


# The fields that take modules away.
NARROWING = ("exclude_modules", "layers_to_transform", "layers_pattern")
# The first number of a path that is no part of a name, as of a block.
# Ten digits are past any block count, and int() of thousands of digits is an error.
_DIGITS = 10
_BLOCK = re.compile(r".*?\.[^.]*\.([0-9]+)\.")


def adapted_modules(config: Mapping[str, Any], steps: Steps) -> Callable[[str], bool | None]:
    """Return a function that says whether PEFT adapts the module at a dotted path.

    It returns None if more than the config decides that, or if it takes too long. Only the model defines the layers of
    "all-linear", and `layers_pattern` is not read here.
    """
    targets, layers = config.get("target_modules"), config.get("layers_to_transform")
    chosen = ModuleSettings(config, steps)
    excluded = ModuleSettings({"target_modules": config.get("exclude_modules")}, steps)
    named = {name for name in targets if isinstance(name, str)} if isinstance(targets, list) else set()
    wanted = {layer for layer in (layers if isinstance(layers, list) else [layers]) if isinstance(layer, int)}

    def adapts(path: str) -> bool | None:
        if targets == "all-linear" or (layers not in (None, []) and config.get("layers_pattern")):
            return None
        if excluded.is_target(path) or not chosen.is_target(path):
            return None if chosen.refused or excluded.refused else False
        # Paths in full, and expressions, are not asked for their layer.
        if isinstance(targets, str) or layers in (None, []) or path in named:
            return True
        block = _BLOCK.match(path)
        return block is not None and len(block[1]) <= _DIGITS and int(block[1]) in wanted

    return adapts
