"""The one exception that a user is meant to read."""

from lora_inspect.printable import SENTENCE, shortened


class LoraInspectError(Exception):
    """A file or a request that is refused: one sentence with the file, the key, what was expected and the way out."""

    def __str__(self) -> str:
        return shortened(super().__str__(), SENTENCE)
