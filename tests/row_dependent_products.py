"""Matrix products whose last bits show how many rows and columns they have, as those of some processors do.

A library multiplies a few rows by another kernel than many, and each rounds on the way in places of its own. Which
ones do so is a matter of the processor and of the library's version. Here it is a rule of the test: every product that
torch computes is replaced by one of two that are written out here, whose entries know nothing of each other, and
`chosen` says by the shape which one it is. So nothing depends on the processor that runs it, and what is exact is so in
both.

With PRODUCTS=rows in the environment all tests of a run have products whose last rows, beyond a multiple of four, are
computed apart (`rest_apart`). These are quick enough for that.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# left @ right, of (…, n, k) and (…, k, m).
Kernel = Callable[[Tensor, Tensor], Tensor]
# The kernel for products of so many rows and columns.
Chosen = Callable[[int, int], Kernel]

aten = torch.ops.aten
_HALF = (torch.float16, torch.bfloat16)
# Of a few terms an order is soon the same one backwards, and of many a loop takes long.
_FEW_TERMS = 64
# What cuts a float64 into two halves whose products are exact (Veltkamp).
_HALVES = 2.0**27 + 1


def term_by_term(left: Tensor, right: Tensor) -> Tensor:
    """Each term is rounded, and each sum of those so far."""
    found = left.new_zeros(*left.shape[:-1], right.shape[-1])
    for one, other in _factors(left, right):
        found += one * other
    return found


def rounded_once(left: Tensor, right: Tensor) -> Tensor:
    """The sum of all terms is rounded, and nothing before it but what is beyond twice the digits of float64."""
    if left.dtype != torch.float64:
        return term_by_term(left.double(), right.double()).to(left.dtype)
    found = left.new_zeros(*left.shape[:-1], right.shape[-1])
    lost = found.clone()
    for one, other in _factors(left, right):
        term = one * other
        total = found + term
        part = total - found
        lost += (found - (total - part)) + (term - part) + _lost_in(one, other, term)
        found = total
    return torch.where(lost.isfinite(), found + lost, found)


def _lost_in(one: Tensor, other: Tensor, term: Tensor) -> Tensor:
    """one · other - term, without an error (Dekker)."""
    (a, b), (c, d) = ((high, each - high) for each in (one, other) for high in (_HALVES * each - (_HALVES - 1) * each,))
    return ((a * c - term) + a * d + b * c) + b * d


def _factors(left: Tensor, right: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    for term in range(left.shape[-1]):
        yield left[..., :, term : term + 1], right[..., term : term + 1, :]


def few_apart(rows: int, columns: int) -> Kernel:
    """Another one where there are fewer than four rows or columns."""
    return rounded_once if min(rows, columns) < 4 else term_by_term


def rest_apart(rows: int, columns: int) -> Kernel:
    """The library's own for four rows at a time, and another one for the rows that are left over."""
    return _rest_apart


def _rest_apart(left: Tensor, right: Tensor) -> Tensor:
    whole = left.shape[-2] - left.shape[-2] % 4
    if whole == left.shape[-2]:
        return left @ right
    return torch.cat([left[..., :whole, :] @ right, _in_another_order(left[..., whole:, :], right)], -2)


def _in_another_order(left: Tensor, right: Tensor) -> Tensor:
    if left.shape[-1] <= _FEW_TERMS:
        return rounded_once(left, right)
    return backwards(left, right)


def backwards(left: Tensor, right: Tensor) -> Tensor:
    """The library's own of the terms from the last one to the first."""
    return left.flip(-1) @ right.flip(-2)


def product(left: Tensor, right: Tensor, chosen: Chosen) -> Tensor:
    """left @ right by the kernel for it."""
    return chosen(left.shape[-2], right.shape[-1])(left, right)


def _with_added(own: Tensor, left: Tensor, right: Tensor, chosen: Chosen, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
    if own.dtype in _HALF:  # what is added is so before the sum is rounded
        wide = (one.float() for one in (own, left, right))
        return _with_added(*wide, chosen, beta=beta, alpha=alpha).to(own.dtype)
    return (own * beta if beta else torch.zeros_like(own)) + product(left, right, chosen) * alpha


def _of_matrix(left: Tensor, vector: Tensor, chosen: Chosen) -> Tensor:
    return product(left, vector[:, None], chosen)[:, 0]


def _of_vectors(left: Tensor, right: Tensor, chosen: Chosen) -> Tensor:
    return product(left[None], right[:, None], chosen)[0, 0]


def _with_added_vector(own: Tensor, left: Tensor, vector: Tensor, chosen: Chosen, **factors: Any) -> Tensor:
    return _with_added(own[:, None], left, vector[:, None], chosen, **factors)[:, 0]


def _with_added_sum(own: Tensor, left: Tensor, right: Tensor, chosen: Chosen, **factors: Any) -> Tensor:
    wide = left.transpose(0, 1).flatten(1), right.flatten(0, 1)
    return _with_added(own, *wide, chosen, **factors)


# What all products come to below autograd: matmul, @, einsum, tensordot, F.linear and the rest are made of these.
_PRODUCTS: dict[Any, Callable[..., Tensor]] = {
    aten.mm: product,
    aten.bmm: product,
    aten.mv: _of_matrix,
    aten.dot: _of_vectors,
    aten.vdot: _of_vectors,
    aten.addmm: _with_added,
    aten.baddbmm: _with_added,
    aten.addmv: _with_added_vector,
    aten.addbmm: _with_added_sum,
}


def _packet(name: str) -> Any:
    return getattr(aten, name)


# In inference mode they arrive before torch has made others of them.
_MADE_OF_THEM = {aten.matmul, aten.linear, aten.einsum, aten.tensordot, aten.inner}
_IN_PLACE = {_packet(f"{packet.__name__}_"): packet for packet in _PRODUCTS if hasattr(aten, f"{packet.__name__}_")}


class RowDependentProducts(TorchDispatchMode):
    """Has every product of real numbers on the CPU, in the thread that enters it, computed by the `chosen` kernel."""

    def __init__(self, chosen: Chosen = few_apart) -> None:
        super().__init__()
        self._chosen = chosen
        self.replaced = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet, kwargs = func.overloadpacket, dict(kwargs or {})
        if packet in _MADE_OF_THEM:
            with self:
                return func.decompose(*args, **kwargs)
        compute = _PRODUCTS.get(_IN_PLACE.get(packet, packet))
        if compute is None or not all(one.is_floating_point() and one.device.type == "cpu" for one in args):
            return func(*args, **kwargs)
        self.replaced += 1
        out, element = kwargs.pop("out", None), kwargs.pop("out_dtype", None)
        found = compute(*(one if element is None else one.to(element) for one in args), self._chosen, **kwargs)
        if packet in _IN_PLACE:
            return args[0].copy_(found)
        return found if out is None else out.resize_(found.shape).copy_(found)


def in_all_threads(mode: TorchDispatchMode) -> Callable[[threading.Thread], None]:
    """A substitute for `threading.Thread.run`: threads that are started have the mode."""
    run = threading.Thread.run

    def run_in_mode(thread: threading.Thread) -> None:
        with mode:
            run(thread)

    return run_in_mode


@contextmanager
def row_dependent_products(chosen: Chosen = few_apart) -> Iterator[RowDependentProducts]:
    """Replaces the products of this thread and of all that are started in the block."""
    mode = RowDependentProducts(chosen)
    with pytest.MonkeyPatch.context() as patch, mode:
        patch.setattr(threading.Thread, "run", in_all_threads(mode))
        yield mode
