"""The average of adapters tensor by tensor, as musubi-tuner and other trainers average the files of one training.

The mean of factors is not the mean of changes: (Σ w B)(Σ w A) has products of one file's B with another one's A. Along
one training they are near. DoRA needs no base for it, as magnitudes are averaged as well.
"""

import math
from collections.abc import Iterable, Sequence
from functools import reduce

import numpy
from numpy.typing import NDArray

from lora_inspect.algebra.alignment import OutputModule
from lora_inspect.algebra.changes import check_finite, factors_of, sum_of, thin_rank
from lora_inspect.algebra.linear.core import shared_cores
from lora_inspect.algebra.linear.factors import Array, Factors
from lora_inspect.algebra.linear.module_threads import made_in_order
from lora_inspect.algebra.rescaling import Rounding, bytes_of_numbers
from lora_inspect.algorithms import lora
from lora_inspect.errors import RefusedError
from lora_inspect.files.hashes import are_same_tensors
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.files.safetensors.writer import renamed
from lora_inspect.maths.stored_numbers import FLOATS, load
from lora_inspect.progress import Progress
from lora_inspect.reading.adapter import Adapter


def check_alike(adapters: Sequence[Adapter]) -> None:
    """Raises LoraInspectError where the files have other tensors, scales or algorithms, so that no factors pair up."""
    first = adapters[0]
    ours = {c.module.key: (c.algorithm.name, c.known_scale) for c in first.contributions}
    for other in adapters[1:]:
        tensors, theirs = other.checkpoint.tensors, first.checkpoint.tensors
        wrong = next((key for key in (*tensors, *theirs) if _shape(tensors, key) != _shape(theirs, key)), None)
        if wrong is not None:
            raise _unlike(other, f"{wrong} is {_shape(tensors, wrong)}, but {_shape(theirs, wrong)}", first)
        for contribution in other.contributions:
            found = (contribution.algorithm.name, contribution.known_scale)
            if found != ours.get(contribution.module.key, found):
                key = contribution.module.key
                raise _unlike(other, f"{key} has {_words(found)}, but {_words(ours[key])}", first)


def _shape(tensors: dict[str, TensorInfo], key: str) -> str:
    return str(list(tensors[key].shape)) if key in tensors else "missing"


def _words(found: tuple[str, float]) -> str:
    return f"{found[0]} with scale {found[1]:g}"


def _unlike(other: Adapter, what: str, first: Adapter) -> RefusedError:
    return RefusedError(
        other.checkpoint.path,
        f"{what} in {first.checkpoint.path}, so their factors have no average",
        "leave --of factors out",
    )


def averaged_bytes(
    info: TensorInfo, others: Sequence[TensorInfo], weights: Sequence[float], dtype: str, rounding: Rounding
) -> memoryview | bytes:
    """The bytes of the average of one tensor of each file in a type; those of whole numbers have to be the same.

    Raises LoraInspectError where they are not, and for numbers that are not finite.
    """
    if all(are_same_tensors(info, one) for one in others) and dtype == info.dtype:
        if info.dtype in FLOATS:
            check_finite(info, load(info))
        return b"".join(renamed(info, info.name).chunks())
    if info.dtype not in FLOATS:
        raise RefusedError(info.file, f"{info.name} differs from that in {others[0].file}", "leave --of factors out")
    return bytes_of_numbers(info, _mean(weights, map(load, (info, *others))), dtype, rounding)


def ways_apart(modules: Sequence[OutputModule], progress: Progress) -> float | None:
    """‖mean of changes - change of mean factors‖ / ‖mean of changes‖ over all modules.

    None where a module has no factors that pair up. The multipliers of the terms are the weights.
    """
    squares = [0.0, 0.0]
    progress(0)
    for found in made_in_order(_apart, modules):
        progress(1)
        if found is None:
            return None
        squares = [total + own for total, own in zip(squares, found, strict=True)]
    return math.sqrt(squares[0] / squares[1]) if squares[1] else None


def _apart(module: OutputModule) -> tuple[float, float] | None:
    """The squared norms of the difference and of the mean; None where factors do not pair up or are not finite."""
    contributions = [term.contribution for term in module.terms]
    kinds = {(c.algorithm.name, tuple(c.shapes.items()), c.scale) for c in contributions}
    is_one = len(kinds) == 1 and contributions[0].algorithm.name == lora.ALGORITHM.name
    if not is_one or any(term.moves for term in module.terms) or thin_rank(contributions[0]) is None:
        return None
    read = [factors_of(one) for one in contributions]
    weights = [term.multiplier for term in module.terms]
    up, down = (_mean(weights, parts) for parts in ([one.up for one in read], [one.down for one in read]))
    mean = Factors.of(up, down, read[0].shape, contributions[0].known_scale)
    try:
        of_changes, of_factors = shared_cores([sum_of(module), mean])
    except FloatingPointError:  # the average itself is refused
        return None
    return float(numpy.square(of_changes - of_factors).sum()), float(numpy.square(of_changes).sum())


def _mean(weights: Sequence[float], parts: Iterable[Array]) -> NDArray[numpy.float64]:
    weighted = (weight * part.astype(numpy.float64) for weight, part in zip(weights, parts, strict=True))
    return reduce(numpy.add, weighted)
