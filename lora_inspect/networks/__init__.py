"""The top-level `networks` package under a name that no trainer's own `networks` folder can shadow."""

from pathlib import Path

from lora_inspect.maths.torch_threads import wait_briefly

__path__ = [str(Path(__file__).resolve().parents[2] / "networks")]

wait_briefly()
