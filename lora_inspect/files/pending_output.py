"""An output while it is made, and how what is complete of it leaves."""

import os

from lora_inspect.files.borrowing import Borrowing


class MadeOutput:
    """An output on its way: `path` is where it is made, which is its own place on a disk."""

    def __init__(self, path: str) -> None:
        self.path = path

    @property
    def bytes(self) -> int:
        """The size of what has arrived."""
        if os.path.isfile(self.path):
            return os.path.getsize(self.path)
        return sum(os.path.getsize(os.path.join(at, name)) for at, _, names in os.walk(self.path) for name in names)

    def borrowing(self) -> Borrowing | None:
        """What of a file need not be made here, as the store has it; None where all has to be."""
        return None

    def send(self, file: str, borrowing: Borrowing | None = None) -> None:
        """Takes a file of the output that will not change any more."""
