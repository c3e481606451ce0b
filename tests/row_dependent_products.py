"""Matrix products whose last bits show how many rows and columns they have, as those of some processors do.

A library multiplies a few rows by another kernel than many, and each rounds on the way in places of its own. Which
ones do so is a matter of the processor and of the library's version. Here it is a rule of the test: every product that
torch computes is replaced by one of two that are written out here, whose entries know nothing of each other, and
`chosen` says by the shape which one it is. So nothing depends on the processor that runs it, and what is exact is so in
both.

With PRODUCTS=rows in the environment all tests of a run have products whose last rows, beyond a multiple of four, are
computed apart (`rest_apart`). These are quick enough for that.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

# left @ right, of (…, n, k) and (…, k, m).
Kernel = Callable[[Tensor, Tensor], Tensor]
# The kernel for products of so many rows and columns.
Chosen = Callable[[int, int], Kernel]

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
        return _of_torch(left, right)
    return torch.cat([_of_torch(left[..., :whole, :], right), _in_another_order(left[..., whole:, :], right)], -2)


def _in_another_order(left: Tensor, right: Tensor) -> Tensor:
    if left.shape[-1] <= _FEW_TERMS:
        return rounded_once(left, right)
    return backwards(left, right)


def backwards(left: Tensor, right: Tensor) -> Tensor:
    """The library's own of the terms from the last one to the first."""
    return _of_torch(left.flip(-1), right.flip(-2))


def _of_torch(left: Tensor, right: Tensor) -> Tensor:
    """The library's own, whatever is in its place."""
    return _OWN["mm" if left.dim() == 2 else "bmm"].call_boxed(_CPU, left, right)


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
_PRODUCTS: dict[str, Callable[..., Tensor]] = {
    "mm": product,
    "bmm": product,
    "mv": _of_matrix,
    "dot": _of_vectors,
    "vdot": _of_vectors,
    "addmm": _with_added,
    "baddbmm": _with_added,
    "addmv": _with_added_vector,
    "addbmm": _with_added_sum,
}


def _forms(name: str) -> Iterator[str]:
    """The operator's, those that write into a tensor among them."""
    yield name
    yield f"{name}.out"
    if hasattr(torch.ops.aten, f"{name}_"):
        yield f"{name}_"


_CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
_OWN = {form: torch.library.get_kernel(f"aten::{form}", "CPU") for name in _PRODUCTS for form in _forms(name)}


class RowDependentProducts:
    """Has every product of real numbers on the CPU, in all threads, computed by the `chosen` kernel."""

    def __init__(self, chosen: Chosen = few_apart) -> None:
        self._chosen = chosen
        self.replaced = 0
        self._registered = torch.library.Library("aten", "IMPL")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Warning only once for all operators", UserWarning)
            for name in _PRODUCTS:
                for form in _forms(name):
                    self._registered.impl(form, self._instead_of(name, form), "CPU", allow_override=True)

    def _instead_of(self, name: str, form: str) -> Callable[..., Tensor]:
        compute, own = _PRODUCTS[name], _OWN[form]

        def computed(*args: Any, **options: Any) -> Tensor:
            if not all(one.is_floating_point() for one in args):
                return own.call_boxed(_CPU, *args, **options)
            self.replaced += 1
            out = options.pop("out", None)
            found = compute(*args, self._chosen, **options)
            if form.endswith("_"):
                return args[0].copy_(found)
            return found if out is None else out.resize_(found.shape).copy_(found)

        return computed

    def end(self) -> None:
        """Has the products computed as before."""
        self._registered._destroy()


@contextmanager
def row_dependent_products(chosen: Chosen = few_apart) -> Iterator[RowDependentProducts]:
    """Replaces the products in the block, in all threads."""
    products = RowDependentProducts(chosen)
    try:
        yield products
    finally:
        products.end()
