"""What a PEFT config says where nothing else says it: without its weights, or of a method that has no modules."""

from collections.abc import Iterator, Sequence
from typing import Any

from lora_inspect import algorithms
from lora_inspect.files.discovery import MLX_WEIGHTS, PEFT_WEIGHTS
from lora_inspect.reading.file_reading import FileReading
from lora_inspect.reading.model.evidence import Evidence
from lora_inspect.reading.model.problem import Finding
from lora_inspect.reading.peft.config_lookup import FoundConfig
from lora_inspect.reading.peft.weightless import METHODS
from lora_inspect.sentences import some

# What of a config is shown, in this order, where it says something.
_FIELDS = (
    "r", "rank", "lora_alpha", "alpha", "use_rslora", "use_dora", "num_virtual_tokens", "target_modules",
    "modules_to_save", "base_model_name_or_path",
)  # fmt: skip
_SHOWN, _LETTERS = 5, 80


def about_method(configs: Sequence[FoundConfig], has_modules: bool) -> Iterator[Evidence]:
    """The method of each config and its settings, where no modules tell them."""
    if has_modules:
        return
    for found in configs:
        said = [f"{name} {value}" for name in _FIELDS if (value := _shown(found.config.get(name)))]
        yield Evidence("method", ", ".join([_method(str(found.peft_type)), *said]), found.where)


def missing_weights(reading: FileReading) -> Iterator[Finding]:
    """A config that is there alone."""
    checkpoint = reading.checkpoint
    if checkpoint.files or not checkpoint.config_path:
        return
    methods = [_method(str(found.peft_type)) for found in reading.configs]
    if reading.rules.config:
        methods.append(reading.rules.config.method)
    weights = MLX_WEIGHTS if reading.rules.config else PEFT_WEIGHTS
    yield Finding(
        "weights-missing",
        f"it holds {checkpoint.config_path}{''.join(f' of {method}' for method in methods)} without the weights; fetch "
        f"the {weights}.safetensors that belongs to it",
    )


def _method(peft_type: str) -> str:
    """The method in words, with its name in configs."""
    # Several algorithms may be of one type, as those that are options of LoRA are.
    titles = {algorithm.name: algorithm.title for algorithm in algorithms.of_peft_type(peft_type)}
    known = titles.get(peft_type.lower()) or next(iter(titles.values()), None)
    title = METHODS[peft_type].title if peft_type in METHODS else known
    return f"{title} ({peft_type[:_LETTERS]})" if title else peft_type[:_LETTERS]


def _shown(value: Any) -> str:
    """A setting as it is shown; empty for one that says nothing, or that is no setting."""
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, (int, float)):
        return f"{value:.6g}" if isinstance(value, float) or abs(value) < 10**12 else ""
    if isinstance(value, str):
        return value[:_LETTERS]
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return some([item[:_LETTERS] for item in value], _SHOWN) if value else ""
    return ""
