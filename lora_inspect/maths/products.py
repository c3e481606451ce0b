"""Products of matrices. Tensor methods only."""

from collections.abc import Callable
from typing import Any

# A kernel takes so many rows of a product at a time, and those that are left over go through another one, which may add
# in another order: one row, two or three give other last bits than the same rows among many.
ROWS_AT_ONCE = 4


def product(left: Any, right: Any) -> Any:
    """Return left @ right, (…, n, k) by (…, k, columns); each row is independent of the other rows."""
    return by_rows(lambda rows: rows @ right, left)


def add_product(rows: Any, left: Any, right: Any) -> None:
    """Add left @ right, (n, k) by (k, columns), in place; each row is independent of the other rows."""
    whole = rows.shape[0] - rows.shape[0] % ROWS_AT_ONCE
    if whole:
        rows[:whole].addmm_(left[:whole], right)
    if whole < rows.shape[0]:
        rest = rows[whole:]
        rest.copy_(_filled(rest).addmm_(_filled(left[whole:]), right)[: rest.shape[0]])


def by_rows(make: Callable[[Any], Any], rows: Any) -> Any:
    """Return `make` of each of the rows (…, n, k), by itself: (…, n, columns). Zeros fill up its input."""
    return make(_filled(rows))[..., : rows.shape[-2], :]


def _filled(rows: Any) -> Any:
    """Return the rows (…, n, k), filled up with rows of zeros to the number that a kernel takes at a time."""
    *more, count, columns = rows.shape
    if count % ROWS_AT_ONCE == 0:
        return rows
    filled = rows.new_zeros(*more, count + -count % ROWS_AT_ONCE, columns)
    filled[..., :count, :] = rows
    return filled


def row_wise(left: Any, right: Any) -> Any:
    """Return (n, p·q) with row i the Kronecker product of row i of `left` (n, p) with row i of `right` (n, q)."""
    return (left.unsqueeze(2) * right.unsqueeze(1)).flatten(1)
