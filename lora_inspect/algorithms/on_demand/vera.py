"""VeRA: W' = W + diag(b) · B · diag(d) · A, with A and B drawn once for all modules and never trained.

Each module takes the first rows of B and columns of A that its layer has. PEFT has no multiplier for it. Sources:
Kopiczko et al. 2024; the `VeraLayer` of PEFT.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lora_inspect.algorithms.record import Algorithm, Formula, Shapes, Shared, Tensors
from lora_inspect.maths.change import Change
from lora_inspect.maths.products import add_product

_NOT_SAVED = (
    "its projections are not in the file (save_projection: false), and PEFT draws them again for the widest layers "
    "of its model, which the file does not name; merge it with PEFT on its own base, or train it with "
    "save_projection: true"
)


def shape(shapes: Shapes) -> tuple[int | None, ...]:
    """Return (out, None): A only shows the largest possible number of columns."""
    b = shapes["b"]
    return b[0] if b else 1, None


def misfit(shapes: Shapes, weight: tuple[int, ...]) -> str | None:
    """Return the mismatch with a matrix of this shape, with at most as many columns as A, or None."""
    rows, columns = shapes["b"][0], shapes["A"][1]
    if len(weight) == 2 and weight[0] == rows and weight[1] <= columns:
        return None
    return f"changes a weight of {rows} rows and at most {columns} columns"


def change(tensors: Tensors, scale: float, alpha: float | None) -> "Change":
    """Return the product truncated to the layer, with the rank of B; both vectors go into the copy of B."""
    b, d, projection = tensors["b"], tensors["d"], tensors["B"]
    rank = projection.shape[1]
    return Leading(projection[: b.shape[0]] * d[:rank] * b.unsqueeze(1), tensors["A"][:rank])


def checked(name: str, halves: int) -> Callable[[Shapes], str | None]:
    """Return `check` of vectors b (out,) and d (halves·rank,) for A (halves·rank, ≥in) and B (≥out, rank)."""

    def check(shapes: Shapes) -> str | None:
        b, d = shapes["b"], shapes["d"]
        if len(b) != 1 or len(d) != 1:
            return f"{name}_lambda_b {list(b)} and {name}_lambda_d {list(d)} are not two vectors"
        for role in ("A", "B"):
            if role in shapes and len(shapes[role]) != 2:
                return f"{name}_{role} {list(shapes[role])} is not a matrix"
        if "A" in shapes and shapes["A"][0] != d[0]:
            return f"{name}_lambda_d {list(d)} does not match {name}_A {list(shapes['A'])}"
        if "B" in shapes and (shapes["B"][0] < b[0] or shapes["B"][1] * halves != d[0]):
            return f"{name}_lambda_b {list(b)} and {name}_lambda_d {list(d)} do not match {name}_B {list(shapes['B'])}"
        return None

    return check


def projected(name: str, title: str, halves: int) -> Algorithm:
    """Return the algorithm with d and A in `halves` parts, with only the first one used."""
    return Algorithm(
        name=name,
        title=title,
        equation="W + diag(b) · B · diag(d) · A",
        writers="PEFT",
        dialects={"peft": {"b": f".{name}_lambda_b", "d": f".{name}_lambda_d"}},
        marks=("b", "d"),
        formula=Formula(checked(name, halves), shape, misfit, rank=lambda shapes: None, change=change),
        shared={role: Shared(f"{name}_{role}", _NOT_SAVED) for role in ("A", "B")},
        blends=False,
        has_alpha=False,
        peft_type=name.upper(),
    )


ALGORITHM = projected("vera", "VeRA", 1)


@dataclass(frozen=True, slots=True)
class Leading(Change):
    """W + multiplier · (up @ down) cut to the shape of W, with up (out or more, rank) and down (rank, in or more)."""

    up: Any
    down: Any
    together: int = 1

    def fold(self, rows: Any, first: int, multiplier: float) -> None:
        """Add the product's rows."""
        add_product(rows, self.up[first : first + rows.shape[0]] * multiplier, self.down[:, : rows.shape[1]])

    def transposed(self) -> Change:
        """Return the change with exchanged factors."""
        return Leading(self.down.transpose(0, 1), self.up.transpose(0, 1))
