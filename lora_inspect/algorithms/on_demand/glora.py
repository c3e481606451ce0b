"""GLoRA of PEFT: W' = W + W ⊙ A + B, and of a layer with a bias b' = b + b ⊙ D + E + W C.

Each of the five paths is a product `Xd` @ `Xu`, a vector `X` with a number for each output (of C for each input), a
single number `X`, or nothing, for which PEFT writes `zeros`. W and b are those of the base. PEFT has no multipliers for
it. The functions use tensor methods only. Sources: Chavan et al. 2023; the `GloraLayer` of PEFT.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from lora_inspect.algorithms.record import SEEN, Algorithm, Formula, Shapes, Surroundings, Tensors
from lora_inspect.maths.change import Change
from lora_inspect.maths.products import product

_OF_WEIGHT, _OF_BIAS = ("A", "B"), ("C", "D", "E")
_PARTS = ("Xd", "Xu", "X", "zeros")
_KINDS = (("Xd", "Xu"), ("X",), ("zeros",))


def _kind(path: str, shapes: Shapes) -> tuple[str, ...]:
    """Return the parts of a path that are there."""
    return tuple(part for part in _PARTS if f"{path}.{part}" in shapes)


def check(shapes: Shapes) -> str | None:
    """Return the problem with the shapes of the paths, or None."""
    for path in (*_OF_WEIGHT, *_OF_BIAS):
        kind = _kind(path, shapes)
        if kind not in _KINDS:
            return f"its path glora_{path} is {' and '.join(kind) or 'nothing'}, not a product, vector or zeros"
        if kind == _KINDS[0]:
            up, down = shapes[f"{path}.Xd"], shapes[f"{path}.Xu"]
            if len(up) != 2 or len(down) != 2 or up[1] != down[0] or 0 in (*up, *down):
                return f"glora_{path} has Xd {list(up)} and Xu {list(down)}, which cannot be multiplied"
        elif 0 in shapes[f"{path}.{kind[0]}"]:
            return f"glora_{path} is {list(shapes[f'{path}.{kind[0]}'])}, which is empty"
    sizes = {path: _size(path, shapes) for path in (*_OF_WEIGHT, *_OF_BIAS)}
    if odd := next((path for path, size in sizes.items() if size is None), None):
        return f"glora_{odd} has an impossible shape"
    for what, told in (("outputs", _outputs(shapes)), ("inputs", _inputs(shapes))):
        if len(told) > 1:
            return f"its paths have {' and '.join(map(str, sorted(told)))} {what}"
    return None


def _size(path: str, shapes: Shapes) -> tuple[int | None, int | None] | None:
    """Return (rows, columns) of a path's result, with None for an open size; None if it has no possible shape."""
    kind = _kind(path, shapes)
    if kind == _KINDS[0]:
        rows, columns = shapes[f"{path}.Xd"][0], shapes[f"{path}.Xu"][1]
        return (rows, columns) if path in _OF_WEIGHT or (path == "C" and columns == 1) else None
    shape = shapes[f"{path}.{kind[0]}"]
    if shape == (1,) and path != "C":
        return None, None
    if path in ("D", "E"):
        return (shape[0], 1) if len(shape) == 1 else None
    if len(shape) != 2:
        return None
    if path in _OF_WEIGHT and kind == ("zeros",):
        return shape[0], shape[1]
    return (shape[0], None) if shape[1] == 1 else None


def _outputs(shapes: Shapes) -> set[int]:
    sizes = (_size(path, shapes) or (None, None) for path in ("A", "B", "D", "E"))
    return {rows for rows, _ in sizes if rows is not None}


def _inputs(shapes: Shapes) -> set[int]:
    sizes = (_size(path, shapes) or (None, None) for path in _OF_WEIGHT)
    mixed, _ = _size("C", shapes) or (None, None)
    return {columns for _, columns in sizes if columns is not None} | ({mixed} if mixed is not None else set())


def shape(shapes: Shapes) -> tuple[int | None, ...]:
    """Return (out, in) as far as the paths show them."""
    return next(iter(_outputs(shapes)), None), next(iter(_inputs(shapes)), None)


def misfit(shapes: Shapes, weight: tuple[int, ...]) -> str | None:
    """Return the mismatch with a weight of this shape, or None."""
    told = shape(shapes)
    if len(weight) == 2 and all(size in (None, own) for size, own in zip(told, weight, strict=True)):
        return None
    sizes = " by ".join("any" if size is None else str(size) for size in told)
    return f"changes a matrix of {sizes}"


