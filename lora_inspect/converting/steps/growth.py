"""How large an output may become beside its input, checked before memory is taken."""

import math

from lora_inspect.errors import LoraInspectError

_TIMES, _FREE_BYTES = 16, 64 << 20


class Growth:
    """Counts the bytes of an output's tensors, and refuses the one that makes it both large and much larger.

    Up to 64 MB, or 16 times the tensors of the input, nothing is said; `allowed` lifts the limit.
    """

    def __init__(self, path: str, input_bytes: int, allowed: bool) -> None:
        self._path = path
        self._input_bytes = input_bytes
        self._limit = math.inf if allowed else max(_TIMES * input_bytes, _FREE_BYTES)
        self._taken = 0

    def take(self, nbytes: int, what: str) -> None:
        """Counts `nbytes` for `what`; raises LoraInspectError where that is too much."""
        self.refuse_more(nbytes, what)
        self._taken += nbytes

    def refuse_more(self, nbytes: int, what: str) -> None:
        """Raises LoraInspectError where `nbytes` more for `what` would be too much."""
        total = self._taken + nbytes
        if total > self._limit:
            raise LoraInspectError(
                f"{self._path}: with {what} the output would hold {total:,} bytes of tensors, over "
                f"{_TIMES} times the {self._input_bytes:,} of the input; accept that with --allow-growth."
            )
