"""The place of this process among the processes that torchrun starts.

Standard library only.
"""

import os
import sys

from lora_inspect.fast_namedtuple import NamedTuple

# What torchrun sets for each of its processes: a run, its number from 0 on, of how many, and of how many on a machine.
_RUN, _NUMBER, _OF, _HERE = "TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"


class Rank(NamedTuple):
    """Process `number`, from 0 on, of the `of` that torchrun started; `here` of them are on this machine."""

    number: int
    of: int
    here: int

    @property
    def is_first(self) -> bool:
        """True for the process that decides and prints."""
        return self.number == 0


def launched() -> Rank | None:
    """Return the place of this process, or None if torchrun did not start it.

    Processes that a trainer starts inherit its environment, and do not count. Only the module that torchrun runs with
    `-m lora_inspect` counts, not the command `lora-inspect`.
    """
    if _RUN not in os.environ or os.path.basename(sys.argv[0]) != "__main__.py":
        return None
    try:
        return Rank(*(int(os.environ[name]) for name in (_NUMBER, _OF, _HERE)))
    except (KeyError, ValueError):
        return None