def misfit_of_bias(shapes: Shapes, bias: tuple[int, ...]) -> str | None:
    """Return the mismatch with a bias of this shape, or None."""
    rows, _ = shape(shapes)
    return None if len(bias) == 1 and rows in (None, bias[0]) else f"changes a bias of {rows} numbers"


def outside(tensors: Tensors, weight: tuple[int, ...]) -> str | None:
    """Return an error if an empty path has numbers other than 0, which PEFT would compute with, or None."""
    empty = [f"{path}.zeros" for path in (*_OF_WEIGHT, *_OF_BIAS) if f"{path}.zeros" in tensors]
    odd = next((role for role in empty if tensors[role].any()), None)
    return f"has numbers in glora_{odd} that are not 0" if odd else None


def _path(name: str, tensors: Tensors) -> "tuple[Rows, ...]":
    """Return the result of a path as rows of a matrix, or nothing for zeros."""
    if f"{name}.Xd" in tensors:
        return (of_product(tensors[f"{name}.Xd"], tensors[f"{name}.Xu"]),)
    return (of_matrix(tensors[f"{name}.X"].reshape(-1, 1)),) if f"{name}.X" in tensors else ()


def change(tensors: Tensors, scale: float, alpha: float | None) -> "Change":
    """Return W ⊙ A + B."""
    return ScaledAndMoved(_path("A", tensors), _path("B", tensors))


def seen(tensors: Tensors, blocks: Iterable[tuple[int, Any]]) -> Any:
    """Return W C (out, 1) from the rows of the base's weight, or None without C."""
    if "C.X" not in tensors and "C.Xd" not in tensors:
        return None
    import torch

    column = tensors["C.X"] if "C.X" in tensors else tensors["C.Xd"] @ tensors["C.Xu"]
    return torch.cat([product(rows.to(column.dtype), column) for _, rows in blocks])


def change_of_bias(tensors: Tensors, scale: float, alpha: float | None) -> "Change":
    """Return b ⊙ D + E + W C, as a matrix of one column."""
    mixed = tensors[SEEN]
    terms = (*_path("E", tensors), *(() if mixed is None else (of_matrix(mixed),)))
    return ScaledAndMoved(_path("D", tensors), terms)


def variant(around: Surroundings) -> Algorithm:
    """Return the algorithm with the bias unless all its paths are zeros, as PEFT stores for a layer without one."""
    return ALGORITHM if all(_kind(path, around.shapes) == ("zeros",) for path in _OF_BIAS) else _WITH_BIAS


ALGORITHM = Algorithm(
    name="peft_glora",
    title="GLoRA of PEFT",
    equation="W + W ⊙ A + B, and the bias + bias ⊙ D + E + W · C",
    writers="PEFT",
    dialects={
        "peft": {f"{path}.{part}": f".glora_{path}.{part}" for path in (*_OF_WEIGHT, *_OF_BIAS) for part in _PARTS}
    },
    formula=Formula(check, shape, misfit, rank=lambda shapes: None, change=change, outside=outside),
    transposed=False,
    multiplies=True,
    blends=False,
    has_alpha=False,
    peft_type="GLORA",
    variant=variant,
)
_WITH_BIAS = ALGORITHM._replace(
    bias=Formula(
        check,
        shape=lambda shapes: shape(shapes)[:1],
        misfit=misfit_of_bias,
        rank=lambda shapes: None,
        change=change_of_bias,
        seen=seen,
    ),
    needs_bias=True,
)


# The rows `first` to `last` of a matrix, which may have one row or one column for all.
Rows = Callable[[int, int], Any]


def of_matrix(matrix: Any) -> Rows:
    """Return the rows of a matrix (out or 1, columns or 1)."""
    return lambda first, last: matrix if matrix.shape[0] == 1 else matrix[first:last]


def of_product(up: Any, down: Any) -> Rows:
    """Return the rows of up @ down, with up (out, rank) and down (rank, columns)."""
    return lambda first, last: product(up[first:last], down)


@dataclass(frozen=True, slots=True)
class ScaledAndMoved(Change):
    """W + W ⊙ factors + terms, each the sum of the given matrices. There is no multiplier but 1."""

    factors: tuple[Rows, ...]
    terms: tuple[Rows, ...]
    together: int = 1

    def fold(self, rows: Any, first: int, multiplier: float) -> None:
        """Multiply and move the rows; raise ValueError for a meaningless multiplier."""
        if multiplier != 1:
            raise ValueError(f"a weight is scaled and moved or not, which a multiplier of {multiplier:g} does not say")
        last = first + rows.shape[0]
        if self.factors:
            rows.mul_(1 + sum(factor(first, last) for factor in self.factors))
        for term in self.terms:
            rows.add_(term(first, last))
