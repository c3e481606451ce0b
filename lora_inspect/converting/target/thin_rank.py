"""The rank of the thin product that a change is, told by the shapes of its factors before it takes any memory."""

from collections.abc import Mapping

import torch

from lora_inspect.algorithms.record import Formula, Role


def thin_rank(formula: Formula, shapes: Mapping[Role, tuple[int, ...]]) -> int | None:
    """The inner size of the product; None where the change is none.

    The factors are tensors of torch's meta device, which have shapes and no numbers.
    """
    if formula.low_rank is None:
        return None
    shadows = {role: torch.empty(shape, dtype=torch.float64, device="meta") for role, shape in shapes.items()}
    found = formula.low_rank(shadows)
    return None if found is None else int(found[1].shape[0])
