"""The training networks: what a trainer names as its `network_module`.

The same package is importable as `lora_inspect.networks`, for trainers that own a folder called `networks`.
"""

from lora_inspect.maths.torch_threads import wait_briefly

wait_briefly()
