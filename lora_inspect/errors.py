"""The one exception that a user is meant to read."""

from lora_inspect.printable import printable


class LoraInspectError(Exception):
    """A file or a request that is refused: one sentence with the file, the key, what was expected and the way out."""

    def __str__(self) -> str:
        return printable(super().__str__())
