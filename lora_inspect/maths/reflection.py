"""Products of Householder reflections of the columns of a weight. Tensor methods alone."""

from dataclasses import dataclass
from typing import Any

from lora_inspect.maths.change import Change
from lora_inspect.maths.products import by_rows


def unit(vectors: Any) -> Any:
    """The columns of `vectors` (columns, count) with length 1; one of zeros has no direction and becomes NaN."""
    return vectors / vectors.norm(dim=0)


def orthonormal(vectors: Any) -> Any:
    """The columns of `vectors` (columns, count) made orthonormal from left to right, by modified Gram-Schmidt."""
    left = vectors.clone()
    for at in range(left.shape[1]):
        left[:, at] = left[:, at] / left[:, at].norm()
        own = left[:, at : at + 1]
        left[:, at + 1 :] -= own @ (own.transpose(0, 1) @ left[:, at + 1 :])
    return left


def couplings(units: Any) -> Any:
    """T (count, count) with (I - 2u₁u₁ᵀ)(I - 2u₂u₂ᵀ)… = I - U T Uᵀ for unit vectors U (columns, count).

    It is upper triangular. Source: Schreiber and Van Loan 1989, the compact WY form.
    """
    angles = units.transpose(0, 1) @ units
    coupled = angles.new_zeros(angles.shape)
    for at in range(angles.shape[0]):
        coupled[:at, at : at + 1] = -2.0 * coupled[:at, :at] @ angles[:at, at : at + 1]
        coupled[at, at] = 2.0
    return coupled


@dataclass(frozen=True, slots=True)
class ReflectedColumns(Change):
    """W' = W - W U T Uᵀ, with the vectors U (columns, count) and T (count, count). There is no multiplier but 1."""

    vectors: Any
    coupled: Any
    together: int = 1

    def fold(self, rows: Any, first: int, multiplier: float) -> None:
        """Reflects each row; raises ValueError for a multiplier that means nothing."""
        if multiplier != 1:
            raise ValueError(f"a weight is reflected or not, which a multiplier of {multiplier:g} does not say")
        turned = self.vectors.transpose(0, 1)
        rows.sub_(by_rows(lambda own: own @ self.vectors @ self.coupled @ turned, rows))
