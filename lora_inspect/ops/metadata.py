"""The metadata of a file, shown and edited; an edit keeps the bytes of tensors and the meaning of the file."""

import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

from lora_inspect.editing.edit import Edit, MetadataChange, changes, missing_key
from lora_inspect.editing.editable import check_own_place, editable_file, files_of, hashes_beside, is_gguf, known_hashes
from lora_inspect.editing.meaning import check_elsewhere, deciding_keys, settled_meaning
from lora_inspect.errors import RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.checkpoint import Checkpoint, open_checkpoint
from lora_inspect.files.outputs import check_output, file_output
from lora_inspect.files.safetensors.edit_in_place import (
    Editing,
    Headed,
    editing,
    read_headed,
    repair,
    write_anew,
    write_in_place,
)
from lora_inspect.files.temp_files import remove_leftovers
from lora_inspect.progress import PartialProgress, Progress, silent
from lora_inspect.reading.metadata.sidecars import Sidecars, trigger_words_of


class MetadataReport(NamedTuple):
    """The metadata of a file, the room for more of it in place, and its hashes on request."""

    path: str
    metadata: dict[str, str]
    room: int | None
    hashes: dict[str, str]


def show(path: str, hashes: bool = False, progress: Progress = silent) -> list[MetadataReport]:
    """Return the metadata of each file at `path`, after repairing a header that a dead run left.

    With `hashes`, `progress` counts the bytes of the files, once.
    """
    repair(path)
    checkpoint = open_checkpoint(path)
    return [_reported(checkpoint, file, hashes, progress) for file in files_of(path, checkpoint)]


def get(path: str, key: str) -> str:
    """Return the value of one key; raise LoraInspectError with the nearest key if there is none."""
    repair(path)
    checkpoint = open_checkpoint(path)
    found = [checkpoint.file_metadata[file] for file in files_of(path, checkpoint)]
    for metadata in found:
        if key in metadata:
            return metadata[key]
    raise missing_key(path, key, checkpoint.metadata)


def trigger_words(path: str) -> tuple[tuple[str, ...], str | None]:
    """Return the trigger words of a file, and the name of their sidecar, or None if the metadata has them.

    Raises LoraInspectError if neither states any.
    """
    repair(path)
    checkpoint = open_checkpoint(path)
    words, source = trigger_words_of(checkpoint.metadata, Sidecars(checkpoint.files, checkpoint.root))
    if not words:
        raise RefusedError(
            path,
            "neither its metadata nor a file beside it states trigger words",
            "set them with `lora-inspect metadata set --trigger-words`",
        )
    return words, source


def _reported(checkpoint: Checkpoint, file: str, hashes: bool, progress: Progress) -> MetadataReport:
    metadata = checkpoint.file_metadata[file]
    if is_gguf(file):
        return MetadataReport(file, metadata, None, {})
    headed = read_headed(file)
    share = PartialProgress(progress, headed.identity.bytes)
    share.work *= 2
    return MetadataReport(file, metadata, headed.room, known_hashes(headed, share.done) if hashes else {})


class EditOutput(NamedTuple):
    """The output of an edit, and its permissions.

    Without an `output` a new file replaces the input, or `in_place` rewrites only its header. `other_meaning` allows a
    change of how the file is read, `hashes` adds missing hashes, and `dry_run` writes nothing.
    """

    output: str | None = None
    force: bool = False
    in_place: bool = False
    other_meaning: bool = False
    hashes: bool = False
    dry_run: bool = False


class Edited(NamedTuple):
    """The input, the output, the changes, and clauses on changes of the meaning."""

    path: str
    output: str
    changes: tuple[MetadataChange, ...]
    meaning: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def edit(
    path: str,
    change: Edit,
    target: EditOutput = EditOutput(),  # noqa: B008 (frozen)
    progress: Progress = silent,
) -> Edited:
    """Write the file with the metadata that `change` makes of its own.

    `progress` counts the bytes of the file, once. Raises LoraInspectError for a change of meaning without permission,
    and for anything but a single writable .safetensors file.
    """

    def settle(checkpoint: Checkpoint, headed: Headed) -> _SettledEdit:
        after = change(headed.metadata, headed.file)
        made = changes(headed.metadata, after)
        return _SettledEdit(after, settled_meaning(checkpoint, headed, made, target.other_meaning))

    return _edited(path, settle, target, progress)


def strip(
    path: str,
    everything: bool = False,
    target: EditOutput = EditOutput(),  # noqa: B008 (frozen)
    progress: Progress = silent,
) -> Edited:
    """Write the file without the metadata that reading does not need, or without any; see `edit`."""

    def settle(checkpoint: Checkpoint, headed: Headed) -> _SettledEdit:
        made = changes(headed.metadata, {})
        if everything:
            return _SettledEdit({}, settled_meaning(checkpoint, headed, made, allowed=True))
        kept = sorted(deciding_keys(checkpoint, headed, made))
        return _SettledEdit({key: headed.metadata[key] for key in kept}, kept=tuple(kept))

    return _edited(path, settle, target, progress)


class _SettledEdit(NamedTuple):
    """The metadata to write, the changes of meaning, and the keys that the meaning depends on."""

    metadata: dict[str, str]
    meaning: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()


def _edited(
    path: str, settle: Callable[[Checkpoint, Headed], _SettledEdit], target: EditOutput, progress: Progress
) -> Edited:
    """Read, settle and write the file; no other run can come between if it replaces itself."""
    file = editable_file(path)
    replaces = target.output is None
    output = file if target.output is None else file_output(target.output, os.path.basename(file), [file])
    notes = [] if target.dry_run else list(remove_leftovers(output))
    if replaces:
        notes += check_own_place(file, target.in_place)
    else:
        check_output(output, [file], target.force)
    with editing(file) if replaces and not target.dry_run else nullcontext() as own:
        checkpoint, headed = open_checkpoint(path), read_headed(file)
        share = PartialProgress(progress, headed.identity.bytes)
        share.work *= 2 * target.hashes + (not target.in_place)
        settled = settle(checkpoint, headed)
        after = settled.metadata | hashes_beside(headed, settled.metadata, target.hashes, share.done)
        if not target.dry_run:
            _write(checkpoint, headed, after, output, target, own, share.done)
    made = changes(headed.metadata, after)
    return Edited(path, output, made, settled.meaning, settled.kept, tuple(notes))


def _write(
    checkpoint: Checkpoint,
    headed: Headed,
    after: Mapping[str, str],
    output: str,
    target: EditOutput,
    own: Editing | None,
    progress: Progress,
) -> None:
    if output == headed.file and after == headed.metadata:
        return
    if target.in_place and own:
        write_in_place(headed, after, own)
        return
    is_moved = output != headed.file and not target.other_meaning
    prove = partial(check_elsewhere, checkpoint, headed, after) if is_moved else None
    write_anew(headed, after, output, target.force, progress, prove)


def as_json(edited: Edited) -> dict[str, Any]:
    """Return the record of an edit that scripts rely on."""
    return {
        "schema": "lora-inspect/metadata-edit/1",
        "path": edited.path,
        "output": edited.output,
        "changes": [one._asdict() for one in edited.changes],
        "meaning": list(edited.meaning),
        "kept": list(edited.kept),
        "notes": list(edited.notes),
    }
