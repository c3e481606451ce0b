"""How large a change is, and what it loses where one of its factors is rounded."""

import math
from collections.abc import Mapping

import torch

from lora_inspect.algorithms.record import Formula, Role
from lora_inspect.converting.steps.scaled_factors import product_norm, relative

# Rows of a change that are computed at once.
_ELEMENTS = 1 << 20


def change_norm(formula: Formula, factors: Mapping[Role, torch.Tensor]) -> float:
    """‖change‖ in the Frobenius norm, unscaled, of factors in float64."""
    if thin := formula.low_rank and formula.low_rank(factors):
        return product_norm(*thin)
    shape = formula.shape({role: tuple(factor.shape) for role, factor in factors.items()})
    known = [size for size in shape if size is not None]
    rows, columns = known[0], math.prod(known[1:])
    change, squares = formula.change(factors, 1.0, None), 0.0
    count = max(1, _ELEMENTS // max(1, columns))
    for first in range(0, rows, count):
        block = torch.zeros(min(count, rows - first), columns, dtype=torch.float64, device="cpu")
        change.fold(block, first, 1.0)
        squares += float(block.square().sum())
    return math.sqrt(squares)


def lost_share(
    formula: Formula, factors: Mapping[Role, torch.Tensor], role: Role, meant: torch.Tensor, written: torch.Tensor
) -> float:
    """‖change lost‖ / ‖change‖ where the factor of `role` is `written` in the place of `meant`, all in float64.

    A change is linear in each of its factors: what it loses is the change of the difference.
    """
    lost = change_norm(formula, {**factors, role: written - meant})
    return relative(lost, change_norm(formula, {**factors, role: meant}))
