"""What an algorithm is to the rest of the program."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lora_inspect.checkpoint import TensorInfo

Factors = Mapping[str, TensorInfo]


@dataclass(frozen=True, slots=True)
class Algorithm:
    """One algorithm: how its tensors are spelled, what shapes they may have, and its formula.

    `suffixes` maps the end of a key to the role of the tensor. An algorithm without `flatten` is recognised
    by its tensors, so that a file is refused by the right name, but not computed.

    `required` are the roles without which a module is incomplete. `check(factors)` returns what is wrong with
    their shapes, or None. `rank(factors)` and `delta_shape(factors)` (the shape of the weight that they change)
    read shapes alone. `flatten(tensors)` takes tensors by role and returns the pair (up, down), of shapes
    (out, rank) and (rank, in·kernel), whose product is the unscaled delta as a matrix.
    """

    name: str
    title: str
    suffixes: Mapping[str, str]
    required: tuple[str, ...] = ()
    check: Callable[[Factors], str | None] | None = None
    rank: Callable[[Factors], int] | None = None
    delta_shape: Callable[[Factors], tuple[int, ...]] | None = None
    flatten: Callable[[Mapping[str, Any]], tuple[Any, Any]] | None = None
