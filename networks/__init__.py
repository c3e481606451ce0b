"""The training networks: what a trainer names as its `network_module`, and `adapt` for a loop of one's own.

The same package is importable as `lora_inspect.networks`, for trainers that own a folder called `networks`.
"""

from lora_inspect.maths.torch_threads import wait_briefly

__all__ = ["adapt"]

wait_briefly()

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
