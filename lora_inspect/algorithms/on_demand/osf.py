"""OSF: training changes the directions of the smallest values in the weight's singular value decomposition.

W = U S V keeps its first directions, and the last ones, as many as `S_low` has numbers, become U_low diag(S_low) V_low.
Their old values follow from the base's weight, which PEFT decomposes in float32 when it loads the adapter. It has no
multipliers for it. The functions use tensor methods only. Sources: Nayak et al. 2025; the `OSFLayer` of PEFT.
"""

from dataclasses import dataclass
from typing import Any

from lora_inspect.algorithms.record import Algorithm, Formula, Shapes, Tensors
from lora_inspect.maths.change import Blocks, Change, LowRank, Transposed


def check(shapes: Shapes) -> str | None:
    """Return the problem with the shapes of U_low (out, count), S_low (count,) and V_low (count, in), or None."""
    left, values, right = shapes["left"], shapes["values"], shapes["right"]
    if len(left) != 2 or len(right) != 2 or values != (left[1],) or right[0] != left[1] or 0 in (left[0], right[1]):
        return f"U_low {list(left)}, S_low {list(values)} and V_low {list(right)} are not directions of a matrix"
    if left[1] > min(left[0], right[1]):
        return f"it has {left[1]} directions, more than a matrix of {left[0]} by {right[1]} can have"
    return None


def shape(shapes: Shapes) -> tuple[int, ...]:
    """Return (out, in)."""
    return shapes["left"][0], shapes["right"][1]


def misfit(shapes: Shapes, weight: tuple[int, ...]) -> str | None:
    """Return the mismatch with a weight of this shape, or None."""
    return None if shape(shapes) == weight else f"changes a matrix of {list(shape(shapes))}"


def change(tensors: Tensors, scale: float, alpha: float | None) -> "Change":
    """Return the trained directions, which replace the weight's own when it is folded."""
    return ReplacedDirections(tensors["left"] * tensors["values"], tensors["right"], scale)


ALGORITHM = Algorithm(
    name="osf",
    title="OSF",
    equation="W with U_low · diag(S_low) · V_low for its smallest directions",
    writers="PEFT",
    dialects={
        "peft": {
            "left": ".osf_svd_params.U_low",
            "values": ".osf_svd_params.S_low",
            "right": ".osf_svd_params.V_low",
        }
    },
    marks=("left", "values", "right"),
    formula=Formula(check, shape, misfit, rank=lambda shapes: None, change=change),
    transposed=False,
    multiplies=True,
    blends=False,
    has_alpha=False,
    peft_type="OSF",
)


@dataclass(frozen=True, slots=True)
class ReplacedDirections(Change):
    """The last directions of W's singular value decomposition give way to up @ down.

    `up` is (out, count) and `down` (count, columns): as many directions, those of the smallest singular values, as
    there are columns in `up`. Where singular values are equal these are not unique.
    """

    up: Any
    down: Any
    scale: float
    together: int = 1

    @property
    def holds_all(self) -> bool:
        """The decomposition is of all rows."""
        return True

    def settled(self, blocks: Blocks, multiplier: float) -> Change:
        """Return the given directions minus the weight's own; not finite if a number of the weight is not."""
        import torch

        count = self.up.shape[1]
        if not count:
            return LowRank(self.up, self.down, self.scale)
        weight = torch.cat([rows.clone() for _, rows in blocks()])
        if not weight.isfinite().all():
            return LowRank(self.up * float("nan"), self.down, self.scale)
        left, right = _last_directions(weight, count)
        return LowRank(torch.cat([self.up, -left], 1), torch.cat([self.down, right]), self.scale)

    def fold(self, rows: Any, first: int, multiplier: float) -> None:
        """Raise ValueError: it has to see the whole weight first."""
        raise ValueError("the change is not settled yet")

    def transposed(self) -> Change:
        """Return the change of the transposed weight, which is transposed first."""
        return Transposed(self)


def _last_directions(weight: Any, count: int) -> tuple[Any, Any]:
    """Return (out, count) and (count, columns); their product is the weight's part in its last directions.

    They are the eigenvectors of the Gram matrix of the smaller side, which cost less than singular vectors. The Gram
    matrix is computed in float64, as squares of singular values need twice the digits.
    """
    import torch

    wide = weight.double()
    is_tall = wide.shape[0] > wide.shape[1]
    gram = wide.transpose(0, 1) @ wide if is_tall else wide @ wide.transpose(0, 1)
    directions = torch.linalg.eigh(gram).eigenvectors[:, :count]
    turned = directions.transpose(0, 1)
    parts = (wide @ directions, turned) if is_tall else (directions, turned @ wide)
    return parts[0].to(weight.dtype), parts[1].to(weight.dtype)
