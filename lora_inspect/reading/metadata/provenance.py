"""The origin of an adapter by its metadata: title, base, trigger words, tags, and its training.

The writer of the file made these statements, and nothing here checks them against the tensors. Values may be anything:
a value of another kind than expected counts as missing.

Sources of the keys: ModelSpec of Stability AI, sd-scripts and musubi-tuner (`ss_*`), ai-toolkit (`training_info`),
OneTrainer (`ot_config`), and the configs of PEFT and mlx-lm.
"""

import math
import re
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from itertools import islice
from typing import Any

from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.strict_json import parse_json

# What a merge of ours records in its output, and what an adapter records that we made of others.
MERGED_KEY, COMBINED_KEY = "lora_inspect.merged", "lora_inspect.combined"
# Keys in the order in which they are looked for. Expressions are compiled when a file has what they are for.
_TITLES = ("modelspec.title", "ss_output_name", "name")
_BASES = ("ss_sd_model_name", "ss_base_model", "base_model")
_BASES_IN_CONFIGS = ("base_model_name_or_path", "model", "base_model_name")
_TRIGGERS = (
    *("modelspec.trigger_phrase", "ss_trigger_words", "trigger_words", "trigger_word"),
    *("trigger_phrase", "ssmd_keywords"),
)
_NOTES = ("modelspec.usage_hint", "ss_training_comment", "modelspec.description")
# A note that is there for the words that call it: `trigger word is NAME`.
_TRIGGER_NOTE = r"(?i)trigger(?:[ -]?words?|[ -]?phrases?)?(?: ?[:=]| is| are) *(\S[^\r\n]{0,200})"
# What programs write where they have nothing to say; the last is a placeholder of ai-toolkit.
_NOTHING = ("", "none", "null", "undefined", "[name]")
# The title that sd-scripts and musubi-tuner give to an adapter without a name: a word and the time.
_NAMELESS = r"\w+@\d+(\.\d+)?"
_MOST_TAGS, _MOST_TRIGGERS = 20, 20
# Longer tags are more than a single trigger word.
_ONE_WORD_OF_TAGS = 1000
# A folder of images is called by how often each counts, and what they show: `10_sks dog`.
_FOLDER = r"(?s)(\d+)_(.+)"

# What a path begins with that is one of a machine, and no name on a hub.
_ON_A_MACHINE = r"[/~.\\]|[A-Za-z]:[/\\]"


class Provenance(NamedTuple):
    """The origin of an adapter, from its metadata and its config.

    `trigger_words` are only words that the metadata call so. `notes` are sentences to the user. `tags` are the
    commonest words of the captions with their numbers of images, the commonest first, and `images` is the number of
    different images.
    """

    title: str | None = None
    base: str | None = None
    trigger_words: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    tags: tuple[tuple[str, int], ...] = ()
    images: int | None = None


def provenance(metadata: Mapping[str, str], config: Mapping[str, Any] | None = None) -> Provenance:
    """Return the provenance from the metadata and from the adapter's own `config`, if there is one."""
    captions = _captions(metadata)
    bases = (*texts(metadata, _BASES), *texts(_configs(metadata, config), _BASES_IN_CONFIGS))
    return Provenance(
        title=next((title for title in texts(metadata, _TITLES) if not re.fullmatch(_NAMELESS, title)), None),
        base=next(map(_last_name, bases), None),
        trigger_words=trigger_words(metadata),
        notes=tuple(dict.fromkeys(texts(metadata, _NOTES))),
        tags=() if _only_trigger(captions) else tuple(_tags(captions)),
        images=images_of(metadata),
    )


def texts(found: Mapping[Any, Any], keys: tuple[Any, ...]) -> list[str]:
    """Return the values of the keys that are present and not empty."""
    values = (found.get(key) for key in keys)
    stripped = [value.strip() for value in values if isinstance(value, str)]
    return [value for value in stripped if value.lower() not in _NOTHING]


