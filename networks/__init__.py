"""The training networks: modules for a trainer's `network_module`, and `adapt` for your own loop.

The same package is importable as `lora_inspect.networks`, for trainers that own a folder called `networks`.
"""

import os
import sys

from lora_inspect.maths.torch_threads import wait_briefly

__all__ = ["adapt"]

wait_briefly()


def _folders_in_front() -> list[str]:
    """Return the folders of this name that come before this package on Python's path.

    They are no regular packages, since Python would have imported those. The folder of sd-scripts is a regular package,
    and means its own modules.
    """
    own, found = os.path.dirname(os.path.realpath(__file__)), []
    for entry in sys.path:
        folder = os.path.join(os.path.abspath(entry), __name__)
        if os.path.realpath(folder) == own:
            break
        if os.path.isdir(folder):
            found.append(folder)
    return found


__path__ = [*_folders_in_front(), *__path__]

TYPE_CHECKING = False  # what checks types takes it for true
if TYPE_CHECKING:
    from .adapting import adapt
else:  # torch is loaded when the name is asked for, as the options of trainers are read without it

    def __getattr__(name: str) -> object:
        """Load `adapt`."""
        if name != "adapt":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from .adapting import adapt

        return adapt
