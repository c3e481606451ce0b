"""What metadata tells of a training: how long, on what, and how fast it learned.

Sources of the keys: sd-scripts and musubi-tuner (`ss_*`), ModelSpec, ai-toolkit (`training_info`), OneTrainer
(`ot_config`) and the config of mlx-lm.
"""

import math
import re
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from lora_inspect.reading.metadata.provenance import images_of, parsed, texts, whole

# Each fact with the keys that state it, in the order in which they are looked for: those of the metadata, and those of
# the JSON objects that some programs put there or beside the file.
_COUNTS = (
    ("steps", ("ss_steps", "ss_max_train_steps"), ("step", "iters")),
    ("epoch", ("ss_epoch",), ("epoch",)),
    ("epochs", ("ss_num_epochs",), ("epochs",)),
    ("batch_size", ("ss_total_batch_size", "ss_batch_size_per_device"), ("batch_size",)),
)
_RATES = ("ss_learning_rate", "ss_unet_lr")
_OPTIMIZERS = ("ss_optimizer", "ss_optimizer_type")
_RESOLUTIONS = ("ss_resolution", "modelspec.resolution")
_DATES = ("ss_training_finished_at", "ss_training_started_at")
# Sides of an image: `(768, 768)`, `1024x1024`, `1024`.
_SIDES = r"[(\[]?\s*(\d{1,6})\s*(?:[,x*]\s*(\d{1,6})\s*,?\s*)?[)\]]?"
_DAY = r"\d{4}-\d{2}-\d{2}"
# What says a resolution, a day or the name of a class is short.
_LONGEST = 100


def training_facts(metadata: Mapping[str, str], config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What is told, of `steps`, `epoch` and `epochs` (that of the file, and all), `images`, `batch_size`,
    `resolution`, `learning_rate`, `optimizer` and `date`; what is not told is not there.

    `config` is the one that belongs to the adapter.
    """  # fmt: skip
    objects = {**(config or {})}
    for key in ("training_info", "ot_config"):
        found = parsed(metadata, key) if key in metadata else None
        objects |= found if isinstance(found, dict) else {}
    datasets = parsed(metadata, "ss_datasets") if "ss_datasets" in metadata else None
    dataset = datasets[0] if isinstance(datasets, list) and datasets and isinstance(datasets[0], dict) else {}
    facts: dict[str, Any] = {}
    for fact, keys, names in _COUNTS:
        told = (*(metadata.get(key) for key in keys), *(objects.get(name) for name in names))
        facts[fact] = next((count for count in map(whole, told) if count), None)
    facts["images"] = images_of(metadata)
    facts["batch_size"] = facts["batch_size"] or whole(dataset.get("batch_size_per_device"))
    sizes = (*texts(metadata, _RESOLUTIONS), dataset.get("resolution"), objects.get("resolution"))
    facts["resolution"] = next((size for size in map(_resolution, sizes) if size), None)
    rates = (*(metadata.get(key) for key in _RATES), objects.get("learning_rate"))
    facts["learning_rate"] = next((rate for rate in map(_rate, rates) if rate), None)
    facts["optimizer"] = next(iter(_optimizers(metadata, objects)), None)
    facts["date"] = next((day for day in map(_day, (metadata.get(key) for key in _DATES)) if day), None) or next(
        (text[:10] for text in texts(metadata, ("modelspec.date",)) if re.match(_DAY, text)), None
    )
    return {fact: value for fact, value in facts.items() if value is not None}


def _resolution(value: Any) -> str | None:
    """Width and height as `768x768`, of a text or a list; one side stands for both."""
    if isinstance(value, list) and 1 <= len(value) <= 2 and all(isinstance(side, int) for side in value):
        value = "x".join(map(str, value))
    if isinstance(value, bool) or not isinstance(value, str | int) or len(text := str(value)) > _LONGEST:
        return None
    found = re.fullmatch(_SIDES, text.strip())
    return f"{int(found[1])}x{int(found[2] or found[1])}" if found else None


def _rate(value: Any) -> float | None:
    """A positive finite number that a value is or spells."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if 0 < number < math.inf else None


def _optimizers(metadata: Mapping[str, str], objects: Mapping[str, Any]) -> list[str]:
    """Names of optimizers, without the path of their class and its arguments."""
    inner = objects.get("optimizer")
    inner = inner if isinstance(inner, dict) else objects
    told = (*texts(metadata, _OPTIMIZERS), *texts(inner, ("optimizer",)))
    names = (text.partition("(")[0].rpartition(".")[2].strip() for text in told)
    return [name for name in names if 0 < len(name) <= _LONGEST]


def _day(value: Any) -> str | None:
    """The day of a time in seconds since 1970, in UTC."""
    seconds = _rate(value)
    if seconds is None:
        return None
    try:
        return datetime.fromtimestamp(seconds, timezone.utc).date().isoformat()
    except (ValueError, OverflowError, OSError):
        return None