def trigger_words(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Return the trigger words that the metadata state, at most 20; long counts of tags are not parsed for it."""
    noted = filter(None, map(noted_trigger, texts(metadata, _NOTES)))
    is_short = len(metadata.get("ss_tag_frequency", "")) <= _ONE_WORD_OF_TAGS
    only = _only_trigger(_captions(metadata)) if is_short else None
    return words_of((*texts(metadata, _TRIGGERS), *noted, *([only] if only else ())))


def words_of(phrases: Iterable[str]) -> tuple[str, ...]:
    """Return the different words or phrases between the commas of several texts, at most 20."""
    words = dict.fromkeys(word.strip() for phrase in phrases for word in phrase.split(","))
    return tuple(islice((word for word in words if word.lower() not in _NOTHING), _MOST_TRIGGERS))


def noted_trigger(note: str) -> str | None:
    """Return the trigger words from a note that says only those; None for any other note."""
    found = re.fullmatch(_TRIGGER_NOTE, note)
    return found[1] if found else None


def parsed(metadata: Mapping[str, str], key: str) -> Any:
    """Return the JSON value of a key; None if it is none."""
    try:
        return parse_json(metadata.get(key, "null"))
    except ValueError:
        return None


def whole(value: Any) -> int | None:
    """Return the integer that a value is or spells, from 0 to a million millions; None for anything else."""
    if isinstance(value, str) and len(value) < 20 and value.strip().isdecimal():
        value = int(value.strip())
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return value if is_whole and 0 <= value <= 10**12 else None


def images_of(metadata: Mapping[str, str]) -> int | None:
    """Return the number of different images, each counted once."""
    folders = parsed(metadata, "ss_dataset_dirs")
    if isinstance(folders, dict) and folders:
        counts = [whole(folder.get("img_count")) for folder in folders.values() if isinstance(folder, dict)]
        return sum(count for count in counts if count is not None) or None
    datasets = parsed(metadata, "ss_datasets")
    subsets = (
        subset
        for dataset in (datasets if isinstance(datasets, list) else ())
        if isinstance(dataset, dict) and isinstance(dataset.get("subsets"), list)
        for subset in dataset["subsets"]
        if isinstance(subset, dict) and not subset.get("is_reg")
    )
    return sum(whole(subset.get("img_count")) or 0 for subset in subsets) or None


def _configs(metadata: Mapping[str, str], config: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Return the config next to the file and the one of OneTrainer in it."""
    inner = parsed(metadata, "ot_config") if "ot_config" in metadata else None
    return {**(config or {}), **(inner if isinstance(inner, dict) else {})}


def _last_name(base: str) -> str:
    """Return the name of a base: for a path of the training machine, its last part."""
    return re.split(r"[/\\]", base.rstrip("/\\"))[-1] or base if re.match(_ON_A_MACHINE, base) else base


def _captions(metadata: Mapping[str, str]) -> dict[str, dict[str, int]]:
    """Return the number of images with each tag, by folder."""
    found = parsed(metadata, "ss_tag_frequency")
    folders = found if isinstance(found, dict) else {}
    return {
        folder: {tag.strip(): number for tag, count in tags.items() if (number := whole(count)) and tag.strip()}
        for folder, tags in folders.items()
        if isinstance(tags, dict)
    }


def _only_trigger(captions: Mapping[str, Mapping[str, int]]) -> str | None:
    """Return the trigger word if the captions are only that: ai-toolkit writes `{"1_WORD": {"WORD": 1}}`."""
    if len(captions) != 1:
        return None
    [(folder, tags)] = captions.items()
    named = re.fullmatch(_FOLDER, folder)
    return named[2] if named and dict(tags) == {named[2]: 1} else None


def _tags(captions: Mapping[str, Mapping[str, int]]) -> list[tuple[str, int]]:
    """Return the commonest tags; folders may hold the same images, and nothing distinguishes these."""
    counts: dict[str, int] = {}
    for tags in captions.values():
        for tag, count in tags.items():
            counts[tag] = counts.get(tag, 0) + count
    return sorted(counts.items(), key=lambda item: -item[1])[:_MOST_TAGS]


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
    """Return the facts that the metadata state about the training, by name.

    The names are `steps`, `epoch` and `epochs` (that of the file, and all), `images`, `batch_size`, `resolution`,
    `learning_rate`, `optimizer` and `date`. Unknown facts are left out. `config` is the adapter's own config.
    """
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
    """Return width and height as `768x768`, from a text or a list; one side is for both."""
    if isinstance(value, list) and 1 <= len(value) <= 2 and all(isinstance(side, int) for side in value):
        value = "x".join(map(str, value))
    if isinstance(value, bool) or not isinstance(value, str | int) or len(text := str(value)) > _LONGEST:
        return None
    found = re.fullmatch(_SIDES, text.strip())
    return f"{int(found[1])}x{int(found[2] or found[1])}" if found else None


def _rate(value: Any) -> float | None:
    """Return a positive finite number that a value is or spells."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if 0 < number < math.inf else None


def _optimizers(metadata: Mapping[str, str], objects: Mapping[str, Any]) -> list[str]:
    """Return names of optimizers, without the path of their class and its arguments."""
    inner = objects.get("optimizer")
    inner = inner if isinstance(inner, dict) else objects
    told = (*texts(metadata, _OPTIMIZERS), *texts(inner, ("optimizer",)))
    names = (text.partition("(")[0].rpartition(".")[2].strip() for text in told)
    return [name for name in names if 0 < len(name) <= _LONGEST]


def _day(value: Any) -> str | None:
    """Return the day of a time in seconds since 1970, in UTC."""
    seconds = _rate(value)
    if seconds is None:
        return None
    try:
        return datetime.fromtimestamp(seconds, timezone.utc).date().isoformat()
    except (ValueError, OverflowError, OSError):
        return None
