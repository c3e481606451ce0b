"""Records of merges in a base's metadata, and of combinations in an adapter's. Standard library only.

lora-inspect writes them: the first names the adapters that it merged into the base, the second the adapters that an
adapter is made of. Metadata may hold anything: a value of another type than expected counts as missing.
"""

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.strict_json import is_shallow, json_number, parse_json
from lora_inspect.reading.metadata.provenance import COMBINED_KEY, MERGED_KEY

# What was merged, and taken out again with estimates.
UNDONE_KEY = "lora_inspect.undone"
# The names of the record's parts.
ADAPTERS, BASE, OPTIONS, EARLIER = "adapters", "base", "options", "earlier"
FILE, SHA256, CONFIG, SETTINGS, MULTIPLIER, HEADER = "file", "sha256", "config", "settings", "multiplier", "header"
# What the record of a merge has whose numbers are estimates since one after it was undone.
ESTIMATED = "estimated"
# What weights were folded in, by the element type that they were written in.
FOLDED_IN = "folded_in"
# The rule for the ranks of an adapter that was made of others.
RULES = ("rank", "energy", "max_error", "size", "max_rank")
# As deep as a record of ours is: the multipliers of an adapter of an earlier record.
_DEEPEST = 8


class MergedAdapter(NamedTuple):
    """One adapter of a merge; `multiplier` is a number, or numbers by name.

    `sha256` are the hashes of its files by name, with "" for a single file; `config` is the hash of the config next to
    it. `settings` are the settings on its path, as they are spelled there.
    """

    file: str
    multiplier: float | Mapping[str, float] | None
    sha256: Mapping[str, str]
    config: str | None
    settings: str


class MergedBase(NamedTuple):
    """The known facts about the base: `header` is the hash of its header, `sha256` are like those of an adapter."""

    file: str
    bytes: int | None
    dtypes: tuple[str, ...]
    header: str | None
    sha256: Mapping[str, str]


class MergeRecord(NamedTuple):
    """One merge.

    `base` is None where an older version recorded none, and `is_whole` says that all of it was read. `is_estimated`
    says that a later merge was undone with numbers that are not proved. `folded_in` are element types, by the ones that
    changed weights were written in.
    """

    version: str
    base: MergedBase | None
    adapters: tuple[MergedAdapter, ...]
    options: Mapping[str, Any]
    is_whole: bool = True
    is_estimated: bool = False
    folded_in: Mapping[str, str] = MappingProxyType({})


def merge_records(metadata: Mapping[str, str]) -> list[MergeRecord]:
    """Return the merges that made a model, the first one first; none if there was none."""
    last = _object(metadata)
    if last is None:
        return []
    records = [_record(one) for one in (*_list(last.get(EARLIER)), last)]
    return [record for record in records if record is not None]


def earlier_records(metadata: Mapping[str, str]) -> list[Any]:
    """Return the value of "earlier" for another merge into this base: its own earlier records, and its last one.

    A record in another format is kept as its text.
    """
    text = metadata.get(MERGED_KEY)
    if text is None:
        return []
    last = _object(metadata)
    if last is None:
        return [text]
    own = {name: value for name, value in last.items() if name != EARLIER}
    return [*_list(last.get(EARLIER)), own]


def record_before(metadata: Mapping[str, str], estimated: bool = False) -> str | None:
    """Return the value of the key before the last merge; None if there was none.

    If numbers may be `estimated`, it says so, since the merge before may have written others.
    """
    last = _object(metadata)
    earlier = _list(last.get(EARLIER)) if last else []
    if not earlier:
        return None
    before = earlier[-1]
    if not isinstance(before, dict):
        return str(before)
    marked = {**before, ESTIMATED: True} if estimated else before
    return json.dumps({**marked, EARLIER: earlier[:-1]} if earlier[:-1] else marked, separators=(",", ":"))


def undone_metadata(metadata: Mapping[str, str], estimated: bool) -> dict[str, str]:
    """Return a merged file's metadata from before the last merge, except hashes that the merge dropped.

    If numbers may be `estimated`, the undone merge gets a key of its own.
    """
    before, last = record_before(metadata, estimated), _object(metadata) or {}
    kept = {key: value for key, value in metadata.items() if key != MERGED_KEY}
    undone = {name: value for name, value in last.items() if name != EARLIER}
    if estimated:
        kept[UNDONE_KEY] = json.dumps(undone, separators=(",", ":"))
    return kept if before is None else {**kept, MERGED_KEY: before}


