"""The limit on the size of an output, which keeps a small input from becoming a large file unasked."""

import math

from lora_inspect.errors import RefusedError

_TIMES, _FREE_BYTES = 16, 64 << 20


class Growth:
    """A limit on an output's tensors: it refuses the one that makes the output too large.

    The limit is 64 MB, or 16 times the tensors of the input if that is more; `allowed` lifts it.
    """

    def __init__(self, path: str, input_bytes: int, allowed: bool) -> None:
        self._path = path
        self._input_bytes = input_bytes
        self._limit = math.inf if allowed else max(_TIMES * input_bytes, _FREE_BYTES)
        self._taken = 0

    def take(self, nbytes: int, what: str) -> None:
        """Count `nbytes` for `what`; raise LoraInspectError if that is too much."""
        self.refuse_more(nbytes, what)
        self._taken += nbytes

    def refuse_more(self, nbytes: int, what: str) -> None:
        """Raise LoraInspectError if `nbytes` more for `what` would be too much."""
        total = self._taken + nbytes
        if total > self._limit:
            raise RefusedError(
                self._path,
                f"with {what} the output would hold {total:,} bytes of tensors, over {_TIMES} times the "
                f"{self._input_bytes:,} of the input",
                "give --allow-growth to accept that",
            )
