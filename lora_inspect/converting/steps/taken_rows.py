"""The rows of a module that a module of the output takes, where that is of another layout.

A step that approximates looks at these rows alone: the best product for a fused layer may be a bad one for a part of it
that changes little.
"""

import torch

from lora_inspect.architectures.rows import Runs


def rows_in_order(runs: Runs) -> torch.Tensor:
    """The row of the module for each row that is taken, in their order there."""
    order = torch.empty(runs.rows, dtype=torch.long, device="cpu")
    for first, last, source in runs.each():
        order[first:last] = torch.arange(source, source + last - first, dtype=torch.long, device="cpu")
    return order


def few_rows(runs: Runs | None, rows: int) -> torch.Tensor | None:
    """The rows of the module that are taken, of so many; None where all of them are."""
    return rows_in_order(runs) if runs and runs.rows < rows else None


def in_rows(factor: torch.Tensor, taken: torch.Tensor, rows: int) -> torch.Tensor:
    """A factor (rows, rank) with the numbers of the rows that were `taken`, and zeros in the others."""
    whole = factor.new_zeros(rows, *factor.shape[1:])
    whole[taken] = factor
    return whole
