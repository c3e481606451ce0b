"""The `adapter_config.json` of an output, for PEFT or for mlx-lm.

PEFT's states alpha/rank as the scale, and names by patterns the modules that differ. mlx-lm's makes it build the layers
that hold the tensors of an adapter.

Sources: `LoraConfig` of PEFT (`peft_config` finds a module's rank and alpha as PEFT does); `load_adapters` of mlx-lm
0.32.2. That reads `fine_tune_type`, `num_layers` and of `lora_parameters` rank, scale, dropout and keys. The keys are
the names of layers below each of the last blocks, and full names of all other layers.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeVar

from lora_inspect.files.strict_json import json_number
from lora_inspect.maths.scaling import RANK_MAJOR
from lora_inspect.reading.mlx_config import DORA, LORA, PARAMETERS, TYPE, is_mlx_config
from lora_inspect.reading.packed_experts import INPUT, LAYOUT, MARKS, along, is_of_unsloth
from lora_inspect.reading.peft.fused_experts import has_fused_layers
from lora_inspect.reading.peft.peft_config import LORA_TYPE, NARROWING, ModuleSettings, adapted_modules
from lora_inspect.reading.peft.regex import Steps

# What only a LoraConfig has among them.
_OF_LORA = ("bias", "lora_dropout", "fan_in_fan_out")
# What the configs of all methods say alike.
_OF_ALL = (
    "task_type", "base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "target_modules",
    "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save",
)  # fmt: skip
# The first version of PEFT whose factors of all experts have A along the inputs.
_ALONG_INPUTS = "0.19.1"
# The rank of a config that names none.
_RANK = 8

Number = TypeVar("Number", int, float)

# What an adapter_config.json says at least.
BARE: dict[str, Any] = {
    "peft_type": LORA_TYPE,
    "task_type": None,
    "base_model_name_or_path": None,
    "inference_mode": True,
    "bias": "none",
    "lora_dropout": 0.0,
    "fan_in_fan_out": False,
}


def lora_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config itself if it is LoRA's, else a bare one with the fields that all methods share."""
    if config.get("peft_type", LORA_TYPE) == LORA_TYPE:
        return dict(config)
    return {**BARE, **{field: config[field] for field in _OF_ALL if field in config}}


def standard_config(
    config: Mapping[str, Any],
    ranks: Mapping[str, int],
    alphas: Mapping[str, float],
    use_dora: bool,
    experts: Collection[str] = (),
    listed: bool = False,
    by_leaf: bool = False,
) -> dict[str, Any]:
    """Return `config` corrected for modules with `ranks` and `alphas` by dotted path, or as it is without any.

    Of these, `experts` are parameters of all experts of a layer, with factors packed as PEFT packs them. `listed`
    replaces an expression for the modules by their names, since only PEFT reads expressions; `by_leaf` names them by
    the ends of their paths.
    """
    if not ranks:
        return dict(config)
    rank, alpha = _commonest(ranks.values()), _commonest(alphas.values())
    says = ModuleSettings(config, Steps())
    modules = [path for path in ranks if path not in experts]
    adapts = adapted_modules(config, Steps())
    covers = all(adapts(path) is not False for path in modules) and all(map(says.is_target, modules))
    covers = covers and bool(modules or not experts or "target_modules" in config)
    covers = covers and not (listed and isinstance(config.get("target_modules"), str))
    if not covers:
        config = {field: value for field, value in config.items() if field not in NARROWING}
    config = _of_experts(config) if experts else config
    if not all(map(says.is_parameter, experts)):
        config = {**config, "target_parameters": sorted(experts)}
    targets = config["target_modules"] if covers else sorted(modules)
    # PEFT refuses the dropout of a training for layers that it makes parameters.
    undropped = {"lora_dropout": 0.0} if has_fused_layers(modules) else {}
    return {
        **config,
        **undropped,
        "r": rank,
        "lora_alpha": _number(alpha),
        "rank_pattern": _pattern(ranks, rank),
        "alpha_pattern": {path: _number(value) for path, value in _pattern(alphas, alpha).items()},
        "target_modules": sorted({path.rpartition(".")[2] for path in modules}) if by_leaf else targets,
        "use_rslora": False,
        "use_dora": use_dora,
    }


def saved_config(config: Mapping[str, Any], saved: Collection[str], biases: bool = True) -> dict[str, Any]:
    """Return the config with `modules_to_save` reduced to the saved modules, and without biases if there are none.

    The names in `modules_to_save` are kept if a module at a `saved` path has the name. The list is None if none is
    kept, as PEFT adapts no module of that list.
    """
    if not biases:
        config = {**config, "lora_bias": False, "bias": "none"} if "lora_bias" in config else {**config, "bias": "none"}
    names = config.get("modules_to_save")
    if not isinstance(names, list):
        return dict(config)
    kept = [name for name in names if any(f".{name}." in f".{path}." for path in saved)]
    return {**config, "modules_to_save": kept or None}


