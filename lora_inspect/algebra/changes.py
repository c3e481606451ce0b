"""The change of a contribution as factors with its scale folded in, by the same names for all algorithms.

Plain LoRA is read into its place in a sum. Every other algorithm with a change that is a product of thin factors has a
formula for them. The formulas of LoRA with Tucker cores, LoHa and LoKr use numpy, all others torch. The factors are
exact where r (m + n) < m n.
"""

from collections.abc import Sequence
from functools import reduce
from itertools import accumulate, pairwise
from math import prod
from typing import Any, Protocol

import numpy
from numpy.typing import NDArray

from lora_inspect.algebra.alignment import Term
from lora_inspect.algebra.linear.factors import Array, Factors, joined
from lora_inspect.algebra.linear.module_threads import Workspace
from lora_inspect.algebra.numpy_tensors import (
    NumpyTensor,
    check_floats,
    load_floats,
    no_numbers,
    read_tensors,
    refuse_not_finite,
)
from lora_inspect.algorithms import full, lora
from lora_inspect.algorithms.record import WEIGHT, Tensors
from lora_inspect.converting.target.target_algorithm import ARE_DIFFERENCES, is_kernel_open, is_kernel_untold
from lora_inspect.errors import RefusedError
from lora_inspect.maths.stored_numbers import decoded, encoded, load_into
from lora_inspect.reading.model.contribution import Contribution


class WeightChanges(Protocol):
    """The changes that adapters make of weights of a base."""

    notes: list[str]

    def has(self, term: Term) -> bool:
        """Return True if the base has the parameter that a term changes."""

    def shape(self, term: Term) -> tuple[int, ...]:
        """Return (out, in, *kernel) of the output's weight that a term changes, by the base."""

    def order_matters(self) -> list[str]:
        """Return the weights that another order of the adapters would leave different."""

    def difference(self, terms: Sequence[Term]) -> Array:
        """Return W' - W (out, in·kernel) of one weight of the output: the rows that any of its terms change."""


def needs_base(contribution: Contribution) -> bool:
    """Return True if the change depends on the weight or its shape: DoRA, rotations, and weights saved whole."""
    algorithm = contribution.algorithm
    return contribution.multiplies or algorithm.replaces or (algorithm.experts == 0 and None in contribution.shape)


def needs_torch(contribution: Contribution) -> bool:
    """Return True if only torch computes the change: it depends on the weight, or numpy has no formula."""
    if needs_base(contribution):
        return True
    algorithm, formula = contribution.algorithm, contribution.formula
    if algorithm.experts or algorithm.name in ARE_DIFFERENCES or _is_plain(contribution):
        return False
    return formula.inner is not None or formula.thin is None


def has_open_kernel(terms: Sequence[Term], with_any: bool = False) -> bool:
    """Return True if no term shows whether the layer is a Linear or a convolution, as with flattened kernels.

    The kernel is that of most convolutions, or `with_any` it may be any other one.
    """
    is_open = is_kernel_untold if with_any else is_kernel_open
    of_weight = [t.contribution for t in terms if t.multiplier and t.contribution.algorithm.parameter == WEIGHT]
    return bool(of_weight) and all(is_open(one.algorithm, one.shapes) for one in of_weight)


def thin_rank(contribution: Contribution) -> int | None:
    """Return the inner size of the factors of a change that is a thin product; None for any other one."""
    if contribution.magnitude or contribution.algorithm.experts or needs_base(contribution):
        return None
    if _is_plain(contribution):
        return contribution.known_rank
    formula = contribution.formula
    shapes = {role: info.shape for role, info in contribution.operands.items()}
    inner = formula.inner or (formula.thin if formula.low_rank else None)
    if inner:
        rank = inner(shapes)
    elif formula.low_rank:
        from lora_inspect.maths.torch_threads import load_torch

        load_torch()
        from lora_inspect.converting.steps.part import thin_rank as inner_size

        rank = inner_size(formula, shapes)
    else:
        return None
    rows, columns = matrix_shape(contribution.known_shape)
    return rank if rank is not None and rank * (rows + columns) < rows * columns else None


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """Return (out, in·kernel) of a weight of a shape."""
    return shape[0], prod(shape[1:])


