"""Least squares from the products of vectors: the coefficients that make of some what comes nearest to another one.

The vectors are the changes of a weight, or of all weights, and are never held: `gram` (k, k) are their products with
each other, `along` (k,) those with the vector that is to be explained. All are float64.
"""

import torch
from torch import Tensor

# The multiple correlation of a vector with the others from which on its coefficient is open.
DEPENDENT = 0.999


def inverse(gram: Tensor) -> Tensor:
    """The inverse where there is one, of matrices whose entries may be of any size; the least solution elsewhere."""
    if not len(gram):
        return gram
    sizes = gram.diagonal().sqrt()
    scale = torch.where(sizes > 0, 1 / sizes, 0.0)
    inverted: Tensor = torch.linalg.pinv(gram * scale[:, None] * scale, rtol=1e-9, hermitian=True)
    return inverted * scale[:, None] * scale


def solved(gram: Tensor, along: Tensor) -> Tensor:
    """The coefficients (k,)."""
    solution: Tensor = inverse(gram) @ along
    return solution


def standard_errors(gram: Tensor, scatter: Tensor) -> Tensor:
    """Those of the coefficients (k,), where `scatter` (k, k) is the covariance of the products with what is found."""
    inverted = inverse(gram)
    return (inverted @ scatter @ inverted).diagonal().clamp(min=0.0).sqrt()


def is_dependent(gram: Tensor, number: int) -> bool:
    """Whether the others make nearly all of one vector, which is not 0, so that its coefficient is open."""
    square = float(gram[number, number])
    others = [other for other in range(len(gram)) if other != number and gram[other, other] > 0]
    shared = gram[number, others]
    return float(shared @ inverse(gram[others][:, others]) @ shared) > DEPENDENT**2 * square
