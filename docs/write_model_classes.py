"""Writes `lora_inspect/architectures/model_classes.json`: the facts of the language models of transformers, by class.

    python docs/write_model_classes.py

The script builds each class on the meta device, with the default numbers of its config, so no weight is read or made.
It needs the versions of transformers and PEFT that the head of the table names: another version gives another table.
"""

import inspect
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from peft import LoraConfig  # noqa: E402
from peft.tuners.tuners_utils import _check_lora_target_modules_mamba  # noqa: E402
from peft.utils import transformers_weight_conversion as peft_conversion  # noqa: E402
from transformers import PretrainedConfig, PreTrainedModel  # noqa: E402
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, get_model_conversion_mapping  # noqa: E402
from transformers.core_model_loading import (  # noqa: E402
    PrefixChange,
    WeightConverter,
    WeightRenaming,
    apply_converters,
    apply_renamings,
    dot_natural_key,
)
from transformers.initialization import no_init_weights  # noqa: E402
from transformers.models.auto import modeling_auto  # noqa: E402
from transformers.pytorch_utils import Conv1D  # noqa: E402

from lora_inspect.architectures.model_classes import as_pattern  # noqa: E402

TABLE = ROOT / "lora_inspect" / "architectures" / "model_classes.json"
MAPPINGS = ("MODEL_FOR_CAUSAL_LM_MAPPING", "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING")
PACKAGES = ("transformers", "peft")

# Values that the default config of a class lacks, and that its constructor needs.
NEEDED: Mapping[str, Mapping[str, Any]] = {
    "CohereCompassForCausalLM": {
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        }
    },
    "DbrxForCausalLM": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0, "kv_n_heads": 4}},
    "Dots1ForCausalLM": {"n_routed_experts": 4, "n_shared_experts": 1},
    "Gemma4AssistantForCausalLM": {"text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}},
    "HunYuanDenseV1ForCausalLM": {"head_dim": 128},
    "HunYuanMoEV1ForCausalLM": {"head_dim": 128},
    "Lfm2MoeForCausalLM": {"layer_types": ["conv", "full_attention"] * 16},
    "MinistralForCausalLM": {"head_dim": 128},
    "NemotronForCausalLM": {"num_key_value_heads": 8},
    "Qwen4ExpForCausalLM": {
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 256,
        "indexer_budget": 64,
        "indexer_compress_ratio": 4,
    },
    "ReformerModelWithLMHead": {"is_decoder": True},
}
# Configs that give a class other modules than its default has.
VARIANTS: tuple[Mapping[str, Any], ...] = ({"q_lora_rank": None}, {"word_embed_proj_dim": 256})
TIES = "tie_word_embeddings"


def classes() -> dict[str, tuple[type[PreTrainedModel], type[PretrainedConfig]]]:
    """Return each class of the mappings with its config class, by name."""
    pairs: dict[str, tuple[type[PreTrainedModel], type[PretrainedConfig]]] = {}
    for mapping in MAPPINGS:
        for config_class, entry in getattr(modeling_auto, mapping).items():
            for model_class in entry if isinstance(entry, (list, tuple)) else (entry,):
                pairs.setdefault(model_class.__name__, (model_class, model_class.config_class or config_class))
    return dict(sorted(pairs.items()))


def build(model_class: type[PreTrainedModel], config: PretrainedConfig) -> PreTrainedModel:
    """Return the model on the meta device, with parameters that have shapes and no numbers."""
    with torch.device("meta"), no_init_weights():
        return model_class(config).eval()


