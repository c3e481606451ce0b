"""What changes of a metadata make of a file's meaning: told, refused, or narrowed down to the keys that decide."""

from collections.abc import Mapping, Sequence

from lora_inspect.editing.deciding import tell_apart
from lora_inspect.editing.edit import Change, applied
from lora_inspect.editing.meaning import differences, meaning, under_any_name, with_metadata
from lora_inspect.errors import LoraInspectError
from lora_inspect.files.checkpoint import Checkpoint, open_checkpoint
from lora_inspect.files.safetensors.edit_in_place import Headed
from lora_inspect.sentences import listed, some


def settled_meaning(checkpoint: Checkpoint, headed: Headed, made: Sequence[Change], allowed: bool) -> tuple[str, ...]:
    """What the file means otherwise under the changes, in clauses; LoraInspectError where that is not allowed."""
    if not made:
        return ()
    after = meaning(with_metadata(checkpoint, headed.file, applied(headed.metadata, made)))
    found = differences(meaning(checkpoint), after)
    if found and not allowed:
        keys = some(deciding_keys(checkpoint, headed, made) or [one.key for one in made], 3)
        raise LoraInspectError(
            f"{headed.file}: {keys} decides how the file is read, and the change would make {_few(found)}; leave it "
            "out, or add --allow-other-meaning."
        )
    return tuple(found)


def check_elsewhere(checkpoint: Checkpoint, headed: Headed, metadata: Mapping[str, str], written: str) -> None:
    """Raises LoraInspectError where a copy with this metadata would be read otherwise, as far from its configuration.

    One of several shards is no copy of what is read.
    """
    if len(checkpoint.files) > 1:
        return
    meant = meaning(with_metadata(checkpoint, headed.file, metadata))
    found = differences(under_any_name(meant), under_any_name(meaning(open_checkpoint(written))))
    if found:
        raise LoraInspectError(
            f"{headed.file}: what lies beside it decides how it is read, and where the output goes it would have "
            f"{_few(found)}; name an output in the same folder, or copy the folder and leave -o out."
        )


def deciding_keys(checkpoint: Checkpoint, headed: Headed, made: Sequence[Change]) -> list[str]:
    """The keys of those changes that make another meaning, each beside all of the others that make none."""
    before, by_key = meaning(checkpoint), {one.key: one for one in made}

    def keeps(keys: Sequence[str]) -> bool:
        changed = applied(headed.metadata, [by_key[key] for key in keys])
        return meaning(with_metadata(checkpoint, headed.file, changed)) == before

    return tell_apart(list(by_key), keeps).deciding


def _few(clauses: Sequence[str], count: int = 3) -> str:
    more = len(clauses) - count
    return listed([*clauses[:count], *([f"{more} more"] if more > 0 else [])])
