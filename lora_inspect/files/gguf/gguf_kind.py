"""Whether a GGUF file is an adapter, by the first keys of its header: models are large, and of no use here."""

from lora_inspect.errors import LoraInspectError
from lora_inspect.files.gguf.gguf_format import ADAPTER, MAGIC, TYPE_KEY, VERSIONS
from lora_inspect.files.gguf.gguf_metadata import Cursor, first_value
from lora_inspect.files.input_file import InputFile

ENDING = ".gguf"


def is_gguf_adapter(path: str) -> bool:
    """Whether a file of this name says that it is an adapter, or ends before it says anything.

    A model says what it is among its first keys; a file that is cut before that is for its reader to name.
    """
    if not path.lower().endswith(ENDING):
        return False
    try:
        with InputFile(path) as source:
            if source.read(0, min(len(MAGIC), source.identity.bytes)) != MAGIC:
                return False
            return _kind(source) == ADAPTER
    except LoraInspectError:
        return True


def kind_of_gguf(path: str) -> object:
    """What a GGUF file says that it is, None where it says nothing; LoraInspectError where it ends before."""
    with InputFile(path) as source:
        return _kind(source)


def _kind(source: InputFile) -> object:
    cursor = Cursor(source, len(MAGIC))
    if cursor.number("I") not in VERSIONS:
        return None
    cursor.number("Q")
    said: object = first_value(cursor, cursor.number("Q"), TYPE_KEY)
    return said