def moved_experts(config: Mapping[str, Any], modules: Collection[str], experts: Collection[str]) -> dict[str, Any]:
    """Return the config with other `modules` than it names, after layers of experts were split or joined.

    A of all experts is along the inputs, as in PEFT since 0.19.1.
    """
    version = config.get("peft_version") if along(config) == INPUT else _ALONG_INPUTS
    return {
        **config,
        "target_modules": sorted(path for path in modules if path not in experts),
        "target_parameters": sorted(experts) or None,
        **({"peft_version": version} if experts else {}),
    }


def _of_experts(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config with PEFT's packing of experts, if it states one or Unsloth left it open."""
    mapping = config.get("auto_mapping")
    own = {key: value for key, value in config.items() if key not in MARKS}
    if isinstance(mapping, dict):
        own["auto_mapping"] = {key: value for key, value in mapping.items() if key not in MARKS}
    return {**own, LAYOUT: RANK_MAJOR} if own != config or is_of_unsloth(config) else own


def config_of_method(
    config: Mapping[str, Any] | None, peft_type: str, ranks: Mapping[str, int], alphas: Mapping[str, float]
) -> dict[str, Any]:
    """Return the config of a PEFT method other than LoRA: its own, which is true of the same factors.

    Without one, the new config has the facts of the tensors and the user's options.
    """
    if config is not None:
        return dict(config)
    made: dict[str, Any] = {**BARE, "peft_type": peft_type, "target_modules": sorted(ranks)}
    if ranks:
        rank, alpha = _commonest(ranks.values()), _commonest(alphas.values())
        made |= {"r": rank, "alpha": _number(alpha), "rank_pattern": _pattern(ranks, rank)}
        made["alpha_pattern"] = {path: _number(value) for path, value in _pattern(alphas, alpha).items()}
    return {field: value for field, value in made.items() if field not in _OF_LORA}


def unscaled_config(
    config: Mapping[str, Any], peft_type: str | None, ranks: Mapping[str, int], use_dora: bool
) -> dict[str, Any]:
    """Return `config` corrected for the modules of a component that have their scale in the factors.

    A config of a method other than LoRA keeps its ranks: PEFT also reads from them which factors are whole, and they
    divide alpha of whole ones too.
    """
    if peft_type in (None, LORA_TYPE):
        alphas = {path: float(rank) for path, rank in ranks.items()}
        return standard_config(lora_config(config), ranks, alphas, use_dora)
    return {**config, "alpha": config.get("r", _RANK), "alpha_pattern": config.get("rank_pattern") or {}}


def _commonest(values: Iterable[Number]) -> Number:
    return Counter(values).most_common(1)[0][0]


def _pattern(values: Mapping[str, Number], common: Number) -> dict[str, Number]:
    """Return the values that are not the `common` one, by keys that match only their own module.

    PEFT matches a key as an expression with the end of a path; a path that is the end of another one is anchored. A dot
    that is not escaped is any letter: h.1.1 would match h.111.
    """
    tails = {tail for path in values for tail in _tails(path)}
    return {
        ("^" if path in tails else "") + re.escape(path): value for path, value in values.items() if value != common
    }


def _tails(path: str) -> Iterable[str]:
    position = path.find(".")
    while position >= 0:
        yield path[position + 1 :]
        position = path.find(".", position + 1)


def _number(value: float) -> int | float:
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


# Of which blocks a module's path goes on.
_BLOCK = re.compile(r".*?\.layers\.[0-9]+\.")
# Every block: mlx-lm adapts those that the file has nothing of as well, which changes nothing of them.
_ALL = -1
# What earlier versions called what is said otherwise now, and an alpha that none reads.
_STALE = ("lora_layers", "use_dora")


def mlx_config(
    config: Mapping[str, Any] | None, paths: Collection[str], rank: int, scale: float, use_dora: bool
) -> dict[str, Any]:
    """Return the config of mlx-lm for modules at the dotted `paths`, all of one rank and scale.

    All other fields come from `config`, if that is a config of mlx-lm.
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
    """Return how many of the last blocks have layers of the adapter."""
    for name in ("num_layers", "lora_layers"):
        layers = config.get(name)
        if isinstance(layers, int) and not isinstance(layers, bool):
            return layers
    return _ALL
