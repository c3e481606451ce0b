"""What a program that calls us may have set in torch for itself, each as a block that puts it back."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch


@contextmanager
def _set(setter: Callable[[Any], Any], value: Any, before: Any) -> Iterator[None]:
    setter(value)
    try:
        yield
    finally:
        setter(before)


# Those under which everything is as it is without them: "meta" stands for any device but the CPU.
PLACES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "default device meta": lambda: _set(torch.set_default_device, "meta", None),
    "in a block of the device meta": lambda: torch.device("meta"),
    "default dtype float16": lambda: _set(torch.set_default_dtype, torch.float16, torch.float32),
    "default dtype bfloat16": lambda: _set(torch.set_default_dtype, torch.bfloat16, torch.float32),
    "default dtype float64": lambda: _set(torch.set_default_dtype, torch.float64, torch.float32),
}
# Those that are meant for forwards, and must not be felt elsewhere.
PRODUCTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "products of medium precision": lambda: _set(torch.set_float32_matmul_precision, "medium", "highest"),
}
MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "deterministic algorithms": lambda: _set(torch.use_deterministic_algorithms, True, False),
}
EVERY = PLACES | PRODUCTS | MODES
