"""What a program that calls us may have set in torch for itself, each as a block that puts it back."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import pytest
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


def at_once(states: dict[str, Callable[[], AbstractContextManager[Any]]]) -> Callable[[], AbstractContextManager[Any]]:
    """All of them, one in the other: of defaults the last one counts."""

    @contextmanager
    def entered() -> Iterator[None]:
        with ExitStack() as stack:
            for state in states.values():
                stack.enter_context(state())
            yield

    return entered


def in_each(*groups: dict[str, Callable[[], AbstractContextManager[Any]]]) -> Callable[[Any], Any]:
    """A parametrisation of a test over all states at once, and in the slow run over each by itself."""
    states = {name: state for group in groups for name, state in group.items()}
    alone = [pytest.param(state, id=name, marks=pytest.mark.slow) for name, state in states.items()]
    return pytest.mark.parametrize("state", [pytest.param(at_once(states), id="all at once"), *alone])