def facts(model_class: type[PreTrainedModel], config_class: type[PretrainedConfig]) -> dict[str, Any]:
    """Return what the table holds of a class. Raises what its constructor raises if the class does not build."""
    needed = NEEDED.get(model_class.__name__, {})
    model = build(model_class, config_class(**needed))
    kinds = module_kinds(model)
    names = file_names(model)
    default = model.config.to_dict()
    for variant in VARIANTS:
        if variant.keys() <= default.keys():
            try:
                other = build(model_class, config_class(**needed, **variant))
            except Exception:  # the class does not allow this value
                continue
            kinds = module_kinds(other) | kinds
            names = file_names(other) | names
    by_kind: dict[str, list[str]] = {}
    for pattern, kind in sorted(kinds.items()):
        by_kind.setdefault(kind, []).append(pattern)
    drawn = {
        "type": model.config.model_type,
        "embedding": _name_of(model, "get_input_embeddings"),
        "head": _name_of(model, "get_output_embeddings"),
        "tied": tied(model_class, config_class, needed),
        "encoder_decoder": bool(model.config.is_encoder_decoder),
        "modules": by_kind,
        "files": names,
        "reroute": reroute(model.config.model_type),
        "refused": refused_by_peft(model, kinds),
    }
    return {key: value for key, value in drawn.items() if value}


def _name_of(model: PreTrainedModel, getter: str) -> str | None:
    """Return the name of the module that a method of the model gives; None if it gives none."""
    try:
        module = getattr(model, getter)()
    except (NotImplementedError, AttributeError):
        return None
    return next((name for name, other in model.named_modules() if module is not None and other is module), None)


