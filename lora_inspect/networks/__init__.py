"""The top-level `networks` package under a name that no trainer's own `networks` folder can shadow."""

from importlib import import_module
from pathlib import Path
from typing import Any

from lora_inspect.errors import NeedsTorchError
from lora_inspect.maths.torch_threads import wait_briefly
from lora_inspect.version import torch_advice

_FOLDER = Path(__file__).resolve().parents[2] / "networks"
# Another package may have a folder of that name there.
if not (_FOLDER / "network_args.py").exists():
    raise NeedsTorchError(f"the training network needs torch, but {torch_advice()}.")
__path__ = [str(_FOLDER)]

wait_briefly()


def __getattr__(name: str) -> Any:
    """Load `adapt`, which needs torch."""
    if name != "adapt":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.adapting").adapt
