"""What a command says of an exception that ends it, or a part of it."""

from lora_inspect.errors import LoraInspectError

# What may be wrong with a single file and leaves the others readable.
OF_A_FILE = (LoraInspectError, OSError)


def sentence_of(error: Exception) -> str:
    """Our own sentence, or one about the system's."""
    if isinstance(error, OSError):
        return f"{error.filename or 'a file'}: {error.strerror or error}; check the path and its rights."
    return str(error)