def factors_of(contribution: Contribution) -> Factors:
    """Return the change of a thin contribution, in float32 or float64 as its factors are stored."""
    if not _is_plain(contribution):
        return _by_formula(contribution)
    up, down = lora.matrices({role: load_floats(info) for role, info in contribution.operands.items()})
    return Factors.of(up, down, contribution.known_shape, contribution.known_scale)


def _is_plain(contribution: Contribution) -> bool:
    formula = contribution.formula
    return (formula.low_rank, formula.rank) == (lora.matrices, lora.rank) and "mid" not in contribution.factors


def _by_formula(contribution: Contribution) -> Factors:
    shape, low_rank = contribution.known_shape, contribution.formula.low_rank
    if contribution.formula.inner:
        return _with_settings(contribution)
    tensors = read_tensors(contribution) if contribution.formula.thin else _read_by_torch(contribution)
    thin = low_rank(tensors) if low_rank else None
    if thin is None:
        raise ValueError(f"{contribution.module.key}: {contribution.algorithm.title} is no product of thin factors")
    up, down = (numpy.ascontiguousarray(factor) for factor in thin)
    return Factors.of(up, down, shape, contribution.known_scale)


def _read_by_torch(contribution: Contribution) -> Tensors:
    from lora_inspect.maths.torch_threads import load_torch

    load_torch()
    import torch

    from lora_inspect.converting.steps.part import read_operands

    return read_operands(contribution, torch.float64)


def _with_settings(contribution: Contribution) -> Factors:
    from lora_inspect.maths.torch_threads import load_torch

    load_torch()
    from lora_inspect.algebra.full_changes import product_of

    product = product_of(contribution)
    return Factors.of(product.up.numpy(), product.down.numpy(), contribution.known_shape, product.scale)


def sum_of(terms: Sequence[Term], kind: type = numpy.float64, workspace: Workspace | None = None) -> Factors:
    """Return the sum of a module's thin terms, in float64 or float32; plain LoRA uses memory of the `workspace`.

    The directions of each term follow those of the one before. Raises LoraInspectError where their shapes disagree.
    """
    terms = [term for term in terms if term.multiplier]
    if all(_is_plain(term.contribution) and not term.moves for term in terms):
        return _read_sum(terms, kind, workspace or Workspace())
    return joined(terms_of(terms), kind)


def _read_sum(terms: Sequence[Term], kind: type, workspace: Workspace) -> Factors:
    """Return the sum of plain LoRA without moved rows, each factor read into its place in the sum's factors."""
    parts = [term.contribution for term in terms]
    shapes, edges = [one.known_shape for one in parts], [0, *accumulate(one.known_rank for one in parts)]
    check_sizes(terms, shapes)
    rows, columns = matrix_shape(shapes[0])
    up = workspace.empty("up", (rows, edges[-1]), kind)
    down = workspace.empty("down", (edges[-1], columns), kind)
    weights = numpy.empty(edges[-1])
    for term, (first, last) in zip(terms, pairwise(edges), strict=True):
        for role, part in (("up", up[:, first:last]), ("down", down[first:last])):
            check_floats(info := term.contribution.operands[role])
            load_into(info, part)
        weights[first:last] = term.contribution.known_scale * term.multiplier
    return Factors(up, weights, down, max(shapes, key=len))


def terms_of(terms: Sequence[Term]) -> list[Factors]:
    """Return the change of each of a module's terms, all of them thin; LoraInspectError if their shapes disagree."""
    changes = [_moved(term) for term in terms]
    check_sizes(terms, [change.shape for change in changes])
    return changes


def shape_of(term: Term) -> tuple[int, ...]:
    """Return (out, in, *kernel) of the weight of the output that a term changes."""
    shape = term.contribution.known_shape
    return (term.moves[-1][1], *shape[1:]) if term.moves else shape


