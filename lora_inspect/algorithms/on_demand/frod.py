"""FRoD: W = U · diag(n) · Vᵀ becomes U · (S + diag(l)) · Vᵀ, with V and the places of S per category.

A category is made of the modules of one name in all blocks; V is saved for each. The columns of U are those of W · V⁻ᵀ
at length 1. PEFT has no multiplier for it. Source: the `FrodLayer` and `FrodModel` of PEFT.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from lora_inspect.algorithms.record import Algorithm, Formula, Shapes, Shared, Tensors
from lora_inspect.maths.change import Blocks, Change
from lora_inspect.maths.products import by_rows

_NOT_SAVED = (
    "its projections are not in the file (save_projection: false), and PEFT makes them again from the weights of its "
    "base; merge it with PEFT on its own base, or train it with save_projection: true"
)


def category(path: str, parts: Collection[str]) -> str | None:
    """Return PEFT's category of a module: its name, with its parent's name unless that is a number."""
    *above, name = path.split(".")
    if not above or above[-1].isdigit():
        found = name
    elif above[-1] == "output" and name == "dense" and above[-2:-1] == ["attention"]:
        found = "attention_output"
    else:
        found = f"{above[-1]}_{name}"
    return found if found in parts else None


def check(shapes: Shapes) -> str | None:
    """Return the problem with l (in,), the entries of S (count,), V (in, in) and their places (2, count), or None."""
    diagonal, entries = shapes["l"], shapes["s"]
    if len(diagonal) != 1 or len(entries) != 1 or 0 in diagonal:
        return f"frod_lambda_l {list(diagonal)} and frod_lambda_s_values {list(entries)} are not two vectors"
    basis, places, size = shapes.get("V"), shapes.get("places"), shapes.get("size")
    if basis is not None and basis != (*diagonal, *diagonal):
        return f"frod_V {list(basis)} is not a basis of {diagonal[0]} inputs"
    if places is not None and places != (2, *entries):
        return f"frod_s_indices {list(places)} are not places of {entries[0]} entries"
    return None if size in (None, (2,)) else f"frod_s_size {list(size)} is not a pair of sizes"


def shape(shapes: Shapes) -> tuple[int | None, ...]:
    """Return (None, in): any number of rows is recombined in the same way."""
    return None, shapes["l"][0]


def misfit(shapes: Shapes, weight: tuple[int, ...]) -> str | None:
    """Return the mismatch with a matrix of this shape, or None."""
    inputs = shapes["l"][0]
    return None if len(weight) == 2 and weight[1] == inputs else f"recombines weights of {inputs} inputs"


def outside(tensors: Tensors, weight: tuple[int, ...]) -> str | None:
    """Return an error if S has another size than the basis or an entry outside of it, or None."""
    places, inputs = tensors["places"], tensors["l"].shape[0]
    if tensors["size"].tolist() != [inputs, inputs]:
        return f"says that S is {tensors['size'].tolist()} for a basis of {inputs} inputs"
    if places.numel() and (int(places.min()) < 0 or int(places.max()) >= inputs):
        return f"has entries beyond the {inputs} rows and columns of S"
    return None


def change(tensors: Tensors, scale: float, alpha: float | None) -> "Change":
    """Return the weight with a new middle between its two bases."""
    middle = tensors["l"].double().diag()
    middle.index_put_(tuple(tensors["places"]), tensors["s"].double(), accumulate=True)
    return Recombined(Basis(tensors["V"]), middle)


ALGORITHM = Algorithm(
    name="frod",
    title="FRoD",
    equation="U · (S + diag(l)) · Vᵀ of W = U · diag(n) · Vᵀ",
    writers="PEFT",
    dialects={"peft": {"l": ".frod_lambda_l", "s": ".frod_lambda_s_values"}},
    marks=("l", "s"),
    formula=Formula(check, shape, misfit, rank=lambda shapes: None, change=change, outside=outside),
    multiplies=True,
    blends=False,
    has_alpha=False,
    shared={
        "V": Shared("frod_V", _NOT_SAVED, part=category),
        "places": Shared("frod_s_indices", _NOT_SAVED, part=category),
        "size": Shared("frod_s_size", _NOT_SAVED, part=category),
    },
    positions=("places", "size"),
    peft_type="FROD",
)


# Below it PEFT takes a column for zero.
_LEAST_NORM = 1e-12
# What PEFT cuts singular values off at, relative to the largest, where the basis has no inverse.
_CUT = 1e-6


class Basis:
    """V (in, in); its inverse is computed once for all blocks of a weight."""

    def __init__(self, values: Any) -> None:
        self.values = values.double()

    @cached_property
    def apart(self) -> Callable[[Any], Any]:
        """Rows (n, in) of W to rows of X in W = X · Vᵀ; with the pseudo-inverse where V has no inverse."""
        import torch

        factors, pivots, info = torch.linalg.lu_factor_ex(self.values)
        if int(info) and self.values.isfinite().all():
            inverse = torch.linalg.pinv(self.values, rtol=_CUT).transpose(0, 1)
            return lambda rows: rows.double() @ inverse
        return lambda rows: torch.linalg.lu_solve(factors, pivots, rows.double().transpose(0, 1)).transpose(0, 1)


@dataclass(frozen=True, slots=True)
class Recombined(Change):
    """W = U · diag(n) · Vᵀ, with unit columns of U, becomes U · middle · Vᵀ; there is no multiplier but 1.

    `middle` (in, in) is in float64, as everything is computed. `lengths` are n, None until the weight has been seen.
    """

    basis: Basis
    middle: Any
    lengths: Any = None
    together: int = 1

    def settled(self, blocks: Blocks, multiplier: float) -> Change:
        """Return the change with its lengths, which all rows determine."""
        squares = sum(by_rows(self.basis.apart, rows).square().sum(0) for _, rows in blocks())
        return replace(self, lengths=squares.sqrt()) if hasattr(squares, "sqrt") else self

    def fold(self, rows: Any, first: int, multiplier: float) -> None:
        """Write the new rows; raise ValueError for a meaningless multiplier, or before the weight was seen."""
        if multiplier != 1 or self.lengths is None:
            raise ValueError(f"a weight is recombined once it was seen, or not; {multiplier:g} says neither")
        known = self.lengths > _LEAST_NORM
        lengths = self.lengths.where(known, 1.0)

        def recombined(own: Any) -> Any:
            units = self.basis.apart(own) * known / lengths
            return units @ self.middle @ self.basis.values.transpose(0, 1)

        rows.copy_(by_rows(recombined, rows))