def as_record(record: MergeRecord) -> dict[str, Any]:
    """Return the merge in the form of `info --json`."""
    return {
        "version": record.version,
        "base": record.base.file if record.base else None,
        "adapters": [
            {"file": one.file, "multiplier": one.multiplier, "sha256": one.sha256.get("", dict(one.sha256) or None)}
            for one in record.adapters
        ],
    }


def combined_record(metadata: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the record of an adapter's combination from others, as in `info --json`; None without one."""
    found = _object(metadata, COMBINED_KEY)
    if found is None:
        return None
    inputs = [one for one in map(_adapter, _list(found.get("inputs"))) if one is not None]
    rule, method = found.get("rule"), found.get("method")
    return {
        "version": _text(found.get("version")),
        "verb": _text(found.get("verb")),
        "inputs": [
            {"file": one.file, "settings": one.settings, "sha256": one.sha256.get("", dict(one.sha256) or None)}
            for one in inputs
        ],
        "rule": {name: rule[name] for name in RULES if _is_number(rule.get(name))} if isinstance(rule, dict) else {},
        "method": _text(method.get("name")) or None if isinstance(method, dict) else None,
        "dtype": _text(found.get("dtype")),
        **{name: json_number(found.get(name)) for name in ("error", "rounding")},
    }


def _object(metadata: Mapping[str, str], key: str = MERGED_KEY) -> dict[str, Any] | None:
    try:
        found = parse_json(metadata.get(key, "null"))
    except ValueError:
        return None
    return found if isinstance(found, dict) and is_shallow(found, _DEEPEST) else None


def _record(value: Any) -> MergeRecord | None:
    if not isinstance(value, dict):
        return None
    named = _list(value.get(ADAPTERS))
    adapters = [_adapter(one) for one in named]
    options = value.get(OPTIONS, {})
    texts = [one.get(key, "") for one in named if isinstance(one, dict) for key in (CONFIG, SETTINGS)]
    return MergeRecord(
        _text(value.get("version")),
        _base(value.get(BASE)),
        tuple(one for one in adapters if one is not None),
        options if isinstance(options, dict) else {},
        None not in adapters and isinstance(options, dict) and all(isinstance(text, str) for text in texts),
        bool(value.get(ESTIMATED)),
        _texts(value.get(FOLDED_IN)),
    )


def _adapter(value: Any) -> MergedAdapter | None:
    if not isinstance(value, dict) or not isinstance(value.get(FILE), str):
        return None
    multiplier = value.get(MULTIPLIER)
    numbers = {k: v for k, v in multiplier.items() if _is_number(v)} if isinstance(multiplier, dict) else None
    config = value.get(CONFIG)
    return MergedAdapter(
        value[FILE],
        multiplier if _is_number(multiplier) else numbers,
        hashes_of(value.get(SHA256)),
        config if isinstance(config, str) else None,
        _text(value.get(SETTINGS)),
    )


def _base(value: Any) -> MergedBase | None:
    if not isinstance(value, dict) or not isinstance(value.get(FILE), str):
        return None
    size, dtypes, header = value.get("bytes"), value.get("dtypes"), value.get(HEADER)
    return MergedBase(
        value[FILE],
        size if isinstance(size, int) and not isinstance(size, bool) else None,
        tuple(dtypes) if isinstance(dtypes, dict) else (),
        header if isinstance(header, str) else None,
        hashes_of(value.get(SHA256)),
    )


def hashes_of(value: Any) -> Mapping[str, str]:
    """Return the hashes of files by name, "" for a single file, from the form in a record."""
    if isinstance(value, str):
        return {"": value}
    return _texts(value)


def _is_number(value: Any) -> bool:
    """Return True for a number that a multiplier can be: a finite one that a float holds."""
    return json_number(value) is not None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _texts(value: Any) -> dict[str, str]:
    return {name: one for name, one in value.items() if isinstance(one, str)} if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
