"""Whether this process is one of those that torchrun starts, and which. Standard library only."""

import os
import sys

from lora_inspect.fast_namedtuple import NamedTuple

# What torchrun sets for each of its processes: a run, its number from 0 on, of how many, and of how many on a machine.
_RUN, _NUMBER, _OF, _HERE = "TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"


class Rank(NamedTuple):
    """The process `number`, from 0 on, of `of` that torchrun started; `here` are those on this machine."""

    number: int
    of: int
    here: int

    @property
    def is_first(self) -> bool:
        """Whether it is the one that decides and speaks."""
        return self.number == 0


def launched() -> Rank | None:
    """Which process this is; None where torchrun did not start it.

    What a trainer's process starts has its environment, and is no process of its own: only what torchrun runs with
    `-m lora_inspect` counts, not the command `lora-inspect`.
    """
    if _RUN not in os.environ or os.path.basename(sys.argv[0]) != "__main__.py":
        return None
    try:
        return Rank(*(int(os.environ[name]) for name in (_NUMBER, _OF, _HERE)))
    except (KeyError, ValueError):
        return None
