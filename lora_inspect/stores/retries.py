"""How often what failed is tried again, and when. Standard library only."""

import random

from lora_inspect.stores.store_failures import Transient, gave_up

TRIES = 6
# In seconds: the first pause, which doubles from one to the next, and the longest that a server may ask for.
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 120.0
# So many bytes that came after all make the next failure the first one again.
PROGRESS = 1 << 20


class Tries:
    """Counts the failures of one request for what lies at an `address`."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._failed = 0

    def pause(self, failure: Transient, came: int = 0) -> float:
        """How many seconds to wait for the next try after a failure before which so many bytes `came`.

        Raises LoraInspectError where there is none any more.
        """
        self._failed = 1 if came >= PROGRESS else self._failed + 1
        if self._failed == TRIES:
            raise gave_up(self._address, failure.why, TRIES) from None
        # Many that failed at the same time do not come back at the same time.
        own: float = FIRST_PAUSE * 2 ** (self._failed - 1) * random.uniform(0.5, 1)
        return min(max(own, failure.wait or 0), LONGEST_PAUSE)
