"""The edits of metadata, each from a map of strings to a map of strings. Standard library only.

Values come from a command line: text, the content of a file, or a picture. Some have names for people, and keys that
programs look for: ComfyUI's and SwarmUI's model lists read ModelSpec's keys; both take the bare names too, and the
Additional Networks extension of the web UI wrote and showed `ssmd_*`. The web UI itself keeps its activation text in a
separate file next to the weights.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from lora_inspect.errors import DamagedError, LoraInspectError, RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.hashes import HASH_KEYS
from lora_inspect.files.input_file import read_whole
from lora_inspect.files.strict_json import METADATA_CHARACTERS, is_unicode, parse_json
from lora_inspect.near_names import nearest_name
from lora_inspect.sentences import shortened

# What begins the name of a file that holds the value; a value of its own that begins so has it twice.
_FROM_FILE = "@"
# In model lists a picture is an icon: ModelSpec recommends 256 by 256.
THUMBNAIL_BYTES = 1 << 20
_PICTURES = {
    b"\xff\xd8\xff": "image/jpeg",
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"RIFF": "image/webp",
}
# Keys whose readers parse them.
_JSON_KEYS = frozenset(
    (
        "_quantization_metadata",
        "lora_adapter_metadata",
        "lora_inspect.converted",
        "lora_inspect.folded",
        "lora_inspect.magnitude_norms",
        "lora_inspect.merged",
        "ot_config",
        "software",
        "ss_alpha_pattern",
        "ss_bucket_info",
        "ss_dataset_dirs",
        "ss_datasets",
        "ss_network_args",
        "ss_rank_pattern",
        "ss_reg_dataset_dirs",
        "ss_tag_frequency",
        "training_info",
    )
)


def parse_pair(text: str) -> tuple[str, str]:
    """The key and the value of KEY=VALUE; ValueError where there is no sign between them."""
    key, sign, value = text.partition("=")
    if not sign:
        raise ValueError(f"{text!r} has no = between a key and a value")
    return key, read_value(value)


def read_value(text: str) -> str:
    """The value itself, or with @FILE the text in that file; LoraInspectError where that cannot be read as text."""
    if not text.startswith(_FROM_FILE):
        return text
    name = text[len(_FROM_FILE) :]
    if name.startswith(_FROM_FILE):
        return name
    content, _ = read_whole(name, 4 * METADATA_CHARACTERS, way_out="name a shorter text")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise DamagedError(name, "it is no text in UTF-8", "name a text file") from None


def thumbnail(path: str) -> str:
    """The data URI of a small picture; LoraInspectError where the file is none that model lists show, or is large."""
    content, _ = read_whole(path, THUMBNAIL_BYTES, way_out="save the picture smaller, 256 by 256")
    kind = next((kind for start, kind in _PICTURES.items() if content.startswith(start)), None)
    if kind is None or (kind == "image/webp" and content[8:12] != b"WEBP"):
        raise RefusedError(path, "it is no JPEG, PNG or WebP", "save the picture as one of these, 256 by 256")
    import base64

    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def check_values(file: str, values: Mapping[str, str]) -> None:
    """Raise LoraInspectError for values that no header can hold, and for plain text under a key of JSON."""
    for key, value in values.items():
        if not is_unicode(key) or not is_unicode(value):
            raise RefusedError(file, f"the value of {shortened(key)} is no text in UTF-8", "give it as @FILE")
        if key in _JSON_KEYS and not _is_json(value):
            raise RefusedError(
                file,
                f"{key} holds JSON, but {shortened(json.dumps(value))} is no object or list",
                "fix it, or give it as @FILE",
            )


def _is_json(value: str) -> bool:
    try:
        return isinstance(parse_json(value), (dict, list))
    except ValueError:
        return False


class MetadataField(NamedTuple):
    """A value's name, the key that it is written under, and the keys that programs read in its place."""

    name: str
    key: str
    others: tuple[str, ...] = ()