def check_sizes(terms: Sequence[Term], shapes: Sequence[tuple[int, ...]]) -> None:
    """Raise LoraInspectError if two terms of one module change weights of different sizes, or one turned."""
    sizes = [matrix_shape(shape) for shape in shapes]
    for term, shape, size in zip(terms, shapes, sizes, strict=True):
        if bool(term.contribution.algorithm.transposed) != bool(terms[0].contribution.algorithm.transposed):
            path, module = term.adapter.checkpoint.path, term.contribution.module
            raise RefusedError(
                path,
                f"{module.key} changes the weight of an embedding or of another layer, whose sides are the other way "
                f"round than those of {terms[0].contribution.module.key} in {terms[0].adapter.checkpoint.path}",
                f"give it 0 in one of them, for instance with {path}:{module.body}=0",
            )
        if size != sizes[0]:
            raise RefusedError(
                term.adapter.checkpoint.path,
                f"{term.contribution.module.key} changes a weight of {list(shape)}, but "
                f"{terms[0].contribution.module.key} in {terms[0].adapter.checkpoint.path} one of "
                f"{list(shapes[0])}",
                "name adapters of one model",
            )


def _moved(term: Term) -> Factors:
    change = factors_of(term.contribution).scaled(term.multiplier)
    for runs, rows in term.moves:
        change = change.in_rows(runs, rows)
    return change


def written_in(
    dtype: str, values: NDArray[numpy.floating[Any]], name: str, path: str
) -> tuple[NDArray[numpy.generic], Array]:
    """Return the codes of numbers in a type of an output, and the numbers that they represent, in the same shape.

    Raises LoraInspectError for numbers beyond the type, with the `name` of their tensor and the `path` of an input.
    """
    codes = encoded(values, dtype)
    written: Array = decoded(dtype, codes).reshape(values.shape)
    if not numpy.isfinite(written).all():
        raise beyond(dtype, name, path)
    return codes, written


def beyond(dtype: str, name: str, path: str) -> RefusedError:
    """Return the error of numbers beyond a type of an output."""
    return RefusedError(path, f"{name} would hold numbers beyond {dtype}", "give --dtype bf16 or --dtype fp32")


def whole_change(terms: Sequence[Term], base: WeightChanges | None) -> Array:
    """Return the sum of terms as a matrix (rows, columns) in float64.

    If a term depends on a weight, it is the difference of that weight in the `base`, else the sum of the changes.
    Raises LoraInspectError for a number that is not finite, and for a weight that the base lacks.
    """
    if base and any(needs_base(term.contribution) for term in terms):
        return base.difference(terms)
    return reduce(numpy.add, map(change_of, terms))


def change_of(term: Term) -> Array:
    """Return the change (rows, columns) of a term that needs no weight, with its multiplier and rows, in float64.

    That of a vector has one column. Raises LoraInspectError for a number that is not finite.
    """
    contribution = term.contribution
    if contribution.algorithm.name not in ARE_DIFFERENCES:
        return in_output(_of_formula(term), term)
    refuse_not_finite([term])
    values = load_floats(contribution.operands[full.DIFFERENCE]).astype(numpy.float64)
    matrix = values.reshape(len(values), -1) * term.multiplier
    return in_output(matrix, term)


def _of_formula(term: Term) -> Array:
    contribution = term.contribution
    if contribution.formula.thin is None:
        from lora_inspect.maths.torch_threads import load_torch

        load_torch()
        from lora_inspect.algebra.full_changes import of_formula

        return of_formula(term)
    matrix = NumpyTensor.of(numpy.zeros(matrix_shape(contribution.known_shape)))
    change = contribution.formula.change(
        read_tensors(contribution), contribution.known_scale, contribution.alpha, **contribution.settings
    )
    change.fold(matrix, 0, term.multiplier)
    if not numpy.isfinite(matrix).all():
        raise no_numbers(contribution)
    return numpy.asarray(matrix)


def in_output(matrix: Array, term: Term) -> Array:
    """Return a matrix of a contribution's rows in those of the weight of the output; all others are zero."""
    for runs, rows in term.moves:
        moved: Array = numpy.zeros((rows, matrix.shape[1]))
        for first, last, source in runs.each():
            moved[first:last] = matrix[source : source + last - first]
        matrix = moved
    return matrix
