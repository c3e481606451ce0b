"""What the metadata of a file says."""

from lora_inspect.editing.edit import missing_key
from lora_inspect.editing.editable import files_of, is_gguf, known_hashes
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.checkpoint import Checkpoint, open_checkpoint
from lora_inspect.files.safetensors.edit_in_place import put_right, read_headed
from lora_inspect.progress import Progress, Share, silent


class Told(NamedTuple):
    """What a file says of itself, how much longer that may become where it stands, and its hashes if they are asked."""

    path: str
    metadata: dict[str, str]
    room: int | None
    hashes: dict[str, str]


def show(path: str, hashes: bool = False, progress: Progress = silent) -> list[Told]:
    """The metadata of each file at `path`, after what a run that died has left of a header is put right.

    With `hashes`, `progress` is told of the bytes of the files, once.
    """
    put_right(path)
    checkpoint = open_checkpoint(path)
    return [_told(checkpoint, file, hashes, progress) for file in files_of(path, checkpoint)]


def get(path: str, key: str) -> str:
    """The value of one key; LoraInspectError with the nearest one where there is none."""
    put_right(path)
    checkpoint = open_checkpoint(path)
    found = [checkpoint.file_metadata[file] for file in files_of(path, checkpoint)]
    for metadata in found:
        if key in metadata:
            return metadata[key]
    raise missing_key(path, key, checkpoint.metadata)


def _told(checkpoint: Checkpoint, file: str, hashes: bool, progress: Progress) -> Told:
    metadata = checkpoint.file_metadata[file]
    if is_gguf(file):
        return Told(file, metadata, None, {})
    headed = read_headed(file)
    share = Share(progress, headed.identity.bytes)
    share.work *= 2
    return Told(file, metadata, headed.room, known_hashes(headed, share.done) if hashes else {})