NAMED = {
    one.name: one
    for one in (
        MetadataField("trigger_words", "modelspec.trigger_phrase", ("trigger_phrase", "ssmd_keywords")),
        MetadataField("title", "modelspec.title", ("title", "ssmd_display_name")),
        MetadataField("author", "modelspec.author", ("author", "ssmd_author")),
        MetadataField("description", "modelspec.description", ("description", "ssmd_description")),
        MetadataField("thumbnail", "modelspec.thumbnail", ("thumbnail",)),
    )
}


def named_values(named: Mapping[str, str | None], present: Iterable[str]) -> dict[str, str]:
    """The metadata that gives each name its value, None standing for nothing to set.

    Another key for the same thing is written as well where it is `present`, so that no program shows an old value.
    """
    there = set(present)
    return {
        key: value
        for name, value in named.items()
        if value is not None
        for key in (NAMED[name].key, *(other for other in NAMED[name].others if other in there))
    }


def missing_key(path: str, key: str, metadata: Mapping[str, str]) -> LoraInspectError:
    """The error for a key, or a glob of keys, that a metadata has not."""
    if not metadata:
        return RefusedError(path, f"it has no metadata, so no {shortened(key)}", "set it first")
    near = nearest_name(key, metadata)
    which = f" (did you mean {shortened(near)}?)" if near else " that `lora-inspect metadata show` lists"
    return RefusedError(path, f"its metadata has no {shortened(key)}", f"name another key{which}")


# What an edit makes of a metadata; `path` is the file that errors name.
Edit = Callable[[Mapping[str, str], str], dict[str, str]]


class MetadataChange(NamedTuple):
    """The value of a key before and after an edit; None where the key is missing."""

    key: str
    before: str | None
    after: str | None


def setting(values: Callable[[Iterable[str]], Mapping[str, str]]) -> Edit:
    """The edit that gives keys values, which may depend on the keys that are there."""

    def set_(metadata: Mapping[str, str], path: str) -> dict[str, str]:
        given = values(metadata)
        check_values(path, given)
        return {**metadata, **given}

    return set_


def unsetting(patterns: Sequence[str]) -> Edit:
    """The edit that removes the keys which globs fit; LoraInspectError for a glob that fits none."""

    def unset(metadata: Mapping[str, str], path: str) -> dict[str, str]:
        for pattern in patterns:
            if not _fitting(metadata, [pattern]):
                raise missing_key(path, pattern, metadata)
        gone = _fitting(metadata, patterns)
        return {key: value for key, value in metadata.items() if key not in gone}

    return unset


def copying(source: Mapping[str, str], only: Sequence[str], but: Sequence[str], source_path: str) -> Edit:
    """Return the edit that copies another file's metadata, except hashes of its tensors."""

    def copy(metadata: Mapping[str, str], path: str) -> dict[str, str]:
        for pattern in (*only, *but):
            if not _fitting(source, [pattern]):
                raise missing_key(source_path, pattern, source)
        asked = _fitting(source, only or ["*"]) - _fitting(source, but) - {*HASH_KEYS}
        return {**metadata, **{key: value for key, value in source.items() if key in asked}}

    return copy


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> tuple[MetadataChange, ...]:
    """Return the changed keys in order."""
    keys = sorted(key for key in {*before, *after} if before.get(key) != after.get(key))
    return tuple(MetadataChange(key, before.get(key), after.get(key)) for key in keys)


def applied(metadata: Mapping[str, str], made: Iterable[MetadataChange]) -> dict[str, str]:
    """The metadata under some changes and no others."""
    found = dict(metadata)
    for change in made:
        if change.after is None:
            found.pop(change.key, None)
        else:
            found[change.key] = change.after
    return found


def _fitting(metadata: Iterable[str], patterns: Sequence[str]) -> set[str]:
    """The keys that are called so, or that globs fit."""
    return {key for key in metadata for pattern in patterns if key == pattern or fnmatchcase(key, pattern)}
