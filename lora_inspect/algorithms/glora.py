"""GLoRA of LyCORIS: W' = W + multiplier · scale · (W · A + B), with products A (in, in), B (out, in·kernel).

A mixes the inputs of a layer, at each place of a kernel alike. Since LyCORIS 3 A = a1 @ a2 and B = b1 @ b2, before it A
= a2 @ a1 and B = b2 @ b1, on Linear layers and 1x1 convolutions; the shapes show which one it is. The scale is
alpha/rank, as all readers have it: 2.2 multiplied by it twice in training, and `rs_lora`, which no tensor shows, is
alpha/sqrt(rank). The functions use tensor methods only. Source: the `GLoRAModule` of lycoris-lora 4.1 and 1.8.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

from lora_inspect.algorithms.lora import contracted, other_than
from lora_inspect.algorithms.record import Algorithm, Formula, Role, Shapes, Surroundings, Tensors
from lora_inspect.files.strict_json import parse_json
from lora_inspect.maths.change import Blocks, Change
from lora_inspect.maths.products import by_rows, product

# (left, right, up, down): A = left @ right and B = up @ down.
Products = tuple[Role, Role, Role, Role]
_NEW, _OLD = ("a1", "a2", "b1", "b2"), ("a2", "a1", "b2", "b1")


def _rank(shapes: Shapes, products: Products) -> int | None:
    """Return the inner size of both products, or None if they do not change one weight."""
    left, right, up, down = (shapes[role] for role in products)
    core = shapes.get("bm")
    if min(map(len, (left, right, up, down))) < 2 or any(0 in shape for shape in shapes.values()):
        return None
    if any(size != 1 for shape in (left, right, up) for size in shape[2:]):
        return None
    if core is not None and (core[:2] != (up[1], down[0]) or len(core) < 3 or any(size != 1 for size in down[2:])):
        return None
    inner = {left[1], right[0], up[1], down[0]}
    return inner.pop() if len(inner) == 1 and left[0] == right[1] == down[1] else None


def check(shapes: Shapes, products: Products) -> str | None:
    """Return the error if the factors are not these products, or if the other products give a lower rank."""
    rank, other = _rank(shapes, products), _rank(shapes, _OLD if products == _NEW else _NEW)
    if rank is None or (other is not None and other < rank):
        return f"{', '.join((f'{role} {list(shape)}' for role, shape in shapes.items()))} cannot be multiplied"
    return None


def shape(shapes: Shapes, products: Products) -> tuple[int, ...]:
    """Return (out, in, *kernel) of the weight that they change."""
    _, _, up, down = (shapes[role] for role in products)
    return (up[0], down[1], *shapes.get("bm", down)[2:])


def misfit(shapes: Shapes, weight: tuple[int, ...], products: Products) -> str | None:
    """Return the mismatch with a weight of this shape, or None."""
    return other_than(shape(shapes, products), weight)


def rank(shapes: Shapes, products: Products) -> int:
    """Return the inner size of the products."""
    return shapes[products[0]][1]


def settings(around: Surroundings) -> dict[str, Any] | str:
    """Return no settings, or an error text if the order of the products or the scale is unknown."""
    if {_rank(around.shapes, each) for each in (_NEW, _OLD)} == {around.shapes["a1"][0]}:
        return (
            "its rank is the number of inputs and outputs, so its factors may come from LyCORIS before or since "
            "version 3; merge it with the version that trained it"
        )
    if _has_rs_lora(around.metadata.get("ss_network_args", "")):
        return (
            "its scale is alpha/sqrt(rank) by rs_lora in training, but every program reads alpha/rank; merge it with "
            "the LyCORIS that trained it"
        )
    return {}


def _has_rs_lora(text: str) -> bool:
    try:
        found = parse_json(text or "{}")
    except ValueError:
        return False
    return isinstance(found, dict) and str(found.get("rs_lora")).lower() in ("true", "1")


def change(tensors: Tensors, scale: float, alpha: float | None, products: Products) -> "Change":
    """Return scale · (W · A + B)."""
    left, right, up, down = (tensors[role].flatten(1) for role in products)
    return MixedInputs(left, right, up, contracted(tensors["bm"], down) if "bm" in tensors else down, scale)


_SUFFIXES = {role: f".{role}.weight" for role in ("a1", "a2", "b1", "b2", "bm")}


def _layout(name: str, title: str, products: Products) -> Algorithm:
    return Algorithm(
        name=name,
        title=title,
        equation="W + m · s · (W · {} @ {} + {} @ {})".format(*products),
        writers="LyCORIS",
        dialects={"lycoris": _SUFFIXES},
        marks=products,
        common=tuple(_SUFFIXES),
        formula=Formula(
            check=partial(check, products=products),
            shape=partial(shape, products=products),
            misfit=partial(misfit, products=products),
            rank=partial(rank, products=products),
            change=partial(change, products=products),
        ),
        multiplies=True,
        settings=settings,
    )


ALGORITHMS = (_layout("glora", "GLoRA", _NEW), _layout("old_glora", "GLoRA of LyCORIS before 3", _OLD))


@dataclass(frozen=True, slots=True)
class MixedInputs(Change):
    """W + multiplier · scale · (W · left @ right + up @ down).

    `left` (in, rank) and `right` (rank, in) mix the inputs at each place of a kernel alike; `up` is (out, rank) and
    `down` (rank, in·kernel).
    """

    left: Any
    right: Any
    up: Any
    down: Any
    scale: float
    together: int = 1

    def settled(self, blocks: Blocks, multiplier: float) -> Change:
        """Return the change itself: it needs only the rows that are folded."""
        return self

    def fold(self, rows: Any, first: int, multiplier: float) -> None:
        """Add both products' rows."""
        by_place = rows.reshape(rows.shape[0], self.left.shape[0], -1).transpose(1, 2)
        mixed = by_rows(lambda own: own @ self.left @ self.right, by_place.flatten(0, 1))
        mixed = mixed.view(by_place.shape).transpose(1, 2).reshape(rows.shape)
        added = mixed + product(self.up[first : first + rows.shape[0]], self.down)
        rows.add_(added * (self.scale * multiplier))
