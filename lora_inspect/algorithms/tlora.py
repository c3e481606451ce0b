"""T-LoRA of LyCORIS: W' = W + multiplier · scale · (P · diag(λ) · Q - Wᵣ), with P (out, rank), Q (rank, in).

It begins with the singular vectors and values of the weight, and counts only the change of them in training. Its file
does not hold the start: LyCORIS takes the largest ones of the weight that it is loaded on, whatever `sig_type` and
`use_data_init` were in training, so that Wᵣ is the best approximation of W of that rank. The scale is alpha/rank. On a
larger kernel than 1 its 1x1 kernels take steps and margins of the layer's own, which no weight does. Source: the
`TLoraModule` of lycoris-lora 4.1, without its mask of timesteps.
"""

from dataclasses import dataclass
from typing import Any

from lora_inspect.algorithms.lora import other_than
from lora_inspect.algorithms.record import Algorithm, Formula, Shapes, Tensors
from lora_inspect.maths.change import Blocks, Change, LowRank, Transposed


def check(shapes: Shapes) -> str | None:
    """Return the problem with q (rank, in, 1, …), p (out, rank, 1, …) and the values (1, rank), or None."""
    q, p, values = (shapes[role] for role in ("q", "p", "values"))
    if min(len(q), len(p)) < 2 or 0 in q or 0 in p or any(size != 1 for size in q[2:] + p[2:]):
        return f"q_layer {list(q)} and p_layer {list(p)} cannot be multiplied"
    if p[1] != q[0] or values != (1, q[0]):
        return f"q_layer {list(q)}, lambda_layer {list(values)} and p_layer {list(p)} have different ranks"
    return None


def shape(shapes: Shapes) -> tuple[int, ...]:
    """Return (out, in) of the weight."""
    return shapes["p"][0], shapes["q"][1]


def misfit(shapes: Shapes, weight: tuple[int, ...]) -> str | None:
    """Return the mismatch with a weight of this shape, or None."""
    return other_than(shape(shapes), weight)


def rank(shapes: Shapes) -> int:
    """Return the inner size of the product."""
    return shapes["q"][0]


def change(tensors: Tensors, scale: float, alpha: float | None) -> "Change":
    """Return the product next to the weight's own largest part."""
    return BesidePrincipal(tensors["p"].flatten(1) * tensors["values"], tensors["q"].flatten(1), scale)


ALGORITHM = Algorithm(
    name="tlora",
    title="T-LoRA",
    equation="W + m · s · (P · diag(λ) · Q - Wᵣ), with the best approximation Wᵣ of W of the rank",
    writers="LyCORIS",
    dialects={"lycoris": {"q": ".q_layer.weight", "p": ".p_layer.weight", "values": ".lambda_layer"}},
    marks=("q", "p", "values"),
    common=("q", "p"),
    # The weight is decomposed as a whole.
    formula=Formula(check, shape, misfit, rank, change, together=lambda shapes: shapes["p"][0]),
    multiplies=True,
)


@dataclass(frozen=True, slots=True)
class BesidePrincipal(Change):
    """W + multiplier · scale · (up @ down - Wᵣ), with Wᵣ the best approximation of W of the pair's rank.

    `up` is (out, rank) and `down` (rank, columns). Wᵣ is computed from all of W, which takes as long as its singular
    value decomposition; where its singular values do not fall after the rank it is no single one.
    """

    up: Any
    down: Any
    scale: float

    @property
    def together(self) -> int:
        """All rows, which the decomposition is of."""
        rows: int = self.up.shape[0]
        return rows

    @property
    def holds_all(self) -> bool:
        """The decomposition is of all rows."""
        return True

    def settled(self, blocks: Blocks, multiplier: float) -> Change:
        """Return the change with the weight's own part in it."""
        import torch

        weight = torch.cat([rows for _, rows in blocks()])
        if not weight.isfinite().all():
            # Such a weight has no singular values, and what is folded into it is not finite either.
            return LowRank(self.up * float("nan"), self.down, self.scale)
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        rank = self.down.shape[0]
        up = torch.cat((self.up, -left[:, :rank] * values[:rank]), dim=1)
        return LowRank(up, torch.cat((self.down, right[:rank])), self.scale)

    def fold(self, rows: Any, first: int, multiplier: float) -> None:
        """Raise ValueError: the added part depends on the whole weight."""
        raise ValueError("the weight's own singular directions are not known yet")

    def transposed(self) -> Change:
        """Return the change of the transposed weight."""
        return Transposed(self)
