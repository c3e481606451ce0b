"""The outputs that the command has completed, for the error of a result that cannot be printed after that."""

from collections.abc import Iterable

from lora_inspect.errors import CouldNotWorkError

_complete: list[str] = []


def set_complete_outputs(paths: Iterable[str]) -> None:
    """Set the paths of the outputs that are in their place; a command begins with none."""
    _complete[:] = paths


def explain_unprinted(error: OSError) -> OSError:
    """Return the error for a standard output that refuses the result; it names the complete outputs.

    Without outputs, and if the reader of a pipe left, this is the system's error.
    """
    if not _complete or isinstance(error, BrokenPipeError):
        return error
    first, *others = _complete
    which = f"it and {len(others)} more are complete" if others else "it is complete"
    return CouldNotWorkError(
        first,
        f"{which}, but the standard output does not take the result ({error.strerror})",
        "send the standard output elsewhere",
    )
