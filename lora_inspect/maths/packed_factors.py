"""How the factors of all experts of a mixture lie side by side in two matrices.

Of A (experts·rank, a) row e·rank + k is the k-th of expert e. Of B (b, rank·experts) that is column k·experts + e in
PEFT and vLLM, and column e·rank + k in what some versions of Unsloth trained; the names are those of Unsloth's configs.
"""

from typing import Any

RANK_MAJOR, GROUPED_BY_EXPERT = PACKINGS = ("rank_major", "grouped_by_expert")


def per_expert(up: Any, down: Any, experts: int, packing: str) -> tuple[Any, Any]:
    """B as (experts, b, rank) and A as (experts, rank, a)."""
    down = down.reshape(experts, -1, down.shape[1])
    if packing == RANK_MAJOR:
        return up.reshape(up.shape[0], -1, experts).permute(2, 0, 1), down
    return up.reshape(up.shape[0], experts, -1).permute(1, 0, 2), down
