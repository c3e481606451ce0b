"""The factors that training starts from where an initialisation takes them out of the base's weight."""

from typing import Any


def principal_factors(weight: Any, rank: int, iterations: int | None = None) -> tuple[Any, Any]:
    """up (out, rank) and down (rank, in), whose product is the best approximation of `weight` (out, in): PiSSA's.

    They share the singular values evenly. None for `iterations` is a full decomposition; a number is that of the
    power iterations of a randomised one, which is much faster and close to it. Source: Meng et al. 2024.
    """
    import torch

    if iterations is None:
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
    else:
        left, values, transposed = torch.svd_lowrank(weight, rank, niter=iterations)
        right = transposed.t()
    roots = values[:rank].sqrt()
    return left[:, :rank] * roots, roots[:, None] * right[:rank]


def orthogonal_factors(weight: Any, rank: int) -> tuple[Any, Any]:
    """up (out, rank) and down (rank, in): the first columns and rows of `weight` (out, in) = Q @ R, which OLoRA takes.

    The first columns of Q are those of the first columns of the weight alone. Source: Büyükakyüz 2024; `olora_init` of
    PEFT.
    """
    import torch

    up = torch.linalg.qr(weight[:, :rank]).Q
    return up, up.transpose(0, 1) @ weight
