"""How much is spent on comparing what a file says with the names of its modules."""

# A step takes 25 to 55 ns on the processors it was measured on.
_ALL = 20_000_000


class Refused(ValueError):
    """A pattern that is not compared with names, and why."""


class Steps:
    """What may still be spent on the patterns of one file: about a second at most."""

    def __init__(self, left: int = _ALL) -> None:
        self._left = left

    def take(self, count: int) -> None:
        """Counts steps that are about to be taken; raises Refused where they are too many."""
        self._left -= count
        if self._left < 0:
            raise Refused("takes too long to compare with the names of all modules, with the others beside it")
