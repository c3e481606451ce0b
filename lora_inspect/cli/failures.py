"""What a command says of an exception that ends it, or a part of it."""

import os

from lora_inspect.cli import terminal
from lora_inspect.errors import LoraInspectError, of_system
from lora_inspect.version import __version__

# Set to anything at all, it has defects shown with their traceback.
DEBUG = "LORA_INSPECT_DEBUG"

# How torch and the loader of libraries say that memory was refused.
_NO_MEMORY = ("not enough memory", "allocate memory", "out of memory", "failed to map segment", "bad_alloc")


def sentence_of(error: Exception, path: str = "") -> str:
    """Our own sentence, or one about the system's error, or about a defect. `path` is the file that it came with."""
    if isinstance(error, LoraInspectError):
        return str(error)
    if isinstance(error, OSError):
        return of_system(error, path)
    about = path and f"{path}: "
    if _is_of_memory(error):
        return f"{about}there is not enough memory; close other programs, or use a machine that has more."
    if isinstance(error, ImportError):
        return f"{about}a library that lora-inspect needs cannot be loaded ({error}); install it again."
    return (
        f"{about}this is a defect of lora-inspect {__version__} ({type(error).__name__}: {error}); "
        f"report it with the command and the files' headers, and with what {DEBUG}=1 shows."
    )


def show_defect(error: Exception) -> None:
    """The traceback of an error that nobody foresaw, where the environment asks for it."""
    if os.environ.get(DEBUG) and not isinstance(error, (LoraInspectError, OSError)):
        from traceback import format_exception

        terminal.traceback("".join(format_exception(error)))


def _is_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or (
        isinstance(error, (RuntimeError, ImportError)) and any(words in str(error) for words in _NO_MEMORY)
    )
