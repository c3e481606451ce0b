"""How a call of the API goes: by whole products, whatever the program has set, and if it fails in a sentence."""

from collections.abc import Iterator
from contextlib import contextmanager

from lora_inspect.errors import LoraInspectError, of_system
from lora_inspect.maths.torch_threads import whole_products

__all__ = ["LoraInspectError", "in_a_sentence"]


@contextmanager
def in_a_sentence() -> Iterator[None]:
    """Raises LoraInspectError for an error of the system, which stays its cause; serves as a decorator as well."""
    try:
        with whole_products():
            yield
    except OSError as error:
        raise LoraInspectError(of_system(error)) from error
