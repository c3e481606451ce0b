"""Activation functions by the names that transformers gives them in `ACT2FN`. Tensor methods alone.

Those with parameters or numbers of their own that may be set otherwise are not among them.
"""

from collections.abc import Callable
from math import pi, sqrt
from typing import Any


def _gelu(values: Any) -> Any:
    """x · Φ(x)."""
    return values * 0.5 * (1.0 + (values / sqrt(2.0)).erf())


def _gelu_tanh(values: Any) -> Any:
    """The approximation of x · Φ(x) by a hyperbolic tangent."""
    return values * 0.5 * (1.0 + ((values + 0.044715 * values**3) * sqrt(2.0 / pi)).tanh())


def _mish(values: Any) -> Any:
    """x · tanh(log(1 + exp x))."""
    return values * _softplus(values).tanh()


def _softplus(values: Any) -> Any:
    return values.clamp(min=0) + (-values.abs()).exp().log1p()


ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "linear": lambda values: values,
    "relu": lambda values: values.clamp(min=0),
    "relu2": lambda values: values.clamp(min=0).square(),
    "relu6": lambda values: values.clamp(min=0, max=6),
    "leaky_relu": lambda values: values.clamp(min=0) + 0.01 * values.clamp(max=0),
    "sigmoid": lambda values: values.sigmoid(),
    "tanh": lambda values: values.tanh(),
    "silu": lambda values: values * values.sigmoid(),
    "swish": lambda values: values * values.sigmoid(),
    "quick_gelu": lambda values: values * (1.702 * values).sigmoid(),
    "gelu": _gelu,
    "gelu_python": _gelu,
    "gelu_new": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "mish": _mish,
}
