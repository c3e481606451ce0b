"""What an algorithm is to the rest of the program."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from lora_inspect.files.header import TensorInfo

Factors = Mapping[str, TensorInfo]
# (out features, in features·kernel) of a weight, None for what is not known.
Features = tuple[int | None, int | None]


class Formula(NamedTuple):
    """How an algorithm is computed.

    `check(factors)` returns what is wrong with the shapes, or None. `rank(factors)` and `delta_shape(factors)`
    (the shape of the weight that they change) read shapes alone. `flatten(tensors)` takes tensors by role and
    returns the pair (up, down), of shapes (out, rank) and (rank, in·kernel), whose product is the unscaled
    delta as a matrix.
    """

    check: Callable[[Factors], str | None]
    rank: Callable[[Factors], int]
    delta_shape: Callable[[Factors], tuple[int, ...]]
    flatten: Callable[[Mapping[str, Any]], tuple[Any, Any]]


class Algorithm(NamedTuple):
    """One algorithm: how its tensors are spelled, and its formula.

    `suffixes` maps the end of a key to the role of the tensor; `required` are the roles without which a module
    is incomplete. An algorithm without a formula is recognised by its tensors, so that a file is refused by the
    right name, but not computed; `features(factors)` says what the shapes tell of the weight that it changes.
    """

    name: str
    title: str
    suffixes: Mapping[str, str]
    required: tuple[str, ...] = ()
    formula: Formula | None = None
    features: Callable[[Factors], Features] | None = None