def module_kinds(model: PreTrainedModel) -> dict[str, str]:
    """Return the kind of each module with a matrix, by pattern; a parameter of another name has its pattern."""
    kinds: dict[str, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        for parameter, tensor in module.named_parameters(recurse=False, remove_duplicate=False):
            if tensor.ndim < 2:
                continue
            kind = kind_of(module, parameter, tensor.ndim)
            path = name if kind in MODULES or parameter == "weight" else f"{name}.{parameter}"
            kinds[as_pattern(path)] = kind
    return kinds


MODULES = ("linear", "embedding", "embedding_with_arguments", "linear_with_arguments", "convolution", "conv1d")


def kind_of(module: torch.nn.Module, parameter: str, dimensions: int) -> str:
    """Return the kind of a module's parameter: a word of MODULES, or a parameter of a module of another class."""
    if parameter == "weight":
        if isinstance(module, torch.nn.Embedding):
            return "embedding_with_arguments" if _has_other_arguments(module, torch.nn.Embedding) else "embedding"
        if isinstance(module, torch.nn.Linear):
            return "linear_with_arguments" if _has_other_arguments(module, torch.nn.Linear) else "linear"
        if isinstance(module, (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)):
            return "convolution"
        if isinstance(module, Conv1D):
            return "conv1d"
    if dimensions == 3 and "Expert" in type(module).__name__:
        return "experts_in_out" if getattr(module, "is_transposed", False) else "experts"
    return "parameter"


def _has_other_arguments(module: torch.nn.Module, parent: type[torch.nn.Module]) -> bool:
    """Return True if a subclass takes other arguments than its parent, so PEFT's layer passes it other values."""
    count = len(inspect.signature(parent.forward).parameters)
    return len(inspect.signature(type(module).forward).parameters) != count


def tied(
    model_class: type[PreTrainedModel], config_class: type[PretrainedConfig], needed: Mapping[str, Any]
) -> dict[str, list[Any]]:
    """Return what each tied weight repeats, the key of the config that decides, and the value if it lacks the key.

    The key has a dot where it is in a part of the config. A key of None stands for a class that ties always.
    """
    config = config_class(**needed)
    keys = [
        TIES,
        *(f"{part}.{TIES}" for part in config.sub_configs if isinstance(getattr(config, part, None), PretrainedConfig)),
    ]
    default = _tied_weights(model_class, config)
    weights: dict[str, list[Any]] = {}
    for key in keys:
        for value in (True, False):
            part, _, _ = key.rpartition(".")
            try:
                changed = config_class(**needed, **({} if part else {TIES: value}))
                if part:
                    setattr(getattr(changed, part), TIES, value)
                pairs = _tied_weights(model_class, changed)
            except Exception:  # the class does not allow this value
                continue
            for target, source in pairs.items():
                if target not in default and value:
                    weights[target] = [source, key, False]
            if not value:
                for target in default.keys() - pairs.keys():
                    weights[target] = [default[target], key, True]
    for target in default.keys() - weights.keys():
        weights[target] = [default[target], None, True]
    return dict(sorted(weights.items()))


def _tied_weights(model_class: type[PreTrainedModel], config: PretrainedConfig) -> dict[str, str]:
    """Return the weights that repeat another, with that one, for a config."""
    model = build(model_class, config)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    pairs = model.get_expanded_tied_weights_keys(all_submodels=True)
    return {as_pattern(target): as_pattern(source) for target, source in pairs.items() if target in parameters}


def file_names(model: PreTrainedModel) -> dict[str, list[str]]:
    """Return the names in a saved file of each parameter that has other ones there, by pattern.

    Several names stand for tensors that transformers joins to the parameter, in their order. Several parameters with
    the same name are rows of one tensor. Source: transformers' `revert_weight_conversion`.
    """
    transforms = [
        transform
        for transform in get_model_conversion_mapping(model, add_legacy=False)
        if not isinstance(transform, PrefixChange)
    ][::-1]
    reversed_transforms = [transform.reverse_transform() for transform in transforms]
    renamings = [transform for transform in reversed_transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in reversed_transforms if isinstance(transform, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    groups: dict[str, Any] = {}
    parameters: dict[str, list[str]] = {}
    for name, tensor in sorted(model.state_dict().items(), key=lambda item: dot_natural_key(item[0])):
        renamed, pattern = apply_converters(name, converters)
        if pattern is None:
            renamed = apply_renamings(name, renamings)
            groups.setdefault(renamed, None)
        else:
            groups.setdefault(renamed, deepcopy(by_pattern[pattern])).add_tensor(renamed, name, pattern, tensor)
        parameters.setdefault(renamed, []).append(name)
    names: dict[str, list[str]] = {}
    for renamed, converter in groups.items():
        files: Iterable[str] = (renamed,)
        if converter is not None:
            tensors = converter.convert(renamed, model=model, config=model.config)
            files = [apply_renamings(name, renamings) for name in tensors]
        patterns = list(dict.fromkeys(map(as_pattern, files)))
        for name in parameters[renamed]:
            if patterns != [as_pattern(name)]:
                names[as_pattern(name)] = patterns
    return dict(sorted(names.items()))


def reroute(model_type: str) -> dict[str, str]:
    """Return the parameter of the experts to which PEFT turns each name of a target, for a type of model."""
    if get_checkpoint_conversion_mapping(model_type) is None:
        return {}
    base = peft_conversion._MODEL_TO_CONVERSION_PATTERN.get(model_type)
    return peft_conversion._MOE_TARGET_MODULE_MAPPING.get(base, {})


def refused_by_peft(model: PreTrainedModel, kinds: Mapping[str, str]) -> list[str]:
    """Return the patterns of modules on which PEFT raises, as no LoRA can work in them."""
    return sorted(pattern for pattern in kinds if _is_refused(model, pattern))


def _is_refused(model: PreTrainedModel, pattern: str) -> bool:
    try:
        _check_lora_target_modules_mamba(LoraConfig(), model, pattern.rpartition(".")[2])
    except ValueError:
        return True
    return False


def table() -> dict[str, Any]:
    """Return the whole table: versions, classes, and the classes that do not build with the reason."""
    drawn: dict[str, Any] = {}
    unbuilt: dict[str, str] = {}
    for name, (model_class, config_class) in classes().items():
        try:
            drawn[name] = facts(model_class, config_class)
        except Exception as error:  # whatever a constructor raises is the reason
            unbuilt[name] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    versions = {package: version(package) for package in PACKAGES}
    return {"versions": versions, "classes": drawn, "unbuilt": unbuilt}


def lines(drawn: Mapping[str, Any]) -> Iterator[str]:
    """Yield the table as JSON, a class a line."""
    yield f'{{"versions": {json.dumps(drawn["versions"])},\n"classes": {{\n'
    rows = (f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in drawn["classes"].items())
    yield ",\n".join(rows)
    yield f'}},\n"unbuilt": {json.dumps(drawn["unbuilt"], indent=0)}}}\n'


if __name__ == "__main__":
    TABLE.write_text("".join(lines(table())), encoding="utf-8")
