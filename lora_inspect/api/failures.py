"""How a call of the API fails: in a sentence, whatever a file or the system did."""

from collections.abc import Iterator
from contextlib import contextmanager

from lora_inspect.errors import LoraInspectError, of_system

__all__ = ["LoraInspectError", "in_a_sentence"]


@contextmanager
def in_a_sentence() -> Iterator[None]:
    """Raises LoraInspectError for an error of the system, which stays its cause; serves as a decorator as well."""
    try:
        yield
    except OSError as error:
        raise LoraInspectError(of_system(error)) from error
