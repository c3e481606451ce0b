"""The edits of a metadata, each from a map of strings to a map of strings. Standard library only."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from lora_inspect.editing.missing_key import missing_key
from lora_inspect.editing.values import check_values
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.hashes import HASH_KEYS

# What an edit makes of a metadata; `path` is the file that errors name.
Edit = Callable[[Mapping[str, str], str], dict[str, str]]


class Change(NamedTuple):
    """What a key said, and what it says now; None where it was not, or is not there."""

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
    """The edit that takes over what another file says, but for hashes of its tensors."""

    def copy(metadata: Mapping[str, str], path: str) -> dict[str, str]:
        for pattern in (*only, *but):
            if not _fitting(source, [pattern]):
                raise missing_key(source_path, pattern, source)
        asked = _fitting(source, only or ["*"]) - _fitting(source, but) - {*HASH_KEYS}
        return {**metadata, **{key: value for key, value in source.items() if key in asked}}

    return copy


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> tuple[Change, ...]:
    """What differs, in order of the keys."""
    keys = sorted(key for key in {*before, *after} if before.get(key) != after.get(key))
    return tuple(Change(key, before.get(key), after.get(key)) for key in keys)


def applied(metadata: Mapping[str, str], made: Iterable[Change]) -> dict[str, str]:
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
